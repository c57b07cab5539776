"""Keys and values of earlier frames that a caller keeps between calls: which inputs hold them, and which frames.

A model with a cache attends to ``[past | current]`` along the tokens. The current part has a grid; the past comes from
an input, in whatever form the caller keeps it, and has as many frames as fit into it. They are joined, or the current
part is written into the input behind it and a window of that is read. By sizes alone text in the same
place cannot be told from frames, so what speaks against frames is looked for: a projection (they are no keys yet),
values of another length, another form than the part behind them, a name that says text, what the user stated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import extent
from lightint_compile.passes.analysis.grid_axes.axes import Atom, Axes, Axis, Origin, frames_of_input, join
from lightint_compile.passes.analysis.stated_inputs import by_path, entry_of
from lightint_compile.passes.analysis.token_axis import Grid
from lightint_compile.passes.analysis.token_spans import parts_of, spans_of
from lightint_compile.passes.ir.fake_values import Size, hint_of, plain, size_of
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.op_arguments import argument, sizes_of
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of
from lightint_compile.passes.ir.remarks import generic_path
from lightint_compile.passes.ir.sizes import quotient, same, total

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_PRODUCTS = frozenset((*Family.LINEAR.value, *Family.PRODUCT.value, *Family.ADDED_PRODUCT.value, *Family.EINSUM.value))
_TEXT_NAMES = ("text", "txt", "prompt", "caption", "encoder", "cross")

#: (frames, height, width) in tokens.
Shape = tuple[Size, Size, Size]


class Kept(NamedTuple):
    """Frames on an axis of an input.

    Attributes:
        start, length: the tokens of the axis that the graph reads in one place.
        shape: the frames at their end; what is in front of these are tokens without a grid.
        why: what says that they are frames, for a person.
    """

    start: Size
    length: Size
    shape: Shape
    why: str


@dataclass
class PastFrames:
    """What was found.

    Attributes:
        kept: by axis of an input, what is read of it.
        refused: by path, why an input that is stated to hold frames does not count as that. Of an entry that names
            others that do, nothing is said: ``kv_cache.*`` names the text in a cache as well.
    """

    kept: dict[Origin, list[Kept]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def axes(self, program: Program) -> dict[Origin, Axis]:
        """What the axes of the inputs mean."""
        lengths = {node.name: sizes_of(node) for node in program.placeholders() if tensor_of(node) is not None}
        return {at: _laid_out(at, kept, lengths[at.node][at.axis]) for at, kept in self.kept.items()}

    def why_of(self, name: str) -> str:
        """Why tokens of the input with this node's name are taken for frames; empty where they are not."""
        return next((kept[0].why for origin, kept in self.kept.items() if origin.node == name), "")

    def add(self, origin: Origin, kept: Kept) -> None:
        """Note what is read of an axis; the same place is noted once."""
        told = self.kept.setdefault(origin, [])
        if not any(same(kept.start, old.start) and same(kept.length, old.length) for old in told):
            told.append(kept)


def find_past(program: Program, axes: Mapping[fx.Node, Axes]) -> PastFrames:
    """Look at every attention whose keys are joined behind what may be the past."""
    search = _Search(program, axes)
    for node in program.calls(_ATTENTION):
        search.look_at(node)
    return search.told()


class _Stretch(NamedTuple):
    """A part of an axis of tokens that is a range of an input's axis; ``is_buffer``: of one that is written to."""

    origin: Origin
    start: Size
    length: Size
    is_buffer: bool = False


class _Place(NamedTuple):
    """A part of the keys that may be the past.

    Attributes:
        part: the keys; ``twin`` the values in its place, where they are of an input.
        key, value: the operands of the attention.
        behind: the frames that follow, where these come from an input as well.
    """

    part: _Stretch
    twin: _Stretch | None
    key: fx.Node
    value: fx.Node
    behind: _Stretch | None


