"""Who compiles which region: workers take the largest that is left, this process the smallest of what is too much.

Workers have compiled something before, and this process may not have: its first compilation takes seconds longer, so
that it does not begin where each worker has at most one more region to come.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch.fx as fx
from torch._inductor.standalone_compile import CompiledArtifact

from lightint_compile.lowering.fresh_results import FreshResults, stated_memory, stated_orders
from lightint_compile.lowering.region import Leaf, Variant, below_autograd
from lightint_compile.lowering.region_sizes import FreshInputs, fresh_inputs
from lightint_compile.lowering.workers.parcels import parcel_of
from lightint_compile.lowering.workers.pool import Artifact, NotCompiledError, Worker, Workers
from lightint_compile.lowering.workers.rules import named
from lightint_compile.lowering.workers.switches import Switches
from lightint_compile.passes.ir.garbage import collection_resumed

log = logging.getLogger(__name__)

WAIT = 10.0
"""Seconds that this process waits for an answer before it compiles what workers could."""

_LOOK = 0.01
"""Seconds between two looks for an answer."""


@dataclass(frozen=True)
class _Job:
    name: str
    region: fx.GraphModule
    inputs: FreshInputs
    content: bytes
    work: int


_Answers = SimpleQueue[tuple[_Job, Artifact | None]]


def compile_all(
    leaves: Mapping[str, Leaf],
    regions: Mapping[str, fx.GraphModule],
    config: Mapping[str, Any],
    workers: Workers | None,
) -> int:
    """Compile every leaf, in this process and in ``workers``, which are ended.

    What a worker could not do is done here, so that only what fails here is an error.

    Args:
        regions: what Inductor compiles of them, by the names of the leaves.
        config: Inductor's settings for regions.

    Returns:
        How many leaves workers compiled.

    Raises:
        Exception: what compiling a leaf raises.
    """
    if workers is None or not workers.running:
        for leaf in leaves.values():
            leaf.compile()
        return 0
    jobs = _jobs(regions, config)
    here = _Here(leaves, deque(jobs), _Answers(), workers)
    with workers, collection_resumed():
        serving = _served(workers, here.waiting, here.answers)
        sent = {job.name for job in jobs}
        for name in leaves:
            if name not in sent:
                here.compile(name)
        by_workers = sum(here.one_more() for _ in jobs)
    for thread in serving:
        thread.join()  # its channel is closed, so that it hears nothing any more
    log.info("%s of %s regions were compiled by workers", by_workers, len(leaves))
    return by_workers


def _served(workers: Workers, waiting: deque[_Job], answers: _Answers) -> list[threading.Thread]:
    """A thread for each worker; where the system has no more of them, the other workers are let go."""
    threads: list[threading.Thread] = []
    for worker in workers.all:
        thread = threading.Thread(target=_serve, args=(worker, waiting, answers), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.info("a worker is not used: %s", error)
            worker.close()
        else:
            threads.append(thread)
    return threads


def _jobs(regions: Mapping[str, fx.GraphModule], config: Mapping[str, Any]) -> list[_Job]:
    """What workers may do, the least work first."""
    try:
        switches = Switches.now()
    except Exception as reason:  # most are OnlyHereError
        log.info("regions are compiled in this process: others do not have %s", reason)
        return []
    jobs = []
    for name, region in regions.items():
        try:
            inputs = fresh_inputs([node.meta["val"] for node in region.graph.find_nodes(op="placeholder")])
            parcel = parcel_of(region, inputs, config, switches)
            jobs.append(_Job(name, region, inputs, parcel.packed(), parcel.work))
        except Exception as reason:  # most are StaysHereError; what is wrong with the region itself is met again
            log.debug("%s is compiled in this process: %s", name, reason)
    return sorted(jobs, key=lambda job: job.work)


@dataclass
class _Here:
    """What this process does of it.

    Attributes:
        is_warm: whether it has compiled a region.
    """

    leaves: Mapping[str, Leaf]
    waiting: deque[_Job]
    answers: _Answers
    workers: Workers
    is_warm: bool = False

    def one_more(self) -> bool:
        """Compile what is waiting, or take what a worker has compiled; whether it was the latter."""
        if not self.answers_soon() and (job := _least(self.waiting)) is not None:
            self.compile(job.name)
            return False
        job, artifact = self.answers.get()  # each job that a worker took is answered, at the latest when it is given up
        variant = None if artifact is None else _loaded(job, artifact)
        if variant is None:
            self.compile(job.name)
        else:
            self.leaves[job.name].take(variant)
        return variant is not None

    def compile(self, name: str) -> None:
        """Compile a region here."""
        self.leaves[name].compile()
        self.is_warm = True

    def answers_soon(self) -> bool:
        """Whether there is an answer, or is one after a while in which it would not be worth it to begin here."""
        end = time.monotonic() + WAIT
        while not self.is_warm and self.answers.empty() and self._is_little_left() and time.monotonic() < end:
            time.sleep(_LOOK)
        return not self.answers.empty()

    def _is_little_left(self) -> bool:
        return 0 < len(self.waiting) <= len(self.workers.running)


def _loaded(job: _Job, artifact: Artifact) -> Variant | None:
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(artifact.content)
            file.flush()
            function = below_autograd(CompiledArtifact.load(path=file.name, format="binary"))
    except Exception:  # whatever is wrong with it, the region can be compiled here
        log.debug("what a worker made of %s cannot be used", job.name, exc_info=True)
        return None
    inputs, graph = job.inputs, job.region.graph
    guard = inputs.guard_with(artifact.guard)
    results = FreshResults(stated_memory(graph), stated_orders(graph))
    return Variant(
        function, guard, inputs.guarded(), inputs.extra, inputs.floats, _saver(artifact.content), results=results
    )


def _saver(content: bytes) -> Callable[[str], None]:
    def save(path: str) -> None:
        Path(path).write_bytes(content)

    return save


def _least(waiting: deque[_Job]) -> _Job | None:
    """The job for this process, if one is left."""
    return _taken(waiting.popleft)


def _taken(take: Callable[[], _Job]) -> _Job | None:
    try:
        return take()
    except IndexError:
        return None


def _serve(worker: Worker, waiting: deque[_Job], answers: _Answers) -> None:
    """Give a worker what is waiting until nothing is, or the worker is lost. Each job that it takes is answered."""
    try:
        worker.wait_until_ready()
        while (job := _taken(waiting.pop)) is not None:
            artifact = None
            try:
                artifact = worker.compile(job.content)
                log.debug("worker %s has compiled %s", worker.pid, job.name)
            except NotCompiledError as reason:
                log.debug("worker %s cannot compile %s: %s", worker.pid, job.name, reason)
            finally:
                answers.put((job, artifact))
    except Exception as reason:  # WorkerLostError, and whatever else: a thread has nobody to raise to
        if worker.close.alive:  # else this process has let it go
            log.info("worker %s is lost: %s", worker.pid, named(str(reason)))
            worker.kill()
    worker.close()
