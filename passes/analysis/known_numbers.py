"""Small integer tensors whose numbers follow from constants and sizes, such as the lengths of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy
import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor

from lightint_compile.passes.ir.fake_values import Size, plain, size_of
from lightint_compile.passes.ir.op_arguments import arguments
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

MOST = 256
"""A tensor with more numbers is not looked into."""

Numbers: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.object_]]"
_Rule: TypeAlias = Callable[[Mapping[str, Any]], Numbers]


def known_numbers(node: fx.Node) -> list[Size] | None:
    """The numbers of an integer tensor of one dimension, as numbers or expressions of sizes; ``None`` if unknown."""
    try:
        found = _Reading().of(node)
    except _UnknownError:
        return None
    return [plain(number) for number in found.tolist()] if found.ndim == 1 else None


class _UnknownError(Exception):
    """Something that no rule knows: the numbers are data."""


class _Reading:
    """Evaluates nodes on arrays of expressions; each node once."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, Numbers] = {}

    def of(self, node: fx.Node) -> Numbers:
        if node not in self._known:
            self._known[node] = self._evaluated(node)
        return self._known[node]

    def _evaluated(self, node: fx.Node) -> Numbers:
        made = tensor_of(node)
        if made is None or made.is_floating_point() or made.is_complex() or not _is_few(made):
            raise _UnknownError
        if node.op == "get_attr":
            return _held(node)
        rule = _RULES.get(node.target)
        if node.op != "call_function" or rule is None:
            raise _UnknownError
        shape = tuple(int(size) for size in made.shape)
        found = rule({**{name: self._value(value) for name, value in arguments(node).items()}, "shape": shape})
        return numpy.asarray(found, dtype=object).reshape(shape)

    def _value(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.of(value) if tensor_of(value) is not None else size_of(value.meta["val"])
        if isinstance(value, (tuple, list)):
            return [self._value(each) for each in value]
        return value


def _is_few(tensor: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in tensor.shape) and math.prod(tensor.shape) <= MOST


def _held(node: fx.Node) -> Numbers:
    """A tensor that the graph holds itself, if it lies where reading it waits for nothing."""
    held = getattr(node.graph.owning_module, str(node.target), None)
    if not isinstance(held, torch.Tensor) or isinstance(held, FakeTensor) or held.device.type != "cpu":
        raise _UnknownError
    return numpy.array(held.tolist(), dtype=object)


def _scaled(given: Mapping[str, Any]) -> Any:
    other, alpha = given["other"], given.get("alpha", 1)
    if isinstance(other, float) or isinstance(alpha, float):
        raise _UnknownError
    return other * alpha


def _slices(given: Mapping[str, Any], rank: int) -> tuple[Any, ...]:
    bounds = [given["start"], given["end"], given["step"]]
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        raise _UnknownError
    return (*[slice(None)] * (given["dim"] % rank), slice(*bounds))


def _scattered(given: Mapping[str, Any], place: tuple[Any, ...]) -> Numbers:
    result: Numbers = given["self"].copy()
    result[place] = given["src"][()]
    return result


def _padded(given: Mapping[str, Any]) -> Numbers:
    (before, after), source = given["pad"], given["self"]
    if before < 0 or after < 0 or given.get("mode", "constant") != "constant" or isinstance(given["value"], float):
        raise _UnknownError
    fill = [given["value"] or 0]
    return numpy.concatenate([numpy.array(fill * before, object), source, numpy.array(fill * after, object)])


def _filled(value: Any) -> _Rule:
    def rule(given: Mapping[str, Any]) -> Numbers:
        number = given[value] if isinstance(value, str) else value
        if isinstance(number, float):
            raise _UnknownError
        return numpy.full(given["shape"], number, dtype=object)

    return rule


def _range(given: Mapping[str, Any]) -> Numbers:
    start, step = given.get("start", 0), given.get("step", 1)
    return numpy.array([start + step * place for place in range(math.prod(given["shape"]))], dtype=object)


def _same(given: Mapping[str, Any]) -> Numbers:
    found: Numbers = given["self"]
    return found


_RULES: dict[Any, _Rule] = {
    **dict.fromkeys((aten.clone.default, aten.detach.default, aten.alias.default, aten._to_copy.default), _same),
    **dict.fromkeys((aten.lift_fresh_copy.default, aten.view.default, aten.reshape.default, aten.squeeze.dim), _same),
    **dict.fromkeys((aten.unsqueeze.default, aten.contiguous.default), _same),
    **dict.fromkeys((aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default), _filled(0)),
    **dict.fromkeys((aten.ones.default, aten.new_ones.default, aten.ones_like.default), _filled(1)),
    **dict.fromkeys((aten.full.default, aten.new_full.default, aten.full_like.default), _filled("fill_value")),
    **dict.fromkeys((aten.arange.default, aten.arange.start, aten.arange.start_step), _range),
    aten.scalar_tensor.default: _filled("s"),
    aten.stack.default: lambda given: numpy.stack(given["tensors"], given["dim"]),
    aten.cat.default: lambda given: numpy.concatenate(given["tensors"], given["dim"]),
    aten.cumsum.default: lambda given: numpy.cumsum(given["self"], given["dim"]),
    aten.add.Tensor: lambda given: given["self"] + _scaled(given),
    aten.sub.Tensor: lambda given: given["self"] - _scaled(given),
    aten.mul.Tensor: lambda given: given["self"] * _scaled(given),
    aten.expand.default: lambda given: numpy.broadcast_to(given["self"], given["shape"]),
    aten.repeat.default: lambda given: numpy.tile(given["self"], given["repeats"]),
    aten.select.int: lambda given: numpy.take(given["self"], given["index"], given["dim"]),
    aten.slice.Tensor: lambda given: given["self"][_slices(given, given["self"].ndim)],
    aten.select_scatter.default: lambda given: _scattered(
        given, (*[slice(None)] * (given["dim"] % given["self"].ndim), given["index"])
    ),
    aten.slice_scatter.default: lambda given: _scattered(given, _slices(given, given["self"].ndim)),
    **dict.fromkeys((aten.constant_pad_nd.default, aten.pad.default), _padded),
    aten.copy.default: lambda given: numpy.broadcast_to(given["src"], given["shape"]),
}
