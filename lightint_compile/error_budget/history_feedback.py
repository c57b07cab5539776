"""Following a rollout's feedback: inputs that are earlier results become the earlier results of another setting.

A rollout's history is its own results joined along an axis, perhaps after latents that it was given. Where an input is
that, a setting that is only tried beside the exact one is given the history that it would have made itself, so that its
error is that of a whole rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fed:
    """An input that is a concatenation of results, or ends with all of them.

    Attributes:
        argument: its position.
        result: position of the result in each call's results.
        calls: how many of the latest calls it consists of.
        axis: along which they are joined.
    """

    argument: int
    result: int
    calls: int
    axis: int


def fed_back(args: Sequence[Any], results: Sequence[Sequence[Tensor]]) -> list[Fed]:
    """The inputs that equal the latest ``results`` (one list a call, the latest last) joined along an axis."""
    found = []
    for argument, value in enumerate(args):
        if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter) and value.is_floating_point():
            fed = next((each for each in _candidates(argument, value, results) if _equals(value, each, results)), None)
            found += [fed] if fed is not None else []
    return found


def _candidates(argument: int, value: Tensor, results: Sequence[Sequence[Tensor]]) -> list[Fed]:
    """Every way in which ``value`` could be a concatenation of results, by shape."""
    found = []
    for position in range(len(results[-1]) if results else 0):
        for axis in range(value.dim()):
            calls = _latest(value, axis, position, results)
            if calls:
                found.append(Fed(argument, position, calls, axis))
    return found


def _latest(value: Tensor, axis: int, position: int, results: Sequence[Sequence[Tensor]]) -> int:
    """How many of the latest results could make up ``value`` along ``axis``, or its end where it needs all; else 0."""
    size = 0
    for calls, call in enumerate(reversed(results), 1):
        if position >= len(call) or not _alike(call[position], value, axis):
            return 0
        size += call[position].shape[axis]
        if size >= value.shape[axis]:
            return calls if size == value.shape[axis] else 0
    return len(results)


def _alike(result: Tensor, value: Tensor, axis: int) -> bool:
    if result.dim() != value.dim() or result.device != value.device:
        return False
    return all(a == b for place, (a, b) in enumerate(zip(result.shape, value.shape, strict=True)) if place != axis)


def _equals(value: Tensor, fed: Fed, results: Sequence[Sequence[Tensor]]) -> bool:
    joined = _joined(fed, results)
    return torch.equal(joined.to(value.dtype), _end(value, joined, fed.axis))


def _joined(fed: Fed, results: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([call[fed.result] for call in results[-fed.calls :]], fed.axis)


def _end(value: Tensor, joined: Tensor, axis: int) -> Tensor:
    return value.narrow(axis, value.shape[axis] - joined.shape[axis], joined.shape[axis])


def replaced(args: Sequence[Any], feedback: Sequence[Fed], results: Sequence[Sequence[Tensor]]) -> list[Any]:
    """``args`` with what is fed back made of ``results``, in the memory layout that it had."""
    own = list(args)
    for fed in feedback:
        joined, own[fed.argument] = _joined(fed, results), args[fed.argument].clone()
        _end(own[fed.argument], joined, fed.axis).copy_(joined)
    return own
