"""From a rewritten program to a driver: each distinct region becomes one leaf, compiled once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.fx as fx

from lightint_compile.driver import Driver, driver_source, is_self_contained
from lightint_compile.leaf import Compiler, Leaf, eager_compiler, inductor_compiler
from lightint_compile.options import LightintOptions
from lightint_compile.passes.program import Program

WHOLE = "whole"
"""The name of the one region of a program in which nothing repeats."""


@dataclass(frozen=True)
class Lowered:
    """A driver and what it took to make it.

    Attributes:
        regions: the distinct regions by name, in normal form.
        calls: how often the driver calls each.
        seconds: compile seconds of each region.
        storable: whether the driver can be kept on disk.
    """

    driver: Driver
    regions: Mapping[str, fx.GraphModule]
    calls: Mapping[str, int]
    seconds: Mapping[str, float]
    storable: bool


def lower(program: Program, options: LightintOptions, config: Mapping[str, Any]) -> Lowered:
    """Compile every distinct region of ``program``.

    Args:
        config: Inductor configuration for the regions (from ``torch.compile``'s ``mode``, and guards against its bugs).
    """
    root = program.graph_module if _outlined(program) else _wrapped(program.graph_module)
    compiler = compiler_of(options, config)
    regions = _regions(root)
    leaves, seconds = {}, {}
    for name, region in regions.items():
        leaves[name] = Leaf(name, partial(_region, region), compiler)
        start = time.perf_counter()
        leaves[name].compile()
        seconds[name] = time.perf_counter() - start
    calls = [node for node in root.graph.nodes if node.op == "call_module"]
    memoised = sorted({str(node.target) for node in calls if node.meta.get("memo")})
    storable = is_self_contained(root)
    extra = root.graph.python_code(root_module="self").globals
    driver = Driver(driver_source(root), leaves, memoised, extra)
    counts = {name: sum(node.target == name for node in calls) for name in regions}
    return Lowered(driver, regions, counts, seconds, storable)


def compiler_of(options: LightintOptions, config: Mapping[str, Any]) -> Compiler:
    """Who compiles the regions under ``options``."""
    return eager_compiler if options.delegate == "eager" else inductor_compiler(dict(config))


def _region(region: fx.GraphModule) -> fx.GraphModule:
    return region


def _outlined(program: Program) -> bool:
    return any(node.op == "call_module" for node in program.graph.nodes)


def _regions(root: fx.GraphModule) -> dict[str, fx.GraphModule]:
    found: dict[str, fx.GraphModule] = {}
    for node in root.graph.nodes:
        if node.op == "call_module":
            region = root.get_submodule(str(node.target))
            assert isinstance(region, fx.GraphModule)
            found[str(node.target)] = region
    return found


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
