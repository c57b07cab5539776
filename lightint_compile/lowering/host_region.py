"""Regions that run on the host, operator by operator: their compiled form is their text in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.fx as fx

from lightint_compile.lowering.driver import NAMES, compiled_source, driver_source, is_self_contained
from lightint_compile.lowering.region import Variant, autocast_off, one_by_one
from lightint_compile.lowering.region_sizes import FreshInputs


def is_on_host(region: fx.GraphModule) -> bool:
    """Whether outline-regions marked a region so, and its text says all of it."""
    return bool(region.meta.get("lightint", {}).get("on_host")) and is_self_contained(region)


def host_compiler(graph_module: fx.GraphModule, inputs: FreshInputs) -> Variant:
    """The region as a text, for whatever sizes. No compiler is asked."""
    return host_variant(driver_source(one_by_one(graph_module)))


def host_variant(source: str) -> Variant:
    """The region that ``source`` defines as ``forward(self, *arguments)``."""
    function = partial(_without_autocast, partial(compiled_source(source, NAMES), None))
    return Variant(function, save=lambda path: _written(path, source), is_text=True)


def _without_autocast(function: Callable[..., Sequence[Any]], *args: Any) -> Sequence[Any]:
    with autocast_off():
        return function(*args)


def _written(path: str, source: str) -> None:
    Path(path).write_text(source, encoding="utf-8")
