"""From a rewritten program to a driver: each distinct region becomes one leaf, compiled once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.lowering.deferred_wait import one_wait_for_all_kernels
from lightint_compile.lowering.driver import Driver, driver_source, is_self_contained
from lightint_compile.lowering.host_region import host_compiler, is_on_host
from lightint_compile.lowering.kept_sites import with_sites
from lightint_compile.lowering.region import Compiler, Leaf, eager_compiler, inductor_compiler
from lightint_compile.lowering.stretches import FEWEST, Stretch, Stretches, groups_in, with_stretches
from lightint_compile.lowering.workers.pool import Workers
from lightint_compile.lowering.workers.sharing import compile_all
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.decision_points import PointSpec, is_outlined, is_region_call, point_of
from lightint_compile.passes.ir.input_writes import InputWrites
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.outline_regions import OutlineRegions
from lightint_compile.passes.step_cache.per_element import EACH

CUDA_GRAPHS = "triton.cudagraphs"
"""Inductor's setting for CUDA graphs. A driver records stretches of itself, so that no region is told."""

WHOLE = "whole"
"""The name of the one region of a program in which nothing repeats."""


@dataclass(frozen=True)
class Lowered:
    """A driver and what it took to make it.

    Attributes:
        regions: the distinct regions by name, in normal form.
        calls: how often the driver calls each.
        seconds: what compiling the regions took.
        in_workers: how many regions other processes compiled.
        storable: whether the driver can be kept on disk.
        remarks: what it cannot do that was asked for.
    """

    driver: Driver
    regions: Mapping[str, fx.GraphModule]
    calls: Mapping[str, int]
    seconds: float
    in_workers: int
    storable: bool
    remarks: tuple[Remark, ...] = ()


def lower(
    program: Program, options: LightintOptions, config: Mapping[str, Any], workers: Workers | None = None
) -> Lowered:
    """Compile every distinct region of ``program``; one that writes to its inputs or asks the driver is cut.

    Args:
        config: Inductor configuration for the regions (from ``torch.compile``'s ``mode``, and guards against its bugs).
        workers: processes that compile regions beside this one; they are ended.
    """
    writes = InputWrites.of(program.graph)
    if (writes.positions or _points(program.graph_module)) and not _outlined(program):
        OutlineRegions().run(program)
    root = program.graph_module if _outlined(program) else _wrapped(program.graph_module)
    compiler = compiler_of(options, config)
    regions = _regions(root)
    compilers = {name: _compiler_for(region, compiler) for name, region in regions.items()}
    leaves = {
        name: Leaf(name, partial(_region, region), compilers[name], strict=options.strict)
        for name, region in regions.items()
    }
    start = time.perf_counter()
    of_inductor = {name: region for name, region in regions.items() if compilers[name] not in _WITHOUT_INDUCTOR}
    with one_wait_for_all_kernels():
        in_workers = compile_all(leaves, of_inductor, _own(config), workers)
    seconds = time.perf_counter() - start
    branches = _branches(root)
    graphs = [root, *branches.values()]
    calls = [node for graph in graphs for node in graph.graph.nodes if is_region_call(graph, node)]
    constants = _constants(root)
    called, sites = with_sites(root, constants)
    points = _points(root)
    storable = not constants and all(map(is_self_contained, graphs))
    extra = {k: v for graph in graphs for k, v in graph.graph.python_code(root_module="self").globals.items()}
    written, stretches = {_ROOT: called, **branches}, Stretches()
    wanted = options.cuda_graphs or bool(config.get(CUDA_GRAPHS))
    if wanted:
        written, stretches = _stretched(written, regions, points)
    sources = {name: driver_source(graph) for name, graph in written.items()}
    driver = Driver(
        sources.pop(_ROOT),
        leaves,
        extra,
        sites=sites,
        branches=sources,
        points=points,
        constants=constants,
        writes=writes,
        stretches=stretches,
    )
    counts = {name: sum(node.target == name for node in calls) for name in regions}
    remarks = (_NO_STRETCH,) if wanted and not stretches.by_name else ()
    return Lowered(driver, regions, counts, seconds, in_workers, storable, remarks)


