"""Which cameras belong to the coming chunk: those of the frames that the denoising steps read, found by data flow.

The cameras of an input are followed through the graph as the elements of a batch are (``batch_elements``): what is
computed frame by frame keeps its frames, a slice or a list of numbers narrows them. Where a value is combined with the
latents that are denoised, the steps read its frames; where it is combined with other latents, it is context. Whole
numbers that frames together decided, such as which of them saw most, are a choice and no cameras.

A path may have a camera for every frame of the video, several a latent frame. The steps then read one in so many, up to
the end of the path.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import AttentionSites
from lightint_compile.passes.analysis.axes.factors import Layout, batch, place_of, plain
from lightint_compile.passes.analysis.axes.movement import Picked, Range, Ref
from lightint_compile.passes.analysis.axes.plans import Plan
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.analysis.batch_elements.rules import rowwise
from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.analysis.pinned_frames import known_frames
from lightint_compile.passes.analysis.roles import Role, Roles, frame_axis
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.fake_values import Size, hint_of
from lightint_compile.passes.ir.fake_values import plain as plain_size
from lightint_compile.passes.ir.frame_numbers import Coming, Window
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.program import InputKind, Program, fake_mode_of, tensor_of
from lightint_compile.passes.ir.remarks import Miss
from lightint_compile.passes.ir.size_conditions import is_never_negative
from lightint_compile.passes.ir.sizes import replaced, same

aten = torch.ops.aten


class _Seen(NamedTuple):
    """The cameras that a value depends on: of which frames, and on which axis; no layout once frames have met."""

    windows: frozenset[Window]
    layout: Layout | None


def coming_frames(program: Program, cameras: fx.Node, index: fx.Node | None = None) -> Coming | Miss | None:
    """The frames of ``cameras`` that the denoising steps read; ``None`` where they read none, or there are none.

    Args:
        cameras: an input [B, F, 4, 4] or [F, 4, 4].
        index: the numbers of the context frames, which the cameras may have decided.
    """
    starts = denoised(program)
    if not starts:
        return None
    read = windows_read(program, cameras, starts, index)
    found = _chosen(cameras, read, _chunk_size(program, starts[0])) if read else None
    if not isinstance(found, Coming) or found.first == 0:
        return found
    return found.past(frames_put_back(program))


def windows_read(
    program: Program, cameras: fx.Node, starts: Sequence[fx.Node], index: fx.Node | None = None
) -> frozenset[Window]:
    """All frames that enter what is computed from ``starts``, the latents that are denoised."""
    return _Reading(program, cameras, starts, index).read()


def frames_put_back(program: Program) -> int:
    """Known frames that are put back in front of the latents after each step: those that a chunk goes on from."""
    steps = program.fact(DenoisingLoop).steps
    if len(steps) < 2:
        return 0
    latents = steps[1].carried_in
    return known_frames(latents, frame_axis(program.fact(AttentionSites), latents))


def windows_choosing(program: Program, cameras: fx.Node, index: fx.Node) -> frozenset[Window]:
    """The frames whose cameras decide the whole numbers that ``index`` holds."""
    reading = _Reading(program, cameras, denoised(program), None)
    reading.read()
    return reading.choosing(index)


def denoised(program: Program) -> list[fx.Node]:
    """The latents before the first step; without a loop, the inputs that are latents."""
    steps = program.fact(DenoisingLoop).steps
    if steps:
        return [steps[0].carried_in]
    inputs = {program.input_of(node).path: node for node in program.placeholders()}
    return [inputs[path] for path in program.fact(Roles).paths(Role.LATENT)]


def _chunk_size(program: Program, latents: fx.Node) -> int | None:
    """Frames of the latents that are denoised; ``None`` where they are no volume."""
    tensor = tensor_of(latents)
    assert tensor is not None
    return hint_of(tensor.shape[frame_axis(program.fact(AttentionSites), latents)]) if tensor.dim() == 5 else None


def _chosen(cameras: fx.Node, read: frozenset[Window], chunk: int | None) -> Coming | Miss:
    fitting = [window for window in (*read, *_merged(read)) if isinstance(window.count, int)]
    fitting = list(dict.fromkeys(w for w in fitting if w.count == chunk or (chunk is None and w.count > 1)))
    told = "; ".join(sorted(map(str, read)))
    hint = "give the steps the cameras of the coming chunk alone, cameras[:, start : start + frames]"
    if not fitting:
        frames = "a fixed number of" if chunk is None else chunk
        return Miss(cameras, f"the chunk has {frames} frames, and its steps read {told} of the cameras", hint)
    if len(fitting) > 1:
        return Miss(cameras, f"several parts of the cameras may be the coming chunk's: {told}", hint)
    (found,) = fitting
    wide = [w for w in read if w.index is None and w.count != 1 and not w.is_within(found)]
    if any(w != found for w in wide):
        return Miss(cameras, f"the steps read {told}, more than the cameras of one chunk", hint)
    assert isinstance(found.count, int)
    return Coming(found.count, found.first, found.index, found.step)


def _merged(read: Iterable[Window]) -> list[Window]:
    """Merges consecutive windows, as where every frame is read separately."""
    runs: list[Window] = []
    parts = [window for window in read if window.first is not None and isinstance(window.count, int)]
    parts = [window for window in parts if window.step == 1]
    for window in sorted(parts, key=lambda w: (str(_symbols(w.first)), int(_constant(w.first)))):
        last = runs[-1] if runs else None
        if last is not None and same(plain_size(last.first + sympy.Integer(last.count)), window.first):
            runs[-1] = Window(last.first, plain_size(sympy.Integer(last.count) + window.count))
        else:
            runs.append(window)
    return runs


def _constant(size: Size | None) -> sympy.Expr:
    return sympy.sympify(size).as_coeff_Add()[0]


def _symbols(size: Size | None) -> sympy.Expr:
    return sympy.sympify(size).as_coeff_Add()[1]


class _Reading:
    """One walk over a graph, from the cameras on."""

    def __init__(self, program: Program, cameras: fx.Node, starts: Sequence[fx.Node], index: fx.Node | None) -> None:
        self._program, self._cameras, self._index = program, cameras, index
        self._env = fake_mode_of(program.graph.nodes).shape_env
        self._steps = {*starts, *reached(starts, _readers)}
        others = [node for node in program.placeholders() if _is_video(program, node) and node not in self._steps]
        self._elsewhere = {*others, *reached(others, _readers)} - self._steps
        self._seen: dict[fx.Node, _Seen | tuple[_Seen, ...]] = {}
        self._choosing: dict[fx.Node, frozenset[Window]] = {}

    def choosing(self, node: fx.Node) -> frozenset[Window]:
        """The windows that decided a node's numbers."""
        return self._choosing.get(node, frozenset())

    def read(self) -> frozenset[Window]:
        """The windows that enter the steps."""
        found: set[Window] = set()
        for node in self._program.graph.nodes:
            if node is self._cameras:
                self._seen[node] = self._whole(node)
            elif node in self._steps:
                found |= self._windows(source for source in node.all_input_nodes if source not in self._elsewhere)
            elif node is not self._index and node not in self._elsewhere and node.op == "call_function":
                self._visit(node)
        return frozenset(found)

    def _visit(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self._seen]
        chosen = frozenset[Window]().union(*map(self.choosing, node.all_input_nodes))
        seen = self._followed(node, sources) if sources else None
        if isinstance(seen, _Seen) and seen.layout is None and _is_whole_number(node):
            chosen, seen = chosen | seen.windows, None
        if seen is not None:
            self._seen[node] = seen
        elif chosen:
            self._choosing[node] = chosen

    def _whole(self, node: fx.Node) -> _Seen:
        sizes = sizes_of(node)
        frames = len(sizes) - 3
        layout = tuple(batch(size) if axis == frames else plain(size) for axis, size in enumerate(sizes))
        return _Seen(frozenset({Window(0, sizes[frames])}), layout)

    def _windows(self, sources: Iterable[fx.Node]) -> frozenset[Window]:
        known = [self._seen[source] for source in sources if source in self._seen]
        every = [each for entry in known for each in ((entry,) if isinstance(entry, _Seen) else entry)]
        return frozenset().union(*(each.windows for each in every))

    def _followed(self, node: fx.Node, sources: list[fx.Node]) -> _Seen | tuple[_Seen, ...]:
        source = self._seen[sources[0]]
        if node.target is operator.getitem and not isinstance(source, _Seen):
            return source[int(node.args[1])]  # type: ignore[arg-type]
        if isinstance(source, _Seen) and len(sources) == 1:
            narrowed = self._narrowed(node, sources[0], source)
            if narrowed is not None:
                return narrowed
        windows = self._windows(sources)
        known = [self._seen.get(source) for source in node.all_input_nodes]
        met = any(isinstance(each, _Seen) and each.layout is None for each in known)
        found = None if met else rowwise(node, self._layout)
        if not isinstance(found, Plan):
            return _Seen(windows, None)
        results = tuple(_Seen(windows, layout) for layout in found.results)
        return results if isinstance(node.meta["val"], (tuple, list)) else results[0]

    def _layout(self, node: fx.Node) -> Layout:
        seen = self._seen.get(node)
        if isinstance(seen, _Seen) and seen.layout is not None:
            return seen.layout
        return tuple(map(plain, sizes_of(node))) if tensor_of(node) is not None else ()

    def _narrowed(self, node: fx.Node, source: fx.Node, seen: _Seen) -> _Seen | tuple[_Seen, ...] | None:
        """What a choice of frames leaves; ``None`` for every other operation."""
        place = place_of(seen.layout) if seen.layout is not None else None
        if place is None or (place.outer, place.inner) != (1, 1):
            return None
        axis, layout = place.axis, seen.layout
        assert layout is not None
        along = [window for window in seen.windows if same(window.count, sizes_of(source)[axis])]
        if len(along) != 1:
            return None
        part = self._part_of(node, source, axis, along[0], layout)
        return None if part is None else _beside(part, seen.windows - {along[0]})

    def _part_of(
        self, node: fx.Node, source: fx.Node, axis: int, window: Window, layout: Layout
    ) -> _Seen | tuple[_Seen, ...] | None:
        """The part of a window along ``axis`` that a selection leaves."""
        movement, ref = movement_of(node), Ref(source, axis)
        if movement is None or movement.regroups is not None:
            return None
        if movement.places and movement.reads[0].refs == (ref,):
            fitting = all(self._is_in_front(place, window.count) for place in movement.places)
            parts = [self._part(window, place, None, layout, axis) for place in movement.places if fitting]
        else:
            ways = [(way, size) for output in movement.sized(node) for way, size in output]
            parts = [
                self._ranged(way, size, window, layout)
                for way, size in ways
                if isinstance(way, Range | Picked) and way.ref == ref
            ]
        found = tuple(part for part in parts if part is not None)
        if not parts or len(found) != len(parts):
            return None
        return found if isinstance(node.meta["val"], (tuple, list)) else found[0]

    def _ranged(self, way: Range | Picked, count: Size, window: Window, layout: Layout) -> _Seen | None:
        axis = way.ref.axis
        if isinstance(way, Range):
            follows = self._is_in_front(way.start, window.count) and _is_regular(way, count, window.count)
            return self._part(window, way.start, count, layout, axis, way.step) if follows else None
        if way.first is not None:
            return self._part(window, way.first, count, layout, axis)
        return self._of(Window(None, count, way.numbers.node), layout, axis) if window.first == 0 else None

    def _part(
        self, window: Window, first: Size, count: Size | None, layout: Layout, axis: int, step: Size = 1
    ) -> _Seen | None:
        """``count`` frames of a window, its frame axis kept, or one (``None``) without it."""
        if window.first is None or not isinstance(step, int):
            return None
        begins = window.behind(first)
        if count is None:
            return _Seen(frozenset({Window(begins, 1)}), (*layout[:axis], *layout[axis + 1 :]))
        return self._of(Window(begins, count, None, window.step * step if count != 1 else 1), layout, axis)

    def _of(self, window: Window, layout: Layout, axis: int) -> _Seen:
        return _Seen(frozenset({window}), replaced(layout, axis, batch(window.count)))

    def _is_in_front(self, place: Size, extent: Size) -> bool:
        """Whether a place is counted from the front: its sign is known, or it is a number of frames before the end."""
        if isinstance(place, int):
            return place >= 0
        return bool((place - extent).is_Integer) or is_never_negative(place, self._env)