class _Search:
    """What is known of a program while its attentions are looked at, one after another."""

    def __init__(self, program: Program, axes: Mapping[fx.Node, Axes]) -> None:
        self.found, self._program = PastFrames(), program
        self._axes, self._nodes = axes, {node.name: node for node in program.placeholders()}
        self._entries = {entry.name: entry for entry in program.inputs if entry.kind is not InputKind.SYMBOL}
        self._roles = by_path(program, program.roles)
        self._grids = by_path(program, program.grids)
        self._hints: dict[Size, int] = {}

    def look_at(self, node: fx.Node) -> None:
        """Go from the queries' own frames towards the front, until a part of the keys is no past."""
        query, key, value = (argument(node, name) for name in ("query", "key", "value"))
        if any((tensor := tensor_of(each)) is None or tensor.dim() < 3 for each in (query, key, value)):
            return
        grids = [span.grid for span in spans_of(self._axes[query][-2]) if span.grid]
        keys, values = (parts_of(self._axes[each][-2]) for each in (key, value))
        behind: _Stretch | None = None
        for place in reversed(range(_own(keys, grids[0]) if len(grids) == 1 else 0)):
            part = self._stretch(keys[place])
            if part is not None:
                twin = self._stretch_at(values, total(map(extent, keys[:place])), part.length)
                kept = self._judged(_Place(part, twin, key, value, behind), grids[0])
                if kept is None or twin is None:
                    return
                for each in (part, twin):
                    self.found.add(each.origin, self._widened(each, kept._replace(start=each.start)))
                behind = part
            elif not any(span.grid for span in spans_of(keys[place])):
                return

    def told(self) -> PastFrames:
        """What was found, once everything was looked at."""
        entries = entry_of(self._program)
        kept = {
            origin: sorted(parts, key=lambda each: self._seen(each.start)) for origin, parts in self.found.kept.items()
        }
        self.found.kept = {origin: parts for origin, parts in kept.items() if not self._overlap(parts)}
        served = {entries.get(self._entries[origin.node].path) for origin in self.found.kept}
        refused = {path: why for path, why in self.found.refused.items() if entries[path] not in served}
        return replace(self.found, refused=refused)

    def _overlap(self, parts: list[Kept]) -> bool:
        """Whether parts of an axis, in order, read a token twice, as far as sizes were seen."""
        pairs = itertools.pairwise(
            (self._seen(each.start), self._seen(size_of(each.start + each.length))) for each in parts
        )
        return any(before[1] > behind[0] for before, behind in pairs)

    def _stretch(self, axis: Axis) -> _Stretch | None:
        atoms = [atom for atom in axis if atom.size != 1]
        if len(atoms) != 1 or atoms[0].parts or atoms[0].role not in ("", "kept"):
            return None
        origin = atoms[0].origin
        if origin is None or origin.axis < 0 or origin.node not in self._entries:
            return None
        return _Stretch(origin, atoms[0].start, atoms[0].size, atoms[0].role == "kept")

    def _stretch_at(self, parts: list[Axis], place: Size, length: Size) -> _Stretch | None:
        """The range of an input's axis that is there in another axis, whose parts may be fewer."""
        for number, axis in enumerate(parts):
            inside = size_of(place - total(map(extent, parts[:number])))
            part = self._stretch(axis)
            rest = None if part is None else size_of(part.length - inside - length)
            if part is not None and isinstance(inside, int) and inside >= 0 and isinstance(rest, int) and rest >= 0:
                return part._replace(start=size_of(part.start + inside), length=length)
        return None

    def _widened(self, part: _Stretch, kept: Kept) -> Kept:
        """A buffer is frames all over where it is whole frames: rolling moves some of them to where others were."""
        frames, height, width = kept.shape
        all_of_it = sizes_of(self._nodes[part.origin.node])[part.origin.axis]
        plane = size_of(height * width)
        numbers = (part.start, all_of_it, plane, frames)
        if not part.is_buffer or not all(isinstance(number, int) for number in numbers):
            return kept
        if part.start % plane or all_of_it % plane:  # type: ignore[operator]
            return kept
        return kept._replace(start=0, length=all_of_it, shape=(all_of_it // plane, height, width))  # type: ignore[operator]

    def _judged(self, place: _Place, current: Grid) -> Kept | None:
        """The frames of a part of the keys; ``None`` where it is no past."""
        part, path = place.part, self._entries[place.part.origin.node].path
        stated = self._is_stated(path)
        against = next(self._against(place), "")
        if not stated:
            against = against or next(self._not_by_itself(place), "")
        shape = None if against else self._shape(part, current)
        if shape is not None:
            return Kept(part.start, part.length, shape, self._why(part, shape, stated=stated))
        if stated:
            plane = f"{current.height}x{current.width}"
            self.found.refused[path] = against or f"its {part.length} tokens are no whole frames of {plane} tokens"
        return None

    def _is_stated(self, path: str) -> bool:
        return self._roles.get(path) == "context" or path in self._grids

    def _against(self, place: _Place) -> Iterator[str]:
        """What speaks against frames whatever is stated of the keys."""
        role = self._roles.get(self._entries[place.part.origin.node].path, "context")
        if role != "context":
            yield f"it is stated to be {role}"
        if place.twin is None:
            yield "the values in its place are not from an input"
        elif self._is_projected(place.twin, place.value):
            path = self._entries[place.twin.origin.node].path
            if not self._is_stated(path):
                yield f"the values in its place are projected from {path}"

    def _not_by_itself(self, place: _Place) -> Iterator[str]:
        """What speaks against frames where nothing is stated."""
        entry = self._entries[place.part.origin.node]
        if entry.kind is InputKind.PARAMETER:
            yield "it is a parameter of the module"
        if any(word in entry.path.lower() for word in _TEXT_NAMES):
            yield "its name says text"
        if place.behind is not None and not self._alike(place.part.origin, place.behind.origin):
            yield "its form is another one than that of the frames behind it"
        if self._is_projected(place.part, place.key):
            yield "it is projected first"

    def _is_projected(self, part: _Stretch, operand: fx.Node) -> bool:
        """Whether every way from an input to an operand of the attention is by a product."""
        return self._nodes[part.origin.node] not in reached([operand], _unprojected)

    def _alike(self, left: Origin, right: Origin) -> bool:
        """Whether two inputs differ along their axis of tokens only."""
        shapes = [sizes_of(self._nodes[origin.node]) for origin in (left, right)]
        rest = [[*shape[: at.axis], *shape[at.axis + 1 :]] for shape, at in zip(shapes, (left, right), strict=True)]
        return left.axis == right.axis and len(rest[0]) == len(rest[1]) and all(map(same, *rest))

    def _shape(self, part: _Stretch, current: Grid) -> Shape | None:
        """As stated, or whole frames of the current ones' height and width."""
        stated = self._grids.get(self._entries[part.origin.node].path)
        if stated is None:
            frames = self._count(part.length, size_of(current.height * current.width))
            return None if frames is None else (frames, current.height, current.width)
        frames, height, width = stated
        if frames is None:
            whole = isinstance(part.length, int)
            frames = part.length // (height * width) if whole else self._count(part.length, height * width)
        if not frames or self._seen(frames) * height * width > self._seen(part.length):
            return None
        return frames, height, width

    def _count(self, length: Size, plane: Size) -> Size | None:
        """The number of whole frames: proved, or the ratio of sizes of which one had been a multiple of the other."""
        if plane == 1:
            return None
        proved = quotient(length, plane)
        if proved is not None:
            return proved or None
        if isinstance(length, int) and isinstance(plane, int):
            return None
        seen = self._seen(length), self._seen(plane)
        return plain(length / plane) if seen[0] and seen[1] and seen[0] % seen[1] == 0 else None  # type: ignore[operator]

    def _seen(self, size: Size) -> int:
        """A size at capture; 0 for one of which nothing is known."""
        if isinstance(size, int):
            return size
        if not self._hints:
            values = (node.meta.get("val") for node in self._program.graph.nodes)
            sizes = (each for value in values for each in getattr(value, "shape", (value,)))
            self._hints = {size_of(each): hint_of(each) for each in sizes if isinstance(each, torch.SymInt)}
        known = self._hints.get(size, plain(size.xreplace(self._hints)))
        return known if isinstance(known, int) else 0

    def _why(self, part: _Stretch, shape: Shape, *, stated: bool) -> str:
        """The same words for every layer: sizes of a call have other symbols in each."""
        frames, height, width = shape
        plane = size_of(height * width)
        path = generic_path(self._entries[part.origin.node].path)
        text = size_of(part.length - frames * plane)
        held = f"{frames} kept frames of {height}x{width}"
        if not isinstance(frames, int):
            seen = self._seen(part.length) // max(self._seen(plane), 1)
            held = f"n kept frames of {height}x{width}, {seen} when compiled"
        told = ", as is stated" if stated else ""
        return f"{path} holds {f'{text} tokens of text and ' if text else ''}{held}, in front of the current ones{told}"


def _own(keys: list[Axis], current: Grid) -> int:
    """The place of the queries' own frames among the parts of the keys; 0 where they are not there."""
    held = [[span.grid for span in spans_of(part)] for part in keys]
    places = (place for place, grids in enumerate(held) if any(grid and grid.same_tokens(current) for grid in grids))
    return next(places, 0)


def _unprojected(node: fx.Node) -> list[fx.Node]:
    return [] if node.target in _PRODUCTS else node.all_input_nodes


def _laid_out(origin: Origin, kept: list[Kept], length: Size) -> Axis:
    """An axis of an input as its parts in order: what was found, and unknown tokens around it."""
    place: Size = 0
    parts: list[Axis] = []
    for each in kept:
        text = size_of(each.length - each.shape[0] * each.shape[1] * each.shape[2])
        parts.append(_unknown(origin, place, size_of(each.start - place)))
        parts += [_unknown(origin, each.start, text), frames_of_input(origin, each.shape)]
        place = size_of(each.start + each.length)
    parts.append(_unknown(origin, place, size_of(length - place)))
    return join(parts)


def _unknown(origin: Origin, start: Size, length: Size) -> Axis:
    note = f"axis {origin.axis} of the input {origin.node}, whose grid is not known"
    return (Atom(length, origin=origin, start=start, note=note),)
