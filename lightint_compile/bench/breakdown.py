"""Where the time of a chunk goes: on the device by kind of kernel and by stage, on the host by kind of call."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from lightint_compile.lowering.driver import Driver
from lightint_compile.passes.ir.decision_points import (
    KeepPoint,
    PlanPoint,
    PredictedPoint,
    RecallPoint,
    RowsPoint,
    StepPoint,
    VisitPoint,
)

KINDS = {
    "fused elementwise": ("triton_", "camera_kernel"),
    "attention": ("attention", "flash", "sdpa", "fmha", "gk", "attend"),
    "selection": ("_select", "_pool", "_score", "select_", "pool_", "score_", "means_"),
    "gemm": ("gemm", "cutlass", "nvjet", "cublas", "matmul", "parts_kernel"),
    "copy": ("cat", "copy", "memcpy", "memset"),
}
"""Kinds of kernel by what their names hold; the first that fits counts, everything else is elementwise."""

STAGES = {"step": "denoise", "prefill": "prefill", "text": "text"}
"""Stages by the first word of a call in a driver; everything else is :data:`REST`."""

REST = "rest"


POINTS = {
    PlanPoint: "decide",
    StepPoint: "guard",
    KeepPoint: "keep",
    RecallPoint: "recall",
    RowsPoint: "rows",
    VisitPoint: "guard",
    PredictedPoint: "keep",
}
"""Kinds of host time by the decision point that is asked."""

LAUNCH, BETWEEN = "launch", "between"
"""Host time in regions, most of which is launching kernels; and what is in no call of the driver's."""


class Stopwatch:
    """Time by stage: on a GPU the device's own, without waiting for it in between; on a CPU the host's."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def run(self, stage: str, function: Any, *args: Any) -> Any:
        """``function(*args)`` as a part of ``stage``."""
        start = self._mark()
        result = function(*args)
        self._spans.append((stage, start, self._mark()))
        return result

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def region(self, stages: dict[str, str], name: str, function: Any, *args: Any) -> Any:
        """A region of a driver."""
        return self.run(stages.get(name, REST), function, *args)

    @contextmanager
    def on_module(self, stages: Mapping[str, tuple[torch.nn.Module, str]]) -> Iterator[None]:
        """The stages of a module that is not compiled: an owner and the name of its method each."""
        for stage, (owner, method) in stages.items():
            setattr(owner, method, partial(self.run, stage, getattr(owner, method)))
        try:
            yield
        finally:
            for owner, method in stages.values():
                delattr(owner, method)

    def read(self) -> dict[str, float]:
        """Milliseconds by stage."""
        if self._on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for stage, start, end in self._spans:
            spent = start.elapsed_time(end) if self._on_gpu else 1e3 * (end - start)
            totals[stage] = totals.get(stage, 0.0) + spent
        return totals


def stages_of(driver: Driver) -> dict[str, str]:
    """The stage of each region, by the names of its calls: ``prefill_block_3``, ``step_1_glue_0``, ``text_block_2``."""
    stages: dict[str, set[str]] = {}
    source = "\n".join(driver.sources)
    for call, region in re.findall(r"(\w+) = self\.(\w+)\(", source):
        stages.setdefault(region, set()).add(STAGES.get(call.partition("_")[0], REST))
    return {region: found.pop() if len(found) == 1 else REST for region, found in stages.items()}


def kind_of(name: str) -> str:
    """The kind of a device kernel."""
    low = name.lower()
    found = (kind for kind, marks in KINDS.items() if any(mark in low for mark in marks))
    return next(found, "elementwise")


class HostClock:
    """Host time of a driver by kind of call. A call that waits for the device is charged with the waiting."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys([*POINTS.values(), LAUNCH], 0.0)

    def run(self, kind: str, function: Any, *args: Any, **more: Any) -> Any:
        """``function(*args, **more)`` as a call of this kind."""
        start = time.perf_counter()
        try:
            return function(*args, **more)
        finally:
            self._seconds[kind] += time.perf_counter() - start

    @contextmanager
    def on_driver(self, driver: Driver) -> Iterator[None]:
        """Regions and decision points of a driver, while the context lasts."""
        kinds = {name: POINTS[type(spec)] for name, spec in driver.decisions.points.items()}
        regions = driver.watched(lambda name, *call: self.run(LAUNCH, *call))
        points = driver.watched_points(lambda name, *call, **more: self.run(kinds[name], *call, **more))
        with regions, points:
            yield

    def read(self, seconds: float, chunks: int) -> dict[str, float]:
        """Milliseconds a chunk by kind, of ``chunks`` whose calls returned to the caller after ``seconds`` in all."""
        rest = max(seconds - sum(self._seconds.values()), 0.0)
        return {kind: 1e3 * spent / chunks for kind, spent in [*self._seconds.items(), (BETWEEN, rest)]}


def busy(intervals: Iterable[tuple[float, float]]) -> float:
    """Time that is inside of at least one of ``intervals`` (start, end): kernels may overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def both(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """Time that is inside of at least one interval of each."""
    return max(busy(one) + busy(other) - busy([*one, *other]), 0.0)


def device_spans(profile: torch.profiler.profile) -> list[tuple[str, tuple[float, float]]]:
    """What ran on the device: name, start and end in microseconds."""
    events = [each for each in profile.events() or () if each.device_type.name == "CUDA"]
    return [(each.name, (each.time_range.start, each.time_range.end)) for each in events]


def busy_milliseconds(profile: torch.profiler.profile) -> float:
    """Milliseconds of a profile in which the device ran something."""
    return busy(span for _, span in device_spans(profile)) / 1e3
