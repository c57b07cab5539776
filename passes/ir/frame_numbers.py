"""Numbers of frames in a graph: those of the coming chunk, lists that are a range, expressions over sizes as nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.fake_values import plain as plain_size
from lightint_compile.passes.ir.op_arguments import argument, size_argument
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten

_PASSED_ON = (aten._to_copy.default, aten.clone.default, aten.to.dtype, aten.to.device, aten.contiguous.default)


@dataclass(frozen=True)
class Window:
    """Frames of the camera input: ``count`` from ``first`` on, every ``step``-th, or those ``index`` [count] names."""

    first: Size | None
    count: Size
    index: fx.Node | None = None
    step: int = 1

    def __str__(self) -> str:
        if self.index is not None:
            return f"the {self.count} frames of {self.index.name}"
        every = f", one in {self.step}" if self.step > 1 else ""
        return f"frame {self.first}" if self.count == 1 else f"{self.count} frames from {self.first} on{every}"

    def behind(self, frames: Size) -> Size:
        """The place of the frame that so many of them are in front of."""
        return plain_size(sympy.sympify(self.first) + sympy.sympify(frames) * self.step)

    def is_within(self, other: Window) -> bool:
        """Whether its frames are among those of another window, by numbers that are known."""
        if self.first is None or other.first is None or not isinstance(self.count, int):
            return False
        offset = sympy.sympify(self.first) - other.first
        fits = offset.is_Integer and offset % other.step == 0 and (self.count == 1 or self.step % other.step == 0)
        last = offset + (self.count - 1) * self.step
        return bool(fits and offset >= 0 and isinstance(other.count, int) and last <= (other.count - 1) * other.step)


@dataclass(frozen=True)
class Coming:
    """The frames of the coming chunk in a camera input.

    Attributes:
        count: how many they are.
        first: the first of them, over the sizes and numbers of the capture; ``None`` where ``index`` says it.
        index: their numbers, a node [count].
        step: cameras of a latent frame, where the path has one for every frame of the video.
    """

    count: int
    first: Size | None = None
    index: fx.Node | None = None
    step: int = 1

    def __str__(self) -> str:
        return str(Window(self.first, self.count, self.index, self.step))

    def is_last(self, cameras: Size) -> bool:
        """Whether a path of so many ``cameras`` ends with it."""
        if self.first is None:
            return False
        return same(Window(self.first, self.count, None, self.step).behind(self.count - 1), cameras - 1)

    def past(self, frames: int) -> Coming:
        """What is left behind so many of its frames."""
        if self.first is None or not frames:
            return self
        first = Window(self.first, self.count, None, self.step).behind(frames)
        return Coming(self.count - frames, first, None, self.step)


def run_of(index: fx.Node) -> Size | None:
    """The first number of an index that is a range of consecutive ones, written out; ``None`` where it is none."""
    if index.target in _PASSED_ON:
        return run_of(index.args[0]) if isinstance(index.args[0], fx.Node) else None
    if index.target is aten.arange.default:
        return 0
    if index.target in (aten.arange.start, aten.arange.start_step):
        step = argument(index, "step") if index.target is aten.arange.start_step else 1
        return size_argument(argument(index, "start")) if step == 1 else None
    if index.target in (aten.add.Tensor, aten.sub.Tensor) and argument(index, "alpha") == 1:
        return _moved(index)
    return None


def _moved(index: fx.Node) -> Size | None:
    """A range with a number added to it, or taken away."""
    left, right = argument(index, "self"), argument(index, "other")
    down = index.target is aten.sub.Tensor
    if tensor_of(left) is None and not down:
        left, right = right, left
    if tensor_of(left) is None or not _is_number(right):
        return None
    first = run_of(left)
    by = size_argument(right)
    return None if first is None else plain_size(sympy.sympify(first) + (-by if down else by))


def _is_number(value: Any) -> bool:
    value = value.meta.get("val") if isinstance(value, fx.Node) else value
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def number_node(program: Program, size: Size, make: Callable[..., fx.Node]) -> fx.Node | int | None:
    """A size as a number of the graph: itself, or nodes over its inputs; ``None`` where they do not tell.

    Args:
        make: makes a call, ``make(target, *args)``.
    """
    if isinstance(size, int):
        return size
    if size.is_Symbol:
        return _symbol_node(program, size, make)
    if size.is_Integer:
        return int(size)
    target = {sympy.Add: operator.add, sympy.Mul: operator.mul}.get(size.func)
    parts = [number_node(program, part, make) for part in size.args] if target is not None else [None]
    made = parts[0]
    for part in parts[1:]:
        if made is None or part is None:
            return None
        made = make(target, made, part)
    return made


def _symbol_node(program: Program, symbol: sympy.Symbol, make: Callable[..., fx.Node]) -> fx.Node | None:
    for node in program.placeholders():
        if isinstance(node.meta.get("val"), torch.SymInt) and size_of(node.meta["val"]) == symbol:
            return node
    for node in program.placeholders():
        tensor = tensor_of(node)
        for axis, size in enumerate(() if tensor is None else tensor.shape):
            if size_of(size) == symbol:
                return make(aten.sym_size.int, node, axis)
    return None
