"""Movements of operators that move values or choose some: views, repetitions, slices, joins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import cast

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import (
    Across,
    Alike,
    Along,
    Joined,
    Movement,
    New,
    Padded,
    Picked,
    Range,
    Read,
    Ref,
    Reordered,
    Times,
    Way,
    moves,
)
from lightint_compile.passes.analysis.axes.places import bound, slice_start
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.frame_numbers import run_of
from lightint_compile.passes.ir.node_data import argument_nodes
from lightint_compile.passes.ir.op_arguments import (
    argument,
    dimension,
    dimensions,
    permutation,
    pick_of,
    rank_of,
    results_in,
    size_argument,
    sizes_of,
    takes,
)
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import replaced

aten = torch.ops.aten

SELECTS = "it selects along {}"


def operand(node: fx.Node) -> fx.Node:
    """The tensor that a call works on."""
    return cast(fx.Node, node.args[0])


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a call is given, in order, one that is given twice twice."""
    return [source for source in argument_nodes(node) if tensor_of(source) is not None]


def refs_of(way: Way) -> tuple[Ref, ...]:
    """The axes that one goes along."""
    return way.refs if isinstance(way, Along) else ()


def kept(node: fx.Node) -> tuple[Way, ...]:
    """Every axis of a tensor, as it is."""
    return tuple([Along((Ref(node, axis),)) for axis in range(rank_of(node))])


def aligned(nodes: Sequence[fx.Node], rank: int) -> tuple[Way, ...]:
    """The axes of tensors broadcast together, counted from the back."""
    if len(nodes) == 1 and rank_of(nodes[0]) == rank:
        return kept(nodes[0])
    axes = _aligned(tuple(map(sizes_of, nodes)), rank)
    return tuple([Along(tuple([Ref(nodes[number], axis) for number, axis in held])) for held in axes])


@lru_cache(maxsize=4096)
def _aligned(shapes: tuple[tuple[Size, ...], ...], rank: int) -> list[list[tuple[int, int]]]:
    """For each axis of a result the operands, by number, and their axes that have a say."""
    found = []
    for back in range(rank, 0, -1):
        held = [(number, len(shape) - back) for number, shape in enumerate(shapes) if len(shape) >= back]
        found.append([(number, axis) for number, axis in held if shapes[number][axis] != 1] or held)
    return found


def wide(refs: Sequence[Ref]) -> tuple[Ref, ...]:
    """The axes that have a say where several are broadcast together: those of more than one, if there are any."""
    return tuple([ref for ref in refs if size_of(ref.node.meta["val"].shape[ref.axis]) != 1] or refs)


def contracted(operands: Iterable[tuple[str, fx.Node]], result: str) -> tuple[tuple[Way, ...], tuple[Read, ...]]:
    """A sum of products: a letter means one axis in all operands; one that the result lacks is summed."""
    letters: dict[str, dict[Ref, None]] = {}
    for labels, source in operands:
        for axis, letter in enumerate(labels):
            letters.setdefault(letter, {})[Ref(source, axis)] = None
    summed = tuple(Read(tuple(refs)) for letter, refs in letters.items() if letter not in result)
    return tuple(Along(wide(tuple(letters[letter]))) for letter in result), summed


def moved(*outputs: tuple[Way, ...], reads: tuple[Read, ...] = ()) -> Movement:
    """The movement of a call without arithmetic."""
    return Movement(outputs, reads, computes=False, stretches=False)


@moves(Family.VIEW)
def view(node: fx.Node) -> Movement:
    """Axes are cut and joined."""
    return Movement(regroups=operand(node), computes=False)


@moves(Family.PERMUTATION)
def permute(node: fx.Node) -> Movement:
    """Axes change places."""
    return moved(tuple(Along((Ref(operand(node), axis),)) for axis in permutation(node)))


@moves(Family.UNSQUEEZE)
def unsqueeze(node: fx.Node) -> Movement:
    """A new axis of one."""
    ways = list(kept(operand(node)))
    ways.insert(dimension(node, len(ways) + 1), Along())
    return moved(tuple(ways))


@moves(Family.SQUEEZE)
def squeeze(node: fx.Node) -> Movement | None:
    """Named axes of one go."""
    source = operand(node)
    gone = squeezed(node)
    ways = tuple(way for axis, way in enumerate(kept(source)) if axis not in gone)
    return moved(ways) if len(ways) == rank_of(node) else None


def squeezed(node: fx.Node) -> list[int]:
    """The axes of one that a squeeze drops."""
    return [axis for axis in squeezable(node) if sizes_of(operand(node))[axis] == 1]


def squeezable(node: fx.Node) -> list[int]:
    """The axes that a squeeze drops where they are of one."""
    rank = rank_of(operand(node))
    return sorted(dimensions(node, rank)) if takes(node, "dim") else list(range(rank))


