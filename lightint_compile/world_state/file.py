"""States in safetensors files: tensors as such, everything else as JSON in the header."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightint_compile.errors import InputError

FORMAT = "2"
"""Changes with the meaning of what is written."""

_FORMAT, _STATE, _HASH = "lightint_state", "lightint_content", "lightint_content_sha256"


def write_state(path: str | Path, state: Any) -> Path:
    """Write ``state``: nested dictionaries, lists and tuples of numbers, texts, dtypes, devices and tensors.

    Raises:
        InputError: the file cannot be written, or a tensor has no form in such a file.
    """
    tensors: dict[str, Tensor] = {}
    content = json.dumps(_plain(state, "", tensors))
    header = {_FORMAT: FORMAT, _STATE: content, _HASH: _hash(content)}
    try:
        target = _target(path)
        staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            staging.touch()
            mode = staging.stat().st_mode
            save_file(tensors, staging, metadata=header)
            staging.chmod(mode)  # the library's own is for the owner alone
            os.replace(staging, target)
        finally:
            staging.unlink(missing_ok=True)
    except (OSError, TypeError) as error:
        fix = "give the path of a file in a folder that exists and can be written to"
        raise InputError("the state cannot be written", where=str(path), why=str(error), fix=fix) from error
    except (ValueError, KeyError, SafetensorError) as error:
        fix = "give tensors of another dtype"
        raise InputError("the state cannot be written", where=str(path), why=str(error), fix=fix) from error
    return Path(path)


def _target(path: str | Path) -> Path:
    """The file itself, behind links; what is there and no file is not replaced."""
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise OSError("it is a folder" if target.is_dir() else "it is a device, a pipe or a socket")
    return target


def read_state(path: str | Path) -> Any:
    """What :func:`write_state` wrote; tensors are on the devices they were on, or on the host where those are not here.

    Raises:
        InputError: there is no such file, it is damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            _check(header, path)
            return _value(json.loads(header[_STATE]), file.get_tensor)
    except InputError:
        raise
    except Exception as error:  # a wrong form is any error at all: a key, a type, a name that torch has not
        fix = "give the path of a file that save_state wrote, and copy it again where it may have been cut off"
        raise InputError("the state cannot be read", where=str(path), why=str(error), fix=fix) from error


def _check(header: Mapping[str, str], path: str | Path) -> None:
    if header.get(_FORMAT) == FORMAT:
        if _hash(header[_STATE]) != header[_HASH]:
            raise ValueError("its header is not what was written")
        return
    why = "it holds tensors and no state" if _FORMAT not in header else f"its format is {header[_FORMAT]}, not {FORMAT}"
    raise InputError("the file holds no state of a world", where=str(path), why=why, fix="write it with save_state")


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` for JSON: what JSON has not is a dictionary with one key, its kind."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().contiguous()
        return {"tensor": [path, str(value.device)]}
    if isinstance(value, (torch.dtype, torch.device)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        pairs = [[_plain(key, "", tensors), _plain(each, _under(path, key), tensors)] for key, each in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        parts = [_plain(each, _under(path, place), tensors) for place, each in enumerate(value)]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    return value


def _under(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _value(data: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The inverse of :func:`_plain`."""
    if isinstance(data, list):
        return [_value(each, tensor) for each in data]
    if not isinstance(data, dict):
        return data
    ((kind, held),) = data.items()
    if kind == "tensor":
        return _placed(tensor(held[0]), held[1])
    if kind == "dict":
        return {_value(key, tensor): _value(each, tensor) for key, each in held}
    if kind == "tuple":
        return tuple(_value(each, tensor) for each in held)
    return _dtype(held) if kind == "dtype" else torch.device(held)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return found


def _placed(tensor: Tensor, device: str) -> Tensor:
    here = torch.device(device)
    is_here = here.type == "cpu" or (here.type == "cuda" and (here.index or 0) < torch.cuda.device_count())
    return tensor.to(here) if is_here else tensor
