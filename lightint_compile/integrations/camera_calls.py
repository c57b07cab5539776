"""Calls of a camera rollout's transformer, made so that one program serves all of them.

How much context there is shows in sizes, in the numbers that positions are counted from, and in strides: cameras are
cut out of the whole path, or gathered, or one matrix expanded. Left alone, Dynamo compiles the first length as a
constant and the second one anew, and a path of another length once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import torch
import torch._dynamo
import torch.compiler.config
from torch import Tensor

from lightint_compile.torch_compat import CallSetting

_CAMERAS = ("viewmats", "Ks", "action")
"""Arguments that are cut out of the whole path, latent frames along their axis 1."""

_FRAMES: Mapping[str, int] = {"hidden_states": 2, "timestep": 0, "viewmats": 1, "Ks": 1, "action": 1}
"""Arguments of a call that fills caches, and their axis of context frames."""

_PAST: Mapping[str, int] = {"k_vision": -2, "v_vision": -2}
"""Caches of a block, and their axis of context tokens."""

_COUNTS = ("rope_temporal_size", "start_rope_start_idx")
"""Numbers that positions are counted from."""

_PATTERNS = [rf".*\['{name}'\]$" for name in _COUNTS]
"""Those numbers as Dynamo names them, in keyword arguments of any function."""


def dense_cameras(given: dict[str, Any]) -> None:
    """Lay cameras out in the keyword arguments of a call as new tensors are, by copies where they are not."""
    for name in _CAMERAS:
        if isinstance(given.get(name), Tensor):
            given[name] = _dense(given[name])


def filled(given: dict[str, Any], call: Callable[[], Any]) -> Any:
    """What the call that fills caches gives; frames of context are symbolic in it, and in later calls its tokens.

    A denoising step has as many frames as a chunk, which are no context.
    """
    for name, axis in _FRAMES.items():
        _may_change(given.get(name), axis)
    caches = call()
    for block in caches if isinstance(caches, Sequence) else ():
        for name, axis in _PAST.items() if isinstance(block, Mapping) else ():
            _may_change(block.get(name), axis)
    return caches


def _with_counts(named: str) -> str:
    """What the user names symbolic stays so."""
    names = named.split(",") if named else []
    return ",".join([*names, *(each for each in _PATTERNS if each not in names)])


SYMBOLIC_COUNTS = CallSetting(torch.compiler.config, "dynamic_sources", _with_counts)
"""Lets Dynamo take the numbers that positions are counted from for symbols."""


def _may_change(tensor: Any, axis: int) -> None:
    if isinstance(tensor, Tensor):
        torch._dynamo.maybe_mark_dynamic(tensor, axis % tensor.dim())


def _dense(tensor: Tensor) -> Tensor:
    """With the strides of a new tensor, also along axes of size 1, which ``contiguous`` leaves as they are."""
    steps = accumulate(reversed(tensor.shape[1:]), mul, initial=1)
    if tensor.stride() == tuple(steps)[::-1]:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
