"""Regions that run on the host, operator by operator: their compiled form is their text in Python."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch.fx as fx

from lightint_compile.lowering.driver import NAMES, compiled_source, driver_source, is_self_contained
from lightint_compile.lowering.region import Variant, one_by_one, without_autocast
from lightint_compile.lowering.region_sizes import FreshInputs


def is_on_host(region: fx.GraphModule) -> bool:
    """Whether outline-regions marked a region so, and its text says all of it."""
    return bool(region.meta.get("lightint", {}).get("on_host")) and is_self_contained(region)


def host_compiler(graph_module: fx.GraphModule, inputs: FreshInputs) -> Variant:
    """The region as a text, for whatever sizes. No compiler is asked."""
    return host_variant(driver_source(one_by_one(graph_module)))


def host_variant(source: str) -> Variant:
    """The region that ``source`` defines as ``forward(self, *arguments)``."""
    function = without_autocast(partial(compiled_source(source, NAMES), None))
    return Variant(function, save=lambda path: _written(path, source), is_text=True)


def _written(path: str, source: str) -> None:
    Path(path).write_text(source, encoding="utf-8")
