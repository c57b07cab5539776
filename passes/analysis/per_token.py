"""Inputs with a value a token, such as a timestep that is 0 for a clean first frame: few of their rows may differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import extent, plain, same
from lightint_compile.passes.analysis.row_repeats.analysis import Analysis, analyse
from lightint_compile.passes.analysis.row_repeats.layout import kept_size
from lightint_compile.passes.analysis.row_repeats.needs import lost_products
from lightint_compile.passes.analysis.row_repeats.picks import none
from lightint_compile.passes.ir.fake_values import hint_at, hinted_shape, numel_hint, shape_of
from lightint_compile.passes.ir.flops import flops_of, program_flops
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.input_writes import written_buffers
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of

aten = torch.ops.aten

MANY_ROWS = 16
"""Fewer values than this are no token axis."""

WIDEST = 8
"""Values a token above which an input is no timestep: telling which rows differ reads all of them."""

WORTH = 1e-3
"""Below this part of the program's FLOPs an input's form is not worth a remark."""


@dataclass(frozen=True)
class PerToken:
    """An input with a row of few values a token.

    Attributes:
        path: the input.
        axis: that of its rows.
        readers: what is computed from it row by row.
        flops: what is computed row by row before rows meet others, without what repeats in the graph anyway.
        blocked: what ends that too early, and the FLOPs that are lost by it.
    """

    node: fx.Node
    path: str
    axis: int
    readers: Sequence[fx.Node]
    flops: int
    blocked: tuple[fx.Node, str, int] | None

    @property
    def is_worth(self) -> bool:
        """Whether it is worth to know which of its rows differ."""
        return self.blocked is None

    @property
    def tensor(self) -> torch.Tensor:
        """Its fake value."""
        value: torch.Tensor = self.node.meta["val"]
        return value

    @property
    def rows(self) -> int:
        """How many rows it has; a symbolic number at its hint."""
        return hinted_shape(self.tensor)[self.axis]


def per_token_inputs(program: Program, fewest: int = MANY_ROWS) -> Iterator[PerToken]:
    """Inputs whose rows, at least ``fewest``, pass a sinusoidal embedding, as timesteps do, and products worth it.

    Those that do not get to these products are among them, with what they are blocked by.
    """
    looks = program.memory(Looks)
    repeated = cache(lambda: analyse(program.graph, looks=looks))
    sines = program.graph.find_nodes(op="call_function", target=aten.sin.default)
    embedded = reached(sines, lambda node: node.all_input_nodes)
    worth, written = WORTH * program_flops(program)["total"], written_buffers(program.graph)
    for entry, node in zip(program.inputs, program.placeholders(), strict=True):
        tensor = tensor_of(node)
        if tensor is None or entry.kind is not InputKind.TENSOR or not _is_narrow(tensor, fewest):
            continue
        if node in written or node not in embedded:
            continue
        sizes = hinted_shape(tensor)
        axis = sizes.index(max(sizes))
        layout = tuple((same if place == axis else plain)(size) for place, size in enumerate(shape_of(tensor)))
        found = analyse(program.graph, {node: layout}, like=repeated(), looks=looks)
        readers = [user for user in node.users if user in found.sunk]
        if not readers or not any(each.target is aten.sin.default and found.sunk[each].works for each in found.sunk):
            continue
        flops = sum(_left(each, repeated()) for each in found.sunk)
        if flops > worth:
            yield PerToken(node, entry.path, axis, readers, flops, None)
            continue
        for blocking, lost in lost_products(program, found, none).items():
            if lost > worth:
                reason = found.blocked[blocking].reason
                yield PerToken(node, entry.path, axis, readers, flops, (blocking, reason, lost))


def _left(node: fx.Node, repeated: Analysis) -> int:
    """FLOPs of a node on the rows that are there once the repetition that the graph shows is moved behind it."""
    share = Fraction(1)
    for entry in repeated.layout(node) if flops_of(node) else ():
        share *= Fraction(hint_at(node, kept_size(entry)), max(hint_at(node, extent(entry)), 1))
    return int(flops_of(node) * share)


def _is_narrow(tensor: torch.Tensor, fewest: int) -> bool:
    many = max(hinted_shape(tensor), default=0)
    return many >= fewest and numel_hint(tensor) <= WIDEST * many and not tensor.is_complex()