def _is_regular(way: Range, count: Size, extent: Size) -> bool:
    """Whether a range takes frames that follow one another, or one in so many up to the end of them."""
    if way.step == 1:
        return True
    left = sympy.sympify(extent) - 1 - (sympy.sympify(way.start) + (sympy.sympify(count) - 1) * way.step)
    return bool(left.is_Integer and 0 <= left < way.step)


def _is_whole_number(node: fx.Node) -> bool:
    tensor = tensor_of(node)
    return tensor is not None and not tensor.is_floating_point() and not tensor.is_complex()


def _beside(part: _Seen | tuple[_Seen, ...], others: frozenset[Window]) -> _Seen | tuple[_Seen, ...]:
    """A choice of frames, or several, with the frames that each value was made from besides."""
    if isinstance(part, _Seen):
        return part._replace(windows=part.windows | others)
    return tuple(each._replace(windows=each.windows | others) for each in part)


def _is_video(program: Program, node: fx.Node) -> bool:
    """Whether an input holds latents [B, C, F, h, w], or is said to be context; keys and values are no video."""
    entry, tensor = program.input_of(node), tensor_of(node)
    if entry.kind is not InputKind.TENSOR or tensor is None or not tensor.is_floating_point():
        return False
    if program.fact(TokenGrid).past.why_of(node.name):
        return False
    return tensor.dim() == 5 or program.fact(Roles).of(entry.path) in (Role.CONTEXT, Role.LATENT)


