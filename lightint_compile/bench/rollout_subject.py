"""A model as one row of the benchmark runs it, in the process that is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from lightint_compile.bench.breakdown import HostClock, Stopwatch, busy_milliseconds, kind_of, stages_of
from lightint_compile.bench.rollout_job import Job
from lightint_compile.models.registry import world_model

LISTED = 16
"""Kernels that are listed by name."""


class Subject:
    """A model, its inputs and its compiled form."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = world_model(job.model).at_depth(job.depth)
        self.device = torch.device(job.device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.chunk = self.model.module(self.device, self.dtype)
        self.scene = self.model.scene(self.device, self.dtype)
        self.path = self.model.camera_path(job.trajectory)
        self.callable: Any = self._compiled()

    def _compiled(self) -> Any:
        if self._is_eager:
            return self.chunk
        options = self.job.options
        backend = "inductor" if options is None else "lightint"
        return torch.compile(self.chunk, backend=backend, fullgraph=True, options=options)

    @property
    def _is_eager(self) -> bool:
        return self.job.variant.partition("@")[0] == "eager"

    def warm_up(self) -> None:
        """Compile: three chunks reach the graph with and the graph without a history.

        Stretches are recorded in the second rollout, after one that sees what there is.
        """
        for number, _ in enumerate(self.rollout()):
            if number == 2:
                break
        for _ in range(2 if (self.job.options or {}).get("cuda_graphs") else 0):
            list(self.rollout())
        self.now()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measure(self) -> dict[str, Any]:
        """Time whole rollouts chunk by chunk, then look into the stages and kernels of late chunks."""
        compiled = self.compilations()
        list(self.rollout())
        times = [self.timed() for _ in range(self.job.repeats)]
        chunks = tuple(statistics.median(column) for column in zip(*times, strict=True))
        late = self.compilations() - compiled
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0.0
        return {
            "chunks": chunks,
            "compiled_late": late,
            "peak_gigabytes": peak,
            **self._looked_into(),
            **self._decisions(),
        }

    def graphs(self) -> list[Any]:
        """What is compiled; nothing of eager and Inductor."""
        from lightint_compile.compiled import CompiledGraph

        return [] if self.job.options is None else CompiledGraph.of(self.callable)

    def compilations(self) -> int:
        """Graphs that Dynamo captured in this process, and regions compiled."""
        regions = sum(graph.driver.compilations for graph in self.graphs() if graph.driver is not None)
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) + regions

    def rollout(self) -> Any:
        """The latents of a rollout, chunk by chunk."""
        return self.model.rollout(self.callable, self.scene, self.path)

    def timed(self) -> list[float]:
        """Milliseconds of each chunk of a rollout."""
        times, start = [], self.now()
        for _ in self.rollout():
            end = self.now()
            times.append(1e3 * (end - start))
            start = end
        return times

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _looked_into(self) -> dict[str, Any]:
        """The host on the way, then stages of the last chunk but one and kernels of the last, with most context."""
        chunks, count = self.rollout(), self.model.spec.chunks(len(self.path))
        next(chunks)
        self.now()
        driver = self._driver(chunks, count - 3) if count > 3 else {}
        stages = self._stages(chunks) if count > 2 else {}
        kernels = self._kernels(chunks) if self.device.type == "cuda" and count > 1 else {}
        return {"driver": driver, "stages": stages, **kernels}

    def _driver(self, chunks: Iterator[Any], count: int) -> dict[str, float]:
        """Host time of the next ``count`` chunks by kind of call; the device is waited for behind each."""
        clock, drivers = HostClock(), [graph.driver for graph in self.graphs() if graph.driver is not None]
        seconds = 0.0
        with ExitStack() as stack:
            for driver in drivers:
                stack.enter_context(clock.on_driver(driver))
            for _ in range(count):
                start = time.perf_counter()
                next(chunks)
                seconds += time.perf_counter() - start
                self.now()
        return clock.read(seconds, count) if drivers else {}

    def _kernels(self, chunks: Iterator[Any]) -> dict[str, Any]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            next(chunks)
            torch.cuda.synchronize()
        each = {event.key: event.self_device_time_total / 1e3 for event in profile.key_averages()}
        totals: dict[str, float] = {}
        for name, milliseconds in each.items():
            totals[kind_of(name)] = totals.get(kind_of(name), 0.0) + milliseconds
        largest = sorted(each, key=lambda name: -each[name])[:LISTED]
        return {
            "kernels": totals,
            "busy": busy_milliseconds(profile),
            "largest": {name[:120]: each[name] for name in largest},
        }

    def _stages(self, chunks: Iterator[Any]) -> dict[str, float]:
        watch = Stopwatch(self.device)
        with ExitStack() as stack:
            if self._is_eager:
                stack.enter_context(watch.on_module(self.model.stages(self.chunk)))
            for graph in self.graphs():
                if graph.driver is not None:
                    stack.enter_context(graph.driver.watched(partial(watch.region, stages_of(graph.driver))))
            next(chunks)
        return watch.read()

    def _decisions(self) -> dict[str, Any]:
        if not self.graphs():
            return {}
        from lightint_compile.compiled import decisions

        made = decisions(self.callable)
        return {
            "context": tuple(len(decision.context_frames) for decision in made),
            "reused": tuple(len(decision.reused_steps) - len(decision.refused_steps) for decision in made),
        }
