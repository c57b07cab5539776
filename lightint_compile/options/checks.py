"""What values options take: a check brings a value into the form in which it is kept, or says what was expected."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.options.table import Check

ROLES = ("latent", "context", "camera", "intrinsics", "timestep", "text", "action", "parameter")
"""What an input can be to a world model."""


def choice(known: Iterable[str]) -> Check:
    """One of the names that ``known`` holds by then."""

    def check(option: str, value: Any) -> str:
        names = tuple(known)
        if value not in names:
            raise OptionError(
                f"{value!r} is no {option}", where=f"options[{option!r}]", fix=did_you_mean(str(value), names)
            )
        return str(value)

    return check


def none_or(check: Check) -> Check:
    """What ``check`` takes, or ``None``."""
    return lambda option, value: None if value is None else check(option, value)


def truth(option: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(option, value, "true or false", "True")
    return value


def number(expected: str, example: str, allows: Callable[[float], bool]) -> Check:
    """A number that ``allows`` takes, as a float, or ``None``."""

    def check(option: str, value: Any) -> float | None:
        if value is not None and not (is_number(value) and allows(value)):
            raise wrong(option, value, expected, example)
        return None if value is None else float(value)

    return check


def whole(expected: str, example: str, least: int) -> Check:
    """A whole number from ``least`` on, or ``None``."""

    def check(option: str, value: Any) -> int | None:
        if value is not None and not is_whole(value, least):
            raise wrong(option, value, expected, example)
        return None if value is None else int(value)

    return check


def several(count: int, allows: Callable[[Any], bool], expected: str, example: str) -> Check:
    """A list of ``count`` values that ``allows`` takes each, as a tuple, or ``None``."""

    def check(option: str, value: Any) -> tuple[Any, ...] | None:
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or len(value) != count or not all(map(allows, value)):
            raise wrong(option, value, expected, example)
        return tuple(value)

    return check


def pipeline_text(option: str, value: Any) -> str | None:
    """A pipeline as text, in its own spelling, or ``None``."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong(option, value, "a pipeline text", '"canonicalize-attention,dead-tail"')
    from lightint_compile.passes.pipeline import Pipeline

    return str(Pipeline.parse(value, f"options[{option!r}]"))


def pass_names(option: str, value: Any) -> tuple[str, ...]:
    """Names of passes."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise wrong(option, value, "a list of pass names", '["canonicalize-attention"]')
    names = tuple(value)
    if not names:
        return ()
    from lightint_compile.passes.registry import is_pass
    from lightint_compile.passes.registry import pass_names as known

    for name in names:
        if not isinstance(name, str) or not is_pass(name):
            fix = did_you_mean(str(name), known())
            raise OptionError(f"there is no pass called {name!r}", where=f"options[{option!r}]", fix=fix)
    return names


def preset_name(option: str, value: Any) -> str:
    """The name of a preset, built in or of another package."""
    from lightint_compile.options.presets import PRESETS, preset_of

    if not isinstance(value, str):
        return choice(PRESETS)(option, value)
    preset_of(value)
    return value


def input_roles(option: str, value: Any) -> tuple[tuple[str, str], ...]:
    """Inputs with a role each, as sorted pairs."""
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise wrong(option, value, "input names with a role each", '{"past_latents": "context"}') from None
    for path, role in pairs.items():
        if role not in ROLES:
            fix = did_you_mean(str(role), ROLES)
            raise OptionError(f"{role!r} is no role", where=f"options[{option!r}][{path!r}]", fix=fix)
    return tuple(sorted((str(path), str(role)) for path, role in pairs.items()))


def input_grids(option: str, value: Any) -> tuple[tuple[str, tuple[int | None, int, int]], ...]:
    """Inputs with the frames that they hold, as sorted pairs."""
    example = '{"kv_cache.*.k": [None, 30, 52]}'
    try:
        pairs = {str(path): tuple(grid) for path, grid in dict(value).items()}
    except (TypeError, ValueError):
        raise wrong(option, value, "input names with frames, height and width each", example) from None
    for path, grid in pairs.items():
        if len(grid) != 3 or not all(is_whole(size, 1) for size in grid[1:]) or not _is_count(grid[0]):
            expected = "frames (or None for as many as there are), height and width in tokens"
            raise wrong(option, grid, expected, "[None, 30, 52]", path)
    return tuple(sorted(pairs.items()))


def _is_count(frames: Any) -> bool:
    return frames is None or is_whole(frames, 1)


def site_densities(option: str, value: Any) -> tuple[tuple[str, float], ...] | None:
    """Module paths or patterns with a kept fraction each, as sorted pairs; or ``None``."""
    if value is None:
        return None
    from lightint_compile.passes.base import pairs_of

    expected, example = "module paths with a kept fraction each", '{"blocks.0.*": 1.0}'
    try:
        pairs = dict(pairs_of(value) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise wrong(option, value, expected, example) from None
    for path, density in pairs.items():
        if not isinstance(path, str) or not path or not _WRITABLE.fullmatch(path):
            raise wrong(option, path, "a module path, or a pattern of paths", example)
        if not is_number(density) or not 0 < density <= 1:
            raise wrong(option, density, "a fraction above 0 and at most 1", "0.3", path)
    return tuple(sorted((path, float(density)) for path, density in pairs.items())) or None


_WRITABLE = re.compile(r"[^{},+:=\s]+")
"""Paths that a pipeline text can hold."""


def shipped_folder(option: str, value: Any) -> str | None:
    """A folder that ``lightint compile`` wrote, as text; or ``None``."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise wrong(option, value, "a folder", '"artifacts"')
    folder = Path(value)
    if not (folder / SHIPPED).is_file():
        why = "there is no such folder" if not folder.is_dir() else f"it has no {SHIPPED}"
        fix = "name a folder that `lightint compile TARGET --out FOLDER` wrote"
        raise OptionError(f"{str(folder)!r} holds no programs", where=f"options[{option!r}]", why=why, fix=fix)
    return str(folder)


SHIPPED = "artifacts.json"
"""The file of a folder of programs that says what they are."""


def device_mesh(option: str, value: Any) -> str | None:
    """A one-dimensional ``DeviceMesh`` as ``ranks@group``, which is taken as it is; or ``None``."""
    if value is None or (isinstance(value, str) and _MESH.fullmatch(value)):
        return value
    from lightint_compile.passes.ir.ranks import mesh_text

    text = mesh_text(value)
    if text is None:
        example = 'torch.distributed.init_device_mesh("cuda", (4,))'
        raise wrong(option, value, "a DeviceMesh of one dimension", example)
    return text


_MESH = re.compile(r"[1-9]\d*@[^{},@]+")


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number from ``least`` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def wrong(option: str, value: Any, expected: str, example: str, key: str | None = None) -> OptionError:
    """The error on a value that cannot be taken: an option's, or that of a key in one that is a mapping."""
    where = f"options[{option!r}]" + ("" if key is None else f"[{key!r}]")
    return OptionError(
        f"{value!r} cannot be taken", where=where, why=f"expected {expected}", fix=f"for example {example}"
    )
