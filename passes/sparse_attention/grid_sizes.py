"""Sizes of grids as arguments of new nodes, and arithmetic on sizes that may be numbers or nodes."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import AttentionSite
from lightint_compile.passes.analysis.grid_axes.axes import Origin
from lightint_compile.passes.analysis.token_axis import Grid
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.fake_values import Size, hint_of, size_of
from lightint_compile.passes.ir.joins import Piece
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.size_nodes import SizeArgument

aten = torch.ops.aten
END = 2**63 - 1


class GridSizes:
    """Extents of grids: what they were at capture, and as arguments of new nodes.

    Attributes:
        past: which inputs hold earlier frames.
    """

    def __init__(self, program: Program) -> None:
        self._grids = program.fact(TokenGrid)
        self._paths = {entry.name: entry.path for entry in program.inputs}
        self.past = self._grids.past
        self._told = program.tokens.keys()  # whoever made these tokens says that they are whole frames, in every call
        self._made: dict[tuple[Origin | None, Size], fx.Node] = {}
        self._frames: dict[tuple[Grid, ...], SizeArgument] = {}
        self._numbers = _numbers(program.graph)

    def hints(self, grids: Sequence[Grid]) -> tuple[int, int, int] | None:
        """(frames, height, width) at capture of grids of one plane, frame behind frame.

        ``None`` when no node says one of the sizes, or tokens may be no whole frames in a call.
        """
        height, width = (self._hint(*each) for each in _plane(grids[0]))
        if height is None or width is None or not all(_is_whole(each) or each.seed in self._told for each in grids):
            return None
        frames = [self.frames_seen(grid, height * width) for grid in grids]
        return None if None in frames else (sum(filter(None, frames)), height, width)

    def is_counted(self, grid: Grid) -> bool:
        """Whether the number of frames is only known by how many fit into the tokens of a call."""
        return not isinstance(grid.frames, int) and self._grids.holder(grid.origins[0], grid.frames) is None

    def kept_inputs(self, site: AttentionSite) -> list[str]:
        """The inputs whose frames a site reads as keys and values, by path."""
        axes = filter(None, (self._grids.of(node, -2) for node in (site.key, site.value)))
        names = dict.fromkeys(grid.seed for axis in axes for grid in axis.grids if self.past.why_of(grid.seed))
        return [self._paths[name] for name in names]

    def shown(self, grids: Sequence[Grid]) -> str:
        """Grids of one plane as one; counted frames are ``n`` and ``m``, whatever the symbols of their tokens."""
        names = map(sympy.Symbol, itertools.chain("nm", itertools.repeat("k")))
        frames = sum(next(names) if self.is_counted(grid) else grid.frames for grid in grids)
        return str(replace(grids[-1], frames=size_of(frames)))

    def frames_seen(self, grid: Grid, plane: int) -> int | None:
        """Frames at capture, of ``plane`` tokens each; ``None`` when nothing says how many."""
        if not self.is_counted(grid):
            return self._hint(grid.frames, grid.origins[0])
        whole = self._grids.whole(grid)
        if whole is not None:
            return hint_of(whole[0].meta["val"].shape[whole[1]]) // plane
        number = self._numbers.get(grid.tokens)
        return None if number is None else hint_of(number.meta["val"]) // plane

    def frames(self, grids: Sequence[Grid], plane: Sequence[SizeArgument], rewriter: Rewriter) -> SizeArgument:
        """Frames of all grids, for a new node; none where the tokens of a counted one are no whole frames in a call."""
        key = tuple(grids)
        if key not in self._frames:  # sites are rewritten in order: a later one may read an earlier one's node
            known = [
                self._argument(each.frames, each.origins[0], rewriter) for each in grids if not self.is_counted(each)
            ]
            tokens = [self._tokens(each, rewriter) for each in grids if self.is_counted(each)]
            one = product_of(plane, rewriter) if tokens else 1
            counts = [rewriter.call(operator.floordiv, each, one) for each in tokens]
            found = sum_of([*known, *counts], rewriter) if grids else 0
            if tokens:
                rest = sum_of([rewriter.call(operator.mod, each, one) for each in tokens], rewriter)
                torn = rewriter.call(torch.sym_min, rest, 1)
                found = product_of([found, difference_of(1, torn, rewriter)], rewriter)
            self._frames[key] = found
        return self._frames[key]

    def _tokens(self, grid: Grid, rewriter: Rewriter) -> SizeArgument:
        whole = self._grids.whole(grid)
        return self._numbers[grid.tokens] if whole is None else length_of(*whole, rewriter)

    def _hint(self, size: Size, origin: Origin | None) -> int | None:
        if isinstance(size, int):
            return size
        holder = self._grids.holder(origin, size)
        return None if holder is None else hint_of(holder[0].meta["val"].shape[holder[1]])

    def arguments(self, grids: Sequence[Grid], rewriter: Rewriter) -> list[SizeArgument]:
        """(frames, height, width) of grids of one plane for a new node; only for grids that have :meth:`hints`."""
        plane = self.plane(grids, rewriter)
        return [self.frames(grids, plane, rewriter), *plane]

    def plane(self, grids: Sequence[Grid], rewriter: Rewriter) -> list[SizeArgument]:
        """(height, width) of grids of one plane for a new node."""
        return [self._argument(*each, rewriter) for each in _plane(grids[0])]

    def _argument(self, size: Size, origin: Origin | None, rewriter: Rewriter) -> SizeArgument:
        if isinstance(size, int):
            return size
        if (origin, size) not in self._made:  # sites are rewritten in order: a later one may read an earlier one's node
            holder = self._grids.holder(origin, size)
            assert holder is not None
            self._made[origin, size] = rewriter.call(aten.sym_size.int, *holder)
        return self._made[origin, size]


def _is_whole(grid: Grid) -> bool:
    """Whether the number of frames is a number whatever the sizes are: no quotient of tokens."""
    return isinstance(grid.frames, int) or bool(grid.frames.is_integer)


def _plane(grid: Grid) -> Iterator[tuple[Size, Origin | None]]:
    """Height and width, and where each came from."""
    return zip(grid.shape[1:], grid.origins[1:], strict=True)


def _numbers(graph: fx.Graph) -> dict[Size, fx.Node]:
    """The first node for each size that is computed, or given, as a number: how far a buffer is filled."""
    found: dict[Size, fx.Node] = {}
    for node in graph.nodes:
        if isinstance(value := node.meta.get("val"), torch.SymInt):
            found.setdefault(size_of(value), node)
    return found


def laid_out(piece: Piece, rewriter: Rewriter) -> fx.Node:
    """The operand as the attention sees it, its permutations applied."""
    node = piece.node
    for order in piece.layout:
        node = rewriter.call(aten.permute.default, node, list(order))
    return node


def length_of(node: fx.Node, axis: int, rewriter: Rewriter) -> SizeArgument:
    """Extent of an axis of a value."""
    size = size_of(node.meta["val"].shape[axis])
    return size if isinstance(size, int) else rewriter.call(aten.sym_size.int, node, axis)


def range_of(node: fx.Node, start: SizeArgument, stop: SizeArgument, rewriter: Rewriter) -> fx.Node:
    """Tokens ``start`` to ``stop`` of ``[batch, heads, tokens, dim]``."""
    return rewriter.call(aten.slice.Tensor, node, 2, start, stop)


def product_of(sizes: Sequence[SizeArgument], rewriter: Rewriter) -> SizeArgument:
    """Product of sizes."""
    return _fold(operator.mul, sizes, rewriter)


def sum_of(sizes: Sequence[SizeArgument], rewriter: Rewriter) -> SizeArgument:
    """Sum of sizes."""
    return _fold(operator.add, sizes, rewriter)


def difference_of(left: SizeArgument, right: SizeArgument, rewriter: Rewriter) -> SizeArgument:
    """Difference of two sizes."""
    return _fold(operator.sub, (left, right), rewriter)


def _fold(combine: object, sizes: Sequence[SizeArgument], rewriter: Rewriter) -> SizeArgument:
    result, *rest = sizes
    for size in rest:
        plain = isinstance(result, int) and isinstance(size, int)
        result = combine(result, size) if plain else rewriter.call(combine, result, size)  # type: ignore[operator,arg-type]
    return result
