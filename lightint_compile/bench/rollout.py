"""Seconds of a rollout: eager, Inductor and lightint's presets, side by side on one device.

Every variant compiles in a process of its own, all at once; then one after the other rolls out, so that none is timed
while another works. Weights are random and shapes are the real ones. Blocks are all alike, so a stack of ``depth``
blocks may be measured at two depths, and the full depth follows by a straight line: the table says which numbers are
measured and which are on that line.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as processes

from lightint_compile.bench.breakdown import HostClock, Stopwatch, busy_milliseconds, kind_of, stages_of
from lightint_compile.bench.rollout_table import print_table
from lightint_compile.errors import DeviceError, OptionError
from lightint_compile.models.registry import DEMO, LARGE, world_model
from lightint_compile.models.world_model import turn_and_back
from lightint_compile.options import LightintOptions

VARIANTS = ("eager", "inductor", "exact", "published", "all", "all:drift=1e9")
"""What is compared unless told otherwise. A preset's name is a variant, options of it may follow a colon. Random
weights drift more from step to step than a trained model's, so that ``all`` refuses to reuse any; with a drift that is
never reached it reuses what the cameras allow."""

LISTED = 16
"""Kernels that are listed by name."""


@dataclass(frozen=True)
class Job:
    """One variant of a model, by its name, at one depth."""

    variant: str
    depth: int
    model: str
    trajectory: str
    repeats: int
    device: str


@dataclass(frozen=True)
class Result:
    """What one job measured.

    Attributes:
        warm_seconds: capture, rewriting and compiling, first calls included.
        chunks: median milliseconds of each chunk of the rollout.
        kernels: milliseconds of device kernels of the last chunk by kind; empty without a GPU.
        stages: milliseconds on the device of the last chunk but one by stage; empty without a GPU, and for Inductor.
        largest: milliseconds of the kernels of the last chunk that take longest, by name.
        driver: milliseconds that a chunk takes the host by kind of call, on average over all chunks but the first and
            the last two; empty for eager and Inductor.
        busy: milliseconds of the last chunk in which the device ran something, of kernels that overlap once; 0 without
            a GPU.
        context: context frames of each chunk, where decided at run time.
        reused: reused steps of each chunk, likewise.
        compiled_late: graphs and regions compiled after the warm-up.
        peak_gigabytes: device memory allocated at most, 10^9 bytes.
    """

    job: Job
    warm_seconds: float
    chunks: tuple[float, ...] = ()
    kernels: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    driver: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0
    context: tuple[int, ...] = ()
    reused: tuple[int, ...] = ()
    compiled_late: int = 0
    peak_gigabytes: float = 0.0
    error: str = ""

    @property
    def seconds(self) -> float:
        """The whole rollout."""
        return sum(self.chunks) / 1e3

    @property
    def idle(self) -> float | None:
        """Share of the last chunk in which the device had nothing to do: against its time without a profiler."""
        return max(1 - self.busy / self.chunks[-1], 0.0) if self.busy and self.chunks else None

    @property
    def deciding(self) -> float | None:
        """Host time of decisions and guards, their waiting included, as a share of the chunks they were taken in."""
        middle = self.chunks[1:-2]
        return (self.driver["decide"] + self.driver["guard"]) / statistics.mean(middle) if self.driver else None


def run(
    *,
    model: str = LARGE,
    variants: Sequence[str] = VARIANTS,
    depths: Sequence[int] = (2, 6),
    inductor_depths: Sequence[int] = (1, 2),
    trajectory: str | None = None,
    repeats: int = 3,
    patience: float = 3600.0,
    json_file: Path | None = None,
) -> None:
    """Measure and print.

    Args:
        variants: what is compared: ``eager``, ``inductor``, or a preset with options behind a colon.
        depths: numbers of blocks that are measured.
        inductor_depths: those for Inductor, which unrolls every block.
        trajectory: the camera path; a turn to the left and back unless given.
        repeats: rollouts of each variant; the median counts.
        patience: seconds after which a variant counts as failed.
        json_file: where results are written as they come.

    Raises:
        DeviceError: the model is too large for a CPU, and there is no CUDA.
        OptionError: there is no such variant.
        InputError: there is no such model, or the path cannot be read.
    """
    device, chosen = "cuda" if torch.cuda.is_available() else "cpu", world_model(model)
    if chosen.needs_gpu and device == "cpu":
        raise DeviceError(f"{model} needs a CUDA device", where="--model", fix=f"{DEMO} runs anywhere")
    trajectory = trajectory or turn_and_back(chosen.spec)
    chosen.camera_path(trajectory)
    for variant in variants:
        if variant not in ("eager", "inductor"):
            LightintOptions.from_mapping(_options(variant))
    jobs = [
        Job(variant, depth, model, trajectory, repeats, device)
        for variant in variants
        for depth in (inductor_depths if variant == "inductor" else depths)
    ]
    print_table(measured(jobs, json_file, patience), chosen.depth)


def measured(jobs: Sequence[Job], out: Path | None = None, patience: float = 3600.0) -> list[Result]:
    """Compile all jobs at once, time them in turn; results are written to ``out`` as they come.

    A job that is not ready after ``patience`` seconds, or whose process dies, counts as failed and holds up no other.
    """
    context = processes.get_context("spawn")
    workers = []
    for job in jobs:
        ours, theirs = context.Pipe()
        workers.append((job, context.Process(target=_work, args=(job, theirs), daemon=True), ours))
        workers[-1][1].start()
        theirs.close()
    deadline = time.monotonic() + patience
    warm = {job: _received(ours, deadline - time.monotonic()) for job, _, ours in workers}
    for job, worker, _ in workers:
        if warm[job].error:
            worker.terminate()
    results = []
    for job, worker, ours in workers:
        result = warm[job]
        if not result.error:
            ours.send("your turn")
            result = _received(ours, patience)
        worker.terminate() if result.error else worker.join()
        results.append(dataclasses.replace(result, job=job))
        if out is not None:
            out.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return results


def _received(end: Connection, patience: float) -> Result:
    """What a worker says next, or why it says nothing."""
    nothing = Result(Job("", 0, "", "", 0, ""), 0.0)
    if not end.poll(max(patience, 0.0)):
        return dataclasses.replace(nothing, error=f"not ready after {max(patience, 0.0):.0f} s")
    try:
        found: Result = end.recv()
    except EOFError:
        return dataclasses.replace(nothing, error="its process died")
    return found


def _work(job: Job, end: Connection) -> None:
    start = time.perf_counter()
    result = Result(job, 0.0)
    try:
        subject = _Subject(job)
        subject.warm_up()
        result = dataclasses.replace(result, warm_seconds=time.perf_counter() - start)
        print(f"{job.variant} depth {job.depth}: ready after {result.warm_seconds:.0f} s", flush=True)
        end.send(result)
        end.recv()
        end.send(dataclasses.replace(result, **subject.measure()))
    except Exception as error:
        print(f"{job.variant} depth {job.depth}: {error}", flush=True)
        end.send(dataclasses.replace(result, error=f"{type(error).__name__}: {str(error).splitlines()[0]}"))


class _Subject:
    """A model, its inputs and its compiled form."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = world_model(job.model).at_depth(job.depth)
        self.device = torch.device(job.device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.chunk = self.model.module(self.device, dtype)
        self.scene = self.model.scene(self.device, dtype)
        self.path = self.model.camera_path(job.trajectory)
        self.callable: Any = self._compiled()

    def _compiled(self) -> Any:
        if self.job.variant == "eager":
            return self.chunk
        if self.job.variant == "inductor":
            return torch.compile(self.chunk, backend="inductor", fullgraph=True)
        return torch.compile(self.chunk, backend="lightint", fullgraph=True, options=_options(self.job.variant))

    def warm_up(self) -> None:
        """Compile: three chunks reach the graph with and the graph without a history."""
        for number, _ in enumerate(self._rollout()):
            if number == 2:
                break
        self._now()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measure(self) -> dict[str, Any]:
        """Time whole rollouts chunk by chunk, then look into the stages and kernels of late chunks."""
        compiled = self._compilations()
        list(self._rollout())
        times = [self._timed() for _ in range(self.job.repeats)]
        chunks = tuple(statistics.median(column) for column in zip(*times, strict=True))
        late = self._compilations() - compiled
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0.0
        return {
            "chunks": chunks,
            "compiled_late": late,
            "peak_gigabytes": peak,
            **self._looked_into(),
            **self._decisions(),
        }

    def _graphs(self) -> list[Any]:
        from lightint_compile.compiled import CompiledGraph

        return [] if self.job.variant in ("eager", "inductor") else CompiledGraph.of(self.callable)

    def _compilations(self) -> int:
        """Graphs that Dynamo captured in this process, and regions compiled."""
        regions = sum(graph.driver.compilations for graph in self._graphs() if graph.driver is not None)
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) + regions

    def _rollout(self) -> Any:
        return self.model.rollout(self.callable, self.scene, self.path)

    def _timed(self) -> list[float]:
        times, start = [], self._now()
        for _ in self._rollout():
            end = self._now()
            times.append(1e3 * (end - start))
            start = end
        return times

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _looked_into(self) -> dict[str, Any]:
        """The host on the way, then stages of the last chunk but one and kernels of the last, with most context."""
        chunks, middle = self._rollout(), self.model.spec.chunks(len(self.path)) - 3
        next(chunks)
        self._now()
        driver = self._driver(chunks, middle) if middle > 0 else {}
        if self.device.type != "cuda":
            return {"driver": driver}
        return {"driver": driver, "stages": self._stages(chunks), **self._kernels(chunks)}

    def _driver(self, chunks: Iterator[Any], count: int) -> dict[str, float]:
        """Host time of the next ``count`` chunks by kind of call; the device is waited for behind each."""
        clock, drivers = HostClock(), [graph.driver for graph in self._graphs() if graph.driver is not None]
        seconds = 0.0
        with ExitStack() as stack:
            for driver in drivers:
                stack.enter_context(clock.on_driver(driver))
            for _ in range(count):
                start = time.perf_counter()
                next(chunks)
                seconds += time.perf_counter() - start
                self._now()
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
        watch = Stopwatch()
        with ExitStack() as stack:
            if self.job.variant == "eager":
                stack.enter_context(watch.on_module(self.model.stages(self.chunk)))
            for graph in self._graphs():
                if graph.driver is not None:
                    stack.enter_context(graph.driver.watched(partial(watch.region, stages_of(graph.driver))))
            next(chunks)
        return watch.read()

    def _decisions(self) -> dict[str, Any]:
        if not self._graphs():
            return {}
        from lightint_compile.compiled import decisions

        made = decisions(self.callable)
        return {
            "context": tuple(len(decision.context_frames) for decision in made),
            "reused": tuple(len(decision.reused_steps) - len(decision.refused_steps) for decision in made),
        }


def _options(variant: str) -> dict[str, Any]:
    """``preset:option=value,...`` as options.

    Raises:
        OptionError: a value that is not JSON.
    """
    preset, _, rest = variant.partition(":")
    pairs = [item.partition("=") for item in filter(None, rest.split(","))]
    try:
        return {"preset": preset, **{name: json.loads(value) for name, _, value in pairs}}
    except json.JSONDecodeError as error:
        fix = "for example all:drift=1e9"
        raise OptionError(f"{variant!r} cannot be read", where="--variant", why=str(error), fix=fix) from error
