"""Where the device time of a chunk goes: by kind of kernel, and by stage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from lightint_compile.driver import Driver
from lightint_compile.models.worldplay import WorldPlayChunk

KINDS = {
    "fused elementwise": ("triton_", "camera_kernel"),
    "attention": ("attention", "flash", "sdpa", "fmha", "gk", "attend"),
    "selection": ("_select", "_pool", "_score", "select_", "pool_", "score_", "means_"),
    "gemm": ("gemm", "cutlass", "nvjet", "cublas", "matmul"),
    "copy": ("cat", "copy", "memcpy", "memset"),
}
"""Kinds of kernel by what their names hold; the first that fits counts, everything else is elementwise."""

STAGES = {"step": "denoise", "prefill": "prefill", "text": "text"}
"""Stages by the first word of a call in a driver; everything else is :data:`REST`."""

REST = "rest"


class Stopwatch:
    """Time on the device by stage, without waiting for it in between."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def run(self, stage: str, function: Any, *args: Any) -> Any:
        """``function(*args)`` as a part of ``stage``."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = function(*args)
        end.record()
        self._spans.append((stage, start, end))
        return result

    def region(self, stages: dict[str, str], name: str, function: Any, *args: Any) -> Any:
        """A region of a driver."""
        return self.run(stages.get(name, REST), function, *args)

    @contextmanager
    def on_module(self, chunk: WorldPlayChunk) -> Iterator[None]:
        """The three passes of a module that is not compiled."""
        transformer = chunk.transformer
        stages = {"text_cache": "text", "prefill": "prefill", "forward": "denoise"}
        for method, stage in stages.items():
            setattr(transformer, method, partial(self.run, stage, getattr(transformer, method)))
        try:
            yield
        finally:
            for method in stages:
                delattr(transformer, method)

    def read(self) -> dict[str, float]:
        """Milliseconds by stage."""
        torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for stage, start, end in self._spans:
            totals[stage] = totals.get(stage, 0.0) + start.elapsed_time(end)
        return totals


def stages_of(driver: Driver) -> dict[str, str]:
    """The stage of each region, by the names of its calls: ``prefill_block_3``, ``step_1_glue_0``, ``text_block_2``."""
    stages: dict[str, set[str]] = {}
    source = "\n".join([driver.source, *driver.branches.values()])
    for call, region in re.findall(r"(\w+) = self\.(\w+)\(", source):
        stages.setdefault(region, set()).add(STAGES.get(call.partition("_")[0], REST))
    return {region: found.pop() if len(found) == 1 else REST for region, found in stages.items()}


def kind_of(name: str) -> str:
    """The kind of a device kernel."""
    low = name.lower()
    found = (kind for kind, marks in KINDS.items() if any(mark in low for mark in marks))
    return next(found, "elementwise")
