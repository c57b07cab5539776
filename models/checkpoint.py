"""Load released weights from a folder of safetensors files, strictly and one file at a time.

Everything is checked from the file headers before the first byte of a weight is read, so a wrong checkpoint fails in
a second and leaves the model as it was. One tensor at a time is in flight: 17 GB of weights need 17 GB, not 34.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightint_compile.errors import CheckpointError
from lightint_compile.models.devices import checked_device
from lightint_compile.read_back import UnreadableError, an_object, read_back

Located = dict[str, Path]
"""Which file holds each key."""


def load_checkpoint(
    module: nn.Module,
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    rest: str | Path | None = None,
) -> nn.Module:
    """Fill every parameter of `module` from `folder` and return the module.

    `folder` holds one or more `*.safetensors` files, with or without a `*.safetensors.index.json` that says which file
    has which key. `rest` is another such folder, which has the keys that the first lacks; the first need not be there
    then. The keys must be exactly the module's. Parameters on the meta device are created on `device` in `dtype` (by
    default the dtype the module was built with), buffers in their own; others keep their device and dtype.

    Raises:
        CheckpointError: a missing, extra, doubled or wrongly shaped key, an unreadable file, an index that names a file
            which is not there. The first offending key is named, with how many more there are.
        DeviceError: `device` is not there.
    """
    folder, device = Path(folder), checked_device(device)
    over = locate_keys(folder) if rest is None or folder.is_dir() else {}
    located = {**(locate_keys(Path(rest)) if rest is not None else {}), **over}
    expected = module.state_dict(keep_vars=True)
    _check_keys(expected, located, folder)
    _check_shapes(expected, located)
    for path in sorted(set(located.values())):
        _load_file(module, expected, path, [key for key, file in located.items() if file == path], device, dtype)
    return module


def locate_keys(folder: Path) -> Located:
    """Key to file, from the index where there is one and from the headers of all files otherwise."""
    if not folder.is_dir():
        raise CheckpointError("The checkpoint folder is not there.", where=str(folder), fix="give an existing folder")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        why = ", ".join(path.name for path in indices)
        raise CheckpointError("The folder has more than one index.", where=str(folder), why=why, fix="keep one")
    return _from_index(indices[0]) if indices else _from_headers(folder)


def _from_index(index: Path) -> Located:
    try:
        weight_map = read_back(index, lambda data: an_object(data["weight_map"]))
    except (OSError, UnreadableError) as error:
        raise CheckpointError("The index cannot be read.", where=str(index), why=str(error)) from error
    located = {key: index.parent / str(name) for key, name in weight_map.items()}
    for key, path in located.items():
        if not os.path.isfile(path):  # a name that no file can have is none, and no error of the system's
            why = f"it is listed as the home of {key!r}"
            raise CheckpointError(
                "A file of the index is not there.", where=str(path), why=why, fix="complete the folder"
            )
    _check_index_covers(located, index)
    return located


def _check_index_covers(located: Located, index: Path) -> None:
    present = {(key, path) for path in set(located.values()) for key in _keys(path)}
    wrong = sorted(set(located.items()) ^ present)
    if wrong:
        key, path = wrong[0]
        why = "the index lists it there and the file lacks it" if (key, path) not in present else "the index omits it"
        raise CheckpointError(
            f"Index and file disagree on the key {key!r}.", where=f"{index.name}, {path.name}", why=why
        )


def _from_headers(folder: Path) -> Located:
    located: Located = {}
    for path in sorted(folder.glob("*.safetensors")):
        for key in _keys(path):
            if key in located:
                why = f"it is in {located[key].name} and in {path.name}"
                raise CheckpointError(f"The key {key!r} is there twice.", where=str(folder), why=why, fix="keep one")
            located[key] = path
    if not located:
        raise CheckpointError("The folder holds no weights.", where=str(folder), fix="put *.safetensors files there")
    return located


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError("The file is not a safetensors file.", where=str(path), why=str(error)) from error


def _check_keys(expected: dict[str, Tensor], located: Located, folder: Path) -> None:
    for kind, keys, fix in (
        ("lacks", sorted(expected.keys() - located.keys()), "use the checkpoint of this configuration"),
        ("has an unknown", sorted(located.keys() - expected.keys()), "use the configuration of this checkpoint"),
    ):
        if keys:
            why = f"{len(keys)} of {len(expected)} keys, first {keys[0]!r}"
            raise CheckpointError(f"The checkpoint {kind} key {keys[0]!r}.", where=str(folder), why=why, fix=fix)


def _check_shapes(expected: dict[str, Tensor], located: Located) -> None:
    for path in sorted(set(located.values())):
        with safe_open(path, framework="pt") as file:
            for key in (key for key, home in located.items() if home == path):
                found = tuple(file.get_slice(key).get_shape())
                if found != tuple(expected[key].shape):
                    why = f"it is {found}, the model has {tuple(expected[key].shape)}"
                    fix = "use the configuration of this checkpoint"
                    raise CheckpointError(f"The key {key!r} has a wrong shape.", where=str(path), why=why, fix=fix)


def _load_file(
    module: nn.Module,
    expected: dict[str, Tensor],
    path: Path,
    keys: list[str],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> None:
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for key in keys:
            target = expected[key]
            if target.is_meta:
                kept = target.dtype if dtype is None or not isinstance(target, nn.Parameter) else dtype
                _replace(module, key, file.get_tensor(key).to(device, kept))
            else:
                target.copy_(file.get_tensor(key))


def _replace(module: nn.Module, key: str, value: Tensor) -> None:
    parent, _, name = key.rpartition(".")
    owner = module.get_submodule(parent)
    before = getattr(owner, name)
    is_parameter = isinstance(before, nn.Parameter)
    setattr(owner, name, nn.Parameter(value, requires_grad=before.requires_grad) if is_parameter else value)
