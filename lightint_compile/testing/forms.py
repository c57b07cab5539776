"""The forms in which a generated chunk runs: one module, call by call, and with a cache that its calls write in place.

As one module, all steps are unrolled and text and context are projected in each. Call by call, one call projects text
and context, and every step is a call that gets keys and values as inputs. In place, the first call writes them into the
caller's buffers, every step writes its own behind them, and attends to a window of the buffers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightint_compile.testing.generator import Block, Model, Tables

Calls: TypeAlias = Mapping[str, Callable[..., Sequence[Tensor]]]
"""What runs each of a form's modules, by name."""

_SPARE = 2
"""Places behind the window that no call reads or writes."""


@dataclass(frozen=True)
class Form:
    """One way of running a chunk.

    Attributes:
        modules: what is captured, by name.
        play: runs the chunk by calls of these, and gives all results: the latent first.
    """

    modules: Mapping[str, nn.Module]
    play: Callable[[Calls, Sequence[Tensor]], list[Tensor]]


def as_module(model: Model) -> Form:
    """The chunk as one module."""
    return Form({"chunk": model}, lambda calls, args: list(calls["chunk"](*args)))


def call_by_call(model: Model) -> Form:
    """Keys and values of text and context come from one call, and go into every step's."""

    def play(calls: Calls, args: Sequence[Tensor]) -> list[Tensor]:
        latent, condition, text, context, *tables = args
        kept = calls["keys"](text, context)
        return _stepped(model, lambda now, rate: calls["step"](now, condition, rate, *tables, *kept), latent)

    return Form({"keys": _Keys(model), "step": _Step(model)}, play)


def in_place(model: Model) -> Form:
    """All keys and values lie in buffers that the calls write."""

    def play(calls: Calls, args: Sequence[Tensor]) -> list[Tensor]:
        latent, condition, text, context, *tables = args
        buffers = _buffers(model, latent, text, context)
        results = list(calls["keys"](text, context, *buffers))
        results += _stepped(model, lambda now, rate: calls["step"](now, condition, rate, *tables, *buffers), latent)
        return [*results, *buffers]

    return Form({"keys": _Written(model), "step": _Windowed(model)}, play)


FORMS: Mapping[str, Callable[[Model], Form]] = {
    "module": as_module,
    "call by call": call_by_call,
    "in-place cache": in_place,
}


def _stepped(model: Model, call: Callable[[Tensor, Tensor], Sequence[Tensor]], latent: Tensor) -> list[Tensor]:
    """The latent behind all steps, and what they return besides."""
    extra: list[Tensor] = []
    for step in range(model.f.steps):
        latent, *more = call(latent, torch.tensor(0.5 / (step + 1), dtype=latent.dtype))
        extra += more
    return [latent, *extra]


class _Part(nn.Module):
    """A call of a form, which computes with the whole model's weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model


class _Keys(_Part):
    """Keys and values of text and context ``[batch, heads, tokens, dim]``, in front of a chunk's and behind them."""

    def forward(self, text: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        return tuple(kept for block in self.model.stack for kept in _around(block, text, context))


class _Step(_Part):
    """One step on keys and values that are inputs."""

    def forward(
        self, latent: Tensor, condition: Tensor, rate: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *kept: Tensor
    ) -> tuple[Tensor, ...]:
        each = len(kept) // len(self.model.stack)
        joins = [
            functools.partial(_joined, kept[index * each : (index + 1) * each])
            for index in range(len(self.model.stack))
        ]
        return self.model.step(latent, condition, joins, Tables(cos, sin, mask), rate)


class _Written(_Part):
    """Writes keys and values of text and context into buffers, where each has its place."""

    def forward(self, text: Tensor, context: Tensor, *buffers: Tensor) -> tuple[Tensor, ...]:
        for index, block in enumerate(self.model.stack):
            front, behind = _split_around(_around(block, text, context))
            for buffer, first in zip(buffers[2 * index : 2 * index + 2], front, strict=True):
                buffer[:, :, : first.shape[2]] = first
            for buffer, last in zip(buffers[2 * index : 2 * index + 2], behind, strict=True):
                end = buffer.shape[2] - _SPARE
                buffer[:, :, end - last.shape[2] : end] = last
        return (text.mean(1),)


class _Windowed(_Part):
    """One step whose keys and values are written into buffers, and read from there."""

    def forward(
        self, latent: Tensor, condition: Tensor, rate: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *buffers: Tensor
    ) -> tuple[Tensor, ...]:
        first = self.model.tokens_in_front
        pairs = zip(buffers[::2], buffers[1::2], strict=True)
        joins = [functools.partial(_put, pair, first) for pair in pairs]
        return self.model.step(latent, condition, joins, Tables(cos, sin, mask), rate)


def _around(block: Block, text: Tensor, context: Tensor) -> tuple[Tensor, ...]:
    """Keys and values in front of a block's own, then those behind them; no tokens where there are none."""
    empty = text[:, :0]
    front = torch.cat([text if block.f.prefix == "first" else empty, context if block.f.context else empty], 1)
    behind = text if block.f.prefix == "last" else empty
    return (*block.projected(front), *block.projected(behind))


def _split_around(kept: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return kept[:2], kept[2:]


def _joined(kept: Sequence[Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    front, behind = _split_around(kept)
    return torch.cat([front[0], key, behind[0]], 2), torch.cat([front[1], value, behind[1]], 2)


def _put(buffers: Sequence[Tensor], first: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    end = buffers[0].shape[2] - _SPARE
    for buffer, own in zip(buffers, (key, value), strict=True):
        buffer[:, :, first : first + own.shape[2]] = own
    return buffers[0][:, :, :end], buffers[1][:, :, :end]


def _buffers(model: Model, latent: Tensor, text: Tensor, context: Tensor) -> list[Tensor]:
    """Two buffers ``[batch, heads, places, dim]`` a block, of as many places as there are keys, and some."""
    found = []
    for block in model.stack:
        front, _, behind, _ = _around(block, text, context)
        shape = (*front.shape[:2], front.shape[2] + latent.shape[1] + behind.shape[2] + _SPARE, front.shape[3])
        found += [front.new_zeros(shape), front.new_zeros(shape)]
    return found