@moves(Family.EXPAND)
def expand(node: fx.Node) -> Movement:
    """An axis of one that grows is the same all along."""
    source, wanted = operand(node), sizes_of(node)
    before = (*[1] * (len(wanted) - rank_of(source)), *sizes_of(source))
    pairs = zip(aligned([source], len(wanted)), before, wanted, strict=True)
    return moved(tuple(way if size == old else Alike() for way, old, size in pairs))


@moves(Family.REPEAT)
def repeat(node: fx.Node) -> Movement:
    """Copies of whole axes."""
    source = operand(node)
    counts = list(map(size_argument, argument(node, "repeats")))
    new = len(counts) - rank_of(source)
    refs = [None if axis < 0 else Ref(source, axis) for axis in range(-new, len(counts) - new)]
    return moved(tuple(Times(ref, count, outside=True) for ref, count in zip(refs, counts, strict=True)))


@moves(Family.INTERLEAVE)
def interleave(node: fx.Node) -> Movement | None:
    """Copies of every value along one axis."""
    source, dim = operand(node), argument(node, "dim")
    rank = rank_of(source)
    if dim is None and rank != 1:
        return None  # it flattens its operand
    dim = int(dim or 0) % rank
    times = Times(Ref(source, dim), size_argument(argument(node, "repeats")), outside=False)
    return moved(replaced(kept(source), dim, times))


@moves(Family.FILL)
def fill(node: fx.Node) -> Movement:
    """One value everywhere."""
    return moved(tuple(Alike() for _ in sizes_of(node)))


@moves(Family.SELECT, Family.UNBIND)
def select(node: fx.Node) -> Movement | None:
    """One value along an axis, or every one, without it."""
    source = operand(node)
    dim, ways = dimension(node, rank_of(source)), kept(source)
    places: Sequence[Size] = range(len(results_in(node)))
    if takes(node, "index"):
        place = bound(argument(node, "index"), sizes_of(source)[dim])
        if place is None:
            return None
        places = [place]
    found = moved(*[(*ways[:dim], *ways[dim + 1 :])] * len(places), reads=(Read((Ref(source, dim),), SELECTS),))
    return found._replace(places=tuple(places))


@moves(Family.SLICE, aten.narrow.default)
def slice_(node: fx.Node) -> Movement | None:
    """A range of one axis."""
    source = operand(node)
    dim = dimension(node, rank_of(source))
    length, step = sizes_of(source)[dim], 1
    if node.target is aten.slice.Tensor:
        start, step = slice_start(node, length, sizes_of(node)[dim]), size_argument(argument(node, "step"))
    else:
        start = bound(argument(node, "start"), length)
    if start is None:
        return None
    return moved(replaced(kept(source), dim, Range(Ref(source, dim), start, step)))


@moves(Family.SPLIT)
def split(node: fx.Node) -> Movement:
    """Consecutive ranges of one axis."""
    source = operand(node)
    dim = dimension(node, rank_of(source))
    outputs, start = [], cast(Size, 0)
    for value in node.meta["val"]:
        outputs.append(replaced(kept(source), dim, Range(Ref(source, dim), start)))
        start = size_of(start + size_of(value.shape[dim]))
    return moved(*outputs)


@moves(Family.CAT)
def cat(node: fx.Node) -> Movement | None:
    """Axes one behind the other."""
    rank = rank_of(node)
    parts = [part for part in cast(list[fx.Node], node.args[0]) if sizes_of(part) != (0,) or rank == 1]
    dim = dimension(node, rank)
    if any(rank_of(part) != rank for part in parts):
        return None
    return moved(replaced(aligned(parts, rank), dim, Joined(tuple(Ref(part, dim) for part in parts))))


@moves(Family.STACK)
def stack(node: fx.Node) -> Movement:
    """A new axis over equal tensors."""
    parts = cast(list[fx.Node], node.args[0])
    ways: list[Way] = list(aligned(parts, rank_of(node) - 1))
    ways.insert(dimension(node, len(ways) + 1), New())
    return moved(tuple(ways))


READS_NUMBERS = frozenset(
    (*Family.INDEX_SELECT.value, aten.index.Tensor, aten.index_copy.default, aten.index_copy_.default)
)
"""Operators whose movement depends on how the numbers that they are given are made, and not on their sizes alone."""


@moves(Family.INDEX_SELECT, aten.index.Tensor)
def index_select(node: fx.Node) -> Movement | None:
    """Values along one axis by their numbers; masks and several indices are not followed."""
    pick = pick_of(node)
    if pick is None:
        return None
    ref = Ref(pick.source, pick.axis)
    way = Picked(ref, Ref(pick.index, 0), known_run(pick.index))
    return moved(replaced(kept(pick.source), pick.axis, way), reads=(Read((ref,), SELECTS),))