_WITHOUT_INDUCTOR = (eager_compiler, host_compiler)

_NO_STRETCH = Remark(
    kind=RemarkKind.MISSED,
    pass_name="backend",
    rule="cuda-graphs",
    message="nothing is recorded as a CUDA graph: "
    f"no {FEWEST} operations run on a GPU without a decision between them, "
    "or they are of several groups of processes",
)

_ROOT = "stretch"
"""Stands for the root among its branches; its stretches have names that begin so."""


def _stretched(
    graphs: Mapping[str, fx.GraphModule], regions: Mapping[str, fx.GraphModule], points: Mapping[str, PointSpec]
) -> tuple[dict[str, fx.GraphModule], Stretches]:
    """A root and its branches with calls of their stretches, and the stretches; none where two groups are in them."""
    groups = groups_in([*graphs.values(), *regions.values()])
    if len(groups) > 1:
        return dict(graphs), Stretches()
    written, stretches = dict(graphs), dict[str, Stretch]()
    regions = {name: region for name, region in regions.items() if not is_on_host(region)}
    called_often = _branches_for_elements(graphs)
    for name, graph in graphs.items():
        if name in called_often:
            continue
        found = with_stretches(graph, regions, points, name if name == _ROOT else f"{name}_{_ROOT}")
        written[name] = found.root
        for each, body in found.stretches.items():
            stretches[each] = Stretch(driver_source(body), found.written[each])
    return written, Stretches(stretches, next(iter(groups), ""))


def _branches_for_elements(graphs: Mapping[str, fx.GraphModule]) -> set[str]:
    """Branches that may be called more than once: what a recording gave the first time would be overwritten."""
    calls = [node for graph in graphs.values() for node in graph.graph.nodes if node.target is EACH]
    return {str(read.target) for node in calls for read in node.all_input_nodes if read.op == "get_attr"}


def compiler_of(options: LightintOptions, config: Mapping[str, Any]) -> Compiler:
    """Who compiles the regions under ``options``."""
    return eager_compiler if options.delegate == "eager" else inductor_compiler(_own(config))


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are Inductor's for regions."""
    return {name: value for name, value in config.items() if name != CUDA_GRAPHS}


def _compiler_for(region: fx.GraphModule, compiler: Compiler) -> Compiler:
    return host_compiler if compiler is not eager_compiler and is_on_host(region) else compiler


def _region(region: fx.GraphModule) -> fx.GraphModule:
    return region


def _outlined(program: Program) -> bool:
    return is_outlined(program.graph_module, program.graph)


def _regions(root: fx.GraphModule) -> dict[str, fx.GraphModule]:
    """The distinct regions that the root or one of its branches calls."""
    found: dict[str, fx.GraphModule] = {}
    for graph in (root, *_branches(root).values()):
        for node in graph.graph.nodes:
            if is_region_call(graph, node):
                region = graph.get_submodule(str(node.target))
                assert isinstance(region, fx.GraphModule)
                found[str(node.target)] = region
    return found


def _branches(root: fx.GraphModule) -> dict[str, fx.GraphModule]:
    """The graphs that control flow in the root chooses from."""
    attributes = {str(node.target) for node in root.graph.nodes if node.op == "get_attr"}
    modules = {name: module for name, module in root.named_children() if name in attributes}
    return {name: module for name, module in modules.items() if isinstance(module, fx.GraphModule)}


def _constants(root: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Tensors that the captured graph holds itself, which the root hands to its regions."""
    names = {str(node.target) for node in root.graph.nodes if node.op == "get_attr"}
    held = {name: getattr(root, name, None) for name in names}
    return {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}


def _points(root: fx.GraphModule) -> dict[str, PointSpec]:
    points = {str(node.target): point_of(root, node) for node in root.graph.nodes}
    return {name: spec for name, spec in points.items() if spec is not None}


def _wrapped(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A root that calls the whole graph as its one region."""
    graph = fx.Graph()
    inputs = []
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            inputs.append(graph.placeholder(node.name))
            inputs[-1].meta["val"] = node.meta["val"]
    graph.output(graph.call_module(WHOLE, tuple(inputs)))
    return fx.GraphModule({WHOLE: graph_module}, graph)
