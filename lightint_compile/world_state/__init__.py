"""The state of a world between two chunks: forked in memory, saved to a file, loaded into a compiled module.

lightint_compile.save_state(compiled, "world.safetensors", {"history": history})
history = lightint_compile.load_state(compiled, "world.safetensors")["history"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightint_compile.errors import InputError, LightintError, told
from lightint_compile.world_state.file import read_state, write_state
from lightint_compile.world_state.program import Memory, restore, state_of


@dataclass(frozen=True)
class WorldState:
    """What a compiled module remembers between two chunks, and the caller's own tensors; a copy of both.

    Attributes:
        memory: what the module remembers: paths of cameras, decisions, keys and values of context frames.
        world: the caller's tensors by name, such as the video so far and the state of a generator of noise.
    """

    memory: Memory
    world: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write the state to a safetensors file, which appears whole or not at all.

        Raises:
            InputError: the file cannot be written, or a tensor has no form in such a file.
        """
        return write_state(path, {"memory": self.memory, "world": dict(self.world)})

    @classmethod
    def load(cls, path: str | Path) -> WorldState:
        """The state in a file that :meth:`save` wrote.

        Raises:
            InputError: there is no such file, it is damaged, or holds something else.
        """
        found = read_state(path)
        if not isinstance(found, dict) or set(found) != {"memory", "world"} or not isinstance(found["memory"], dict):
            raise _unreadable(path, "it holds something else than a memory and a world")
        return cls(found["memory"], _copied(found["world"]))


def fork_state(compiled: Any, world: Mapping[str, Tensor] | None = None) -> WorldState:
    """A copy of the state of a compiled module between two chunks. Nothing of it changes when the module goes on.

    What is kept for speed alone, and found again by content, is no part of it: it is made again where it is missing.

    Args:
        compiled: as of :func:`lightint_compile.report`.
        world: tensors of the caller's that belong to the world; they are copied.

    Raises:
        StateError: the module was never called, or was compiled by another backend.
        InputError: ``world`` holds something else than tensors.
    """
    return WorldState(state_of(compiled), _copied(world or {}))


def save_state(compiled: Any, path: str | Path, world: Mapping[str, Tensor] | None = None) -> Path:
    """Write :func:`fork_state` to a safetensors file.

    Raises:
        StateError, InputError: as of :func:`fork_state` and :meth:`WorldState.save`.
    """
    return fork_state(compiled, world).save(path)


def load_state(compiled: Any, state: WorldState | str | Path) -> dict[str, Tensor]:
    """Put a state in the place of that of a compiled module, which goes on from there; gives the caller's tensors.

    The module must have been called before, with inputs as the next chunk has them: only then its programs exist. A
    state can be loaded any number of times. One that does not fit changes nothing.

    Args:
        compiled: as of :func:`fork_state`.
        state: of :func:`fork_state`, or the path of a file.

    Raises:
        StateError: the module was never called, or was not called as the state's world was.
        InputError: the state is of another model, of other options or of other sizes; as of :meth:`WorldState.load`.
    """
    found = state if isinstance(state, WorldState) else WorldState.load(state)
    try:
        restore(compiled, found.memory)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, LightintError):
            raise
        raise _unreadable(state, told(error)) from error
    return _copied(found.world)


def _unreadable(state: object, why: str) -> InputError:
    where = "state" if isinstance(state, WorldState) else str(state)
    return InputError("the state cannot be read", where=where, why=why, fix="write it with save_state")


def _copied(world: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(world, Mapping):
        raise _misfit("world", f"it is a {type(world).__name__}")
    for name, each in world.items():
        if why := _unfit(name, each):
            raise _misfit(f"world[{name!r}]", why)
    with torch.inference_mode(False):
        return {name: each.detach().clone() for name, each in world.items()}


def _unfit(name: object, value: object) -> str:
    """Why an entry is none of a world; empty where it is one."""
    if not isinstance(name, str):
        return f"its name is a {type(name).__name__}"
    if not isinstance(value, Tensor):
        return f"it is a {type(value).__name__}"
    if value.is_meta:
        return "it has no values: its device is meta"
    if value.layout != torch.strided or value.is_nested:
        return "it is nested" if value.is_nested else f"its layout is {value.layout}"
    return ""


def _misfit(where: str, why: str) -> InputError:
    fix = 'give a dictionary of dense tensors by name, as {"history": history}'
    return InputError("a world is made of tensors by name", where=where, why=why, fix=fix)