def known_run(index: fx.Node) -> Size | None:
    """The first of numbers that are known to be consecutive, by how they are made or as a constant of the graph."""
    found = run_of(index)
    if isinstance(found, int) and found < 0:
        return None
    if found is not None or index.op != "get_attr" or index.graph.owning_module is None:
        return found
    value = attrgetter(str(index.target))(index.graph.owning_module)
    if type(value) is not torch.Tensor or value.dim() != 1 or not 0 < len(value) <= _LONGEST_INDEX:
        return None
    numbers = value.tolist()
    first = int(numbers[0])
    return first if first >= 0 and numbers == list(range(first, first + len(numbers))) else None


#: A constant index longer than this is not read.
_LONGEST_INDEX = 2**20


@moves(Family.EMBEDDING)
def embedding(node: fx.Node) -> Movement:
    """A row of the table for every index."""
    table, index = cast(list[fx.Node], node.args[:2])
    rows = Read((Ref(table, 0), Ref(table, 1)), "the table repeats, not the index; it selects along {}")
    return Movement(((*kept(index), New()),), (rows,))


@moves(aten.roll.default, aten.flip.default)
def reorder(node: fx.Node) -> Movement | None:
    """The order along some axes changes."""
    source = operand(node)
    rank = rank_of(source)
    dims = {dim % max(rank, 1) for dim in argument(node, "dims")}
    if not dims:
        return None  # a roll of the flattened values
    refs = [Ref(source, axis) for axis in range(rank)]
    reads = tuple(Read((ref,), "no rule says where it puts the values along {}") for ref in refs if ref.axis in dims)
    return moved(tuple(Reordered(ref) if ref.axis in dims else Along((ref,)) for ref in refs), reads=reads)


@moves(aten.constant_pad_nd.default, aten.pad.default)
def pad(node: fx.Node) -> Movement:
    """Values of another kind around the last axes."""
    source, given = operand(node), list(map(size_argument, argument(node, "pad")))
    ways = list(kept(source))
    for number, (before, after) in enumerate(zip(given[::2], given[1::2], strict=True)):
        axis = len(ways) - 1 - number
        if (before, after) != (0, 0):
            ways[axis] = Padded(Ref(source, axis), before, after)
    reads = tuple(Read((way.ref,), "it pads {}") for way in ways if isinstance(way, Padded))
    return moved(tuple(ways), reads=reads)


@moves(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(node: fx.Node) -> Movement:
    """Output ``k`` changes along input ``k``; ``xy`` swaps the first two axes."""
    refs = [Ref(source, 0) for source in cast(list[fx.Node], node.args[0])]
    swaps = node.target is aten.meshgrid.indexing and argument(node, "indexing") == "xy"
    order = [refs[1], refs[0], *refs[2:]] if swaps and len(refs) > 1 else refs
    return moved(*(tuple(Along((ref,)) if ref == own else Alike(ref) for ref in order) for own in refs))


@moves(aten.view_as_complex.default)
def as_complex(node: fx.Node) -> Movement:
    """Pairs become complex numbers: the last axis goes."""
    ways = kept(operand(node))
    return moved(ways[:-1], reads=(Read((Ref(operand(node), len(ways) - 1),), "it pairs values along {}"),))


@moves(aten.view_as_real.default)
def as_real(node: fx.Node) -> Movement:
    """Complex numbers become pairs: a last axis of two comes."""
    return moved((*kept(operand(node)), New()))


@moves(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange(node: fx.Node) -> Movement | None:
    """Numbers in order."""
    return moved((New(),)) if tensor_of(node) is not None else None


@moves(aten.tril.default, aten.triu.default)
def triangle(node: fx.Node) -> Movement:
    """What is kept depends on row and column."""
    return across(operand(node), 2, "what is left depends on the place along {}")


def across(source: fx.Node, trailing: int, how: str, others: Sequence[fx.Node] = ()) -> Movement:
    """A call whose values depend on all of the last axes of ``source``, and on all of ``others``."""
    rank = rank_of(source)
    refs = [Ref(source, axis) for axis in range(rank)]
    ways = [Along((ref,)) if ref.axis < rank - trailing else Across(ref) for ref in refs]
    return Movement((tuple(ways),), (*(Read((ref,), how) for ref in refs[rank - trailing :]), *whole(others)))


def whole(nodes: Sequence[fx.Node]) -> tuple[Read, ...]:
    """Operands read as a whole: weights, tables."""
    return tuple(Read((Ref(node, axis),)) for node in nodes for axis in range(rank_of(node)))
