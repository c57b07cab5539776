"""outline-regions: repeated regions become one submodule called many times; the root a short readable driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.fx as fx

from lightint_compile.passes.analysis.cameras import camera_input
from lightint_compile.passes.analysis.coming_frames import mark_coming, marked_coming
from lightint_compile.passes.analysis.frame_memory import mark_world
from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.analysis.loop_marks import borders_of, mark_loop
from lightint_compile.passes.analysis.outer_step import mark_outer_step
from lightint_compile.passes.analysis.regions import Regions
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.chunk_plan import has_plan
from lightint_compile.passes.ir.decision_points import is_outlined
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.node_data import Tokens
from lightint_compile.passes.ir.node_queries import Dependencies
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, generic_path
from lightint_compile.passes.ir.transfers import spread
from lightint_compile.passes.outline_regions.as_they_are import left_as_it_is
from lightint_compile.passes.outline_regions.forms import Forms
from lightint_compile.passes.outline_regions.memory_order import choose_memory_orders
from lightint_compile.passes.outline_regions.merging import merged
from lightint_compile.passes.outline_regions.naming import call_names
from lightint_compile.passes.outline_regions.pieces import cut
from lightint_compile.passes.outline_regions.root import Root
from lightint_compile.passes.outline_regions.submodules import Outlined, outlined


@dataclass(frozen=True, kw_only=True)
class OutlineRegions(Pass):
    """Cuts the graph into submodules, one for each distinct piece, and leaves their calls in the root.

    Compile time then grows with the number of distinct pieces, not with blocks times steps: 54 blocks in four denoising
    steps are one submodule called 216 times. See ``docs/passes/outline-regions.md``.
    """

    name: ClassVar[str] = "outline-regions"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, program: Program) -> PassResult:
        """Replace the graph by calls of submodules; a graph that already has such calls is left alone."""
        if is_outlined(program.graph_module, program.graph):
            return PassResult(False)
        if program.graph.eliminate_dead_code():
            program.changed()
        before = len(program.graph.nodes)
        reordered = choose_memory_orders(program, self.name)
        entries = _outline(program)
        if not entries:
            return PassResult(reordered)
        return PassResult(True, tuple(_remarks(program, entries, before)))


def _outline(program: Program) -> list[Outlined]:
    dependencies, tokens = Dependencies(program.graph), Tokens(program.memory(Looks))
    loop = program.fact(DenoisingLoop)
    mark_loop(loop)
    mark_outer_step(program)
    numbers = _mark_cameras(program) if loop.steps and not has_plan(program) else ()
    borders = frozenset({*borders_of(loop), *numbers})
    known = Forms(dependencies, tokens)
    pieces = merged(cut(program.fact(Regions), borders, dependencies, tokens), borders, dependencies, known)
    pieces = [piece for piece in pieces if not left_as_it_is(piece)]
    pieces.sort(key=lambda piece: min(map(dependencies.position.__getitem__, piece.nodes)))
    forms = [known.of(piece.nodes, exact=piece.kind == "block") for piece in pieces]
    entries = outlined(pieces, dict(enumerate(forms)))
    if entries:
        graph = Root(entries, call_names(entries, pieces, loop)).build(pieces, dependencies)
        for entry in entries:
            module = entry.module()
            spread(module.graph)
            program.graph_module.add_submodule(entry.name, module)
        program.graph_module.graph = graph
        graph.eliminate_dead_code()
        program.graph_module.recompile()
    return entries


def _mark_cameras(program: Program) -> tuple[fx.Node, ...]:
    """What a pass that decides on steps has to know of the cameras; gives nodes that must stay."""
    cameras = camera_input(program)
    numbers = mark_coming(program, cameras)
    coming = None if cameras is None else marked_coming(program.graph, cameras)
    if cameras is not None and isinstance(coming, Coming):
        mark_world(program, cameras, coming)
    return numbers


def _remarks(program: Program, entries: Sequence[Outlined], before: int) -> list[Remark]:
    inner = sum(len(entry.forms[0].nodes) for entry in entries)
    after = len(program.graph.nodes)
    calls = sum(len(entry.pieces) for entry in entries)
    summary = Remark(
        kind=RemarkKind.APPLIED,
        pass_name=OutlineRegions.name,
        rule="outline",
        message=f"{before} nodes became {len(entries)} regions of {inner} nodes and a root of {after}",
        numerics=Numerics.EXACT,
        args={
            "nodes_before": before,
            "root_nodes": after,
            "region_nodes": inner,
            "regions": len(entries),
            "calls": calls,
        },
    )
    return [summary, *(_remark(entry) for entry in entries if len(entry.pieces) > 1)]


def _remark(entry: Outlined) -> Remark:
    calls, nodes = len(entry.pieces), entry.forms[0].nodes
    modules = {piece.path.split("@")[0] for piece in entry.pieces if piece.path}
    where = {generic_path(path) for path in modules}
    times = (
        f"{len(modules)} blocks x {calls // len(modules)} steps" if modules and not calls % len(modules) else "pieces"
    )
    if len(modules) == calls:
        times = f"{calls} blocks"
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=OutlineRegions.name,
        rule=entry.kind,
        message=f"{times} -> 1 region called {calls} times ({calls * len(nodes)} nodes -> {len(nodes)})",
        module_path=where.pop() if len(where) == 1 else "",
        numerics=Numerics.EXACT,
        args={"region": entry.name, "calls": calls, "nodes_before": calls * len(nodes), "nodes_after": len(nodes)},
    )