def _readers(node: fx.Node) -> Iterable[fx.Node]:
    return (user for user in node.users if user.op != "output")


_MARK = "coming frames"
_PAST = "behind kept frames"


def mark_coming(program: Program, cameras: fx.Node | None) -> tuple[fx.Node, ...]:
    """Write on the camera input what is found, to be read when the steps are calls; gives nodes that must stay."""
    if cameras is None:
        return ()
    found: Any = coming_frames(program, cameras)
    index = found.index if isinstance(found, Coming) else None
    if index is not None:
        index.meta[_MARK] = True
    cameras.meta[_MARK] = (found.reason, found.hint) if isinstance(found, Miss) else found
    cameras.meta[_PAST] = bool(program.fact(TokenGrid).past.kept)
    return () if index is None else (index,)


def marked_past(cameras: fx.Node) -> bool:
    """Whether the program was given keys and values of earlier frames, by what :func:`mark_coming` wrote."""
    return cameras.meta.get(_PAST, False)


def marked_coming(graph: fx.Graph, cameras: fx.Node) -> Coming | Miss | None:
    """What :func:`mark_coming` wrote, in the graph that was made since."""
    found = cameras.meta.get(_MARK)
    if isinstance(found, tuple):
        return Miss(cameras, *found)
    if found is None or found.index is None:
        return found  # type: ignore[no-any-return]
    index = next((node for node in graph.nodes if node.meta.get(_MARK) is True), None)
    return None if index is None else Coming(found.count, None, index)
