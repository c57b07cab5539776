"""Following a rollout's feedback: inputs that are earlier results become the earlier results of another setting.

A rollout's history is its own results joined along an axis, perhaps after latents that it was given. Where an input is
that, a setting that is only tried beside the exact one is given the history that it would have made itself, so that its
error is that of a whole rollout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        is_all: whether it has all results so far, or nothing else. What is in front of fewer may be results as well, or
            latents that a later rollout was given.
    """

    argument: int
    result: int
    calls: int
    axis: int
    is_all: bool = True


def fed_back(args: Sequence[Any], results: Sequence[Sequence[Tensor]]) -> list[Fed]:
    """The inputs that end with the latest ``results`` (one list a call, the latest last) joined along an axis."""
    found = []
    for argument, value in enumerate(args):
        if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter) and value.is_floating_point():
            fed = next((each for each in _candidates(argument, value, results) if _equals(value, each, results)), None)
            found += [fed] if fed is not None else []
    return found


def _candidates(argument: int, value: Tensor, results: Sequence[Sequence[Tensor]]) -> Iterator[Fed]:
    """Every way in which ``value`` could end with results, by shape and by the latest of them; the most first."""
    for position in range(len(results[-1]) if results else 0):
        for axis in range(value.dim()):
            counts = _counts(value, axis, position, results)
            if not counts or not _equals(value, Fed(argument, position, 1, axis), results):
                continue
            for calls, size in reversed(counts):
                yield Fed(argument, position, calls, axis, calls == len(results) or size == value.shape[axis])


def _counts(value: Tensor, axis: int, position: int, results: Sequence[Sequence[Tensor]]) -> list[tuple[int, int]]:
    """How many of the latest results fit into ``value`` along ``axis``, and their size there."""
    size, counts = 0, []
    for calls, call in enumerate(reversed(results), 1):
        if position >= len(call) or not _alike(call[position], value, axis):
            break
        size += call[position].shape[axis]
        if size > value.shape[axis]:
            break
        counts.append((calls, size))
    return counts


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
