"""Who compiles which region: workers take the largest that is left, this process the smallest of what is too much.

Workers have compiled something before, and this process may not have: its first compilation takes seconds longer, so
that it does not begin where each worker has at most one more region to come.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch.fx as fx
from torch._inductor.standalone_compile import CompiledArtifact

from lightint_compile.lowering.fresh_results import FreshResults, stated_memory, stated_orders
from lightint_compile.lowering.region import Leaf, Variant, below_autograd
from lightint_compile.lowering.region_sizes import FreshInputs, fresh_inputs
from lightint_compile.lowering.workers.orders import Order, Orders
from lightint_compile.lowering.workers.parcels import parcel_of
from lightint_compile.lowering.workers.pool import Artifact
from lightint_compile.lowering.workers.switches import Switches
from lightint_compile.passes.ir.garbage import collection_resumed

log = logging.getLogger(__name__)

WAIT = 10.0
"""Seconds that this process waits for an answer before it compiles what workers could."""

_LOOK = 0.01
"""Seconds between two looks for an answer."""


class Shared(NamedTuple):
    """How many regions workers compiled, and with how many of them they had been asked to begin ahead."""

    in_workers: int
    ahead: int


@dataclass(frozen=True)
class _Job:
    name: str
    region: fx.GraphModule
    inputs: FreshInputs
    order: Order


_Answers = SimpleQueue[tuple[_Job, Artifact | None]]


def begin(regions: Mapping[str, fx.GraphModule], config: Mapping[str, Any], orders: Orders) -> None:
    """Let workers begin with regions that are likely to be among those of a program to come.

    Args:
        regions: what Inductor would compile.
        config: Inductor's settings for regions.
    """
    orders.place([job.order for job in _jobs(regions, config)])


def compile_all(
    leaves: Mapping[str, Leaf],
    regions: Mapping[str, fx.GraphModule],
    config: Mapping[str, Any],
    orders: Orders | None,
) -> Shared:
    """Compile every leaf, in this process and in workers, which are ended.

    What a worker could not do is done here, so that only what fails here is an error.

    Args:
        regions: what Inductor compiles of them, by the names of the leaves.
        config: Inductor's settings for regions.

    Raises:
        Exception: what compiling a leaf raises.
    """
    if orders is None or not orders.running:
        for leaf in leaves.values():
            leaf.compile()
        return Shared(0, 0)
    with orders, collection_resumed():
        jobs = _jobs(regions, config)
        here = _Here(leaves, orders, _Answers())
        ahead = here.ask(jobs)
        sent = {job.name for job in jobs}
        for name in leaves:
            if name not in sent:
                here.compile(name)
        by_workers = {name for name in (here.one_more() for _ in jobs) if name is not None}
    log.info("%s of %s regions were compiled by workers", len(by_workers), len(leaves))
    return Shared(len(by_workers), len(by_workers & ahead))


def _jobs(regions: Mapping[str, fx.GraphModule], config: Mapping[str, Any]) -> list[_Job]:
    """What workers may do."""
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
            jobs.append(_Job(name, region, inputs, Order(parcel.key, parcel.packed(), parcel.work)))
        except Exception as reason:  # most are StaysHereError; what is wrong with the region itself is met again
            log.debug("%s is compiled in this process: %s", name, reason)
    return jobs


@dataclass
class _Here:
    """What this process does of it.

    Attributes:
        is_warm: whether it has compiled a region.
    """

    leaves: Mapping[str, Leaf]
    orders: Orders
    answers: _Answers
    is_warm: bool = False

    def ask(self, jobs: Sequence[_Job]) -> set[str]:
        """Place the orders of ``jobs``, and no others; the names of those that were placed before."""
        self.orders.keep({job.order.key for job in jobs})
        placed = self.orders.place([job.order for job in jobs])
        for job, order in zip(jobs, placed, strict=True):
            order.answer.add_done_callback(partial(self._answered, job))
        return {job.name for job, order in zip(jobs, placed, strict=True) if order is not job.order}

    def _answered(self, job: _Job, answer: Future[Artifact | None]) -> None:
        self.answers.put((job, answer.result()))

    def one_more(self) -> str | None:
        """Compile what is waiting, or take what a worker has compiled; the name of the latter."""
        if not self.answers_soon():
            self.orders.take_back()
        job, artifact = self.answers.get()  # each order that a worker took is answered, at the latest when it is lost
        variant = None if artifact is None else _loaded(job, artifact)
        if variant is None:
            self.compile(job.name)
            return None
        self.leaves[job.name].take(variant)
        return job.name

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
        return 0 < self.orders.waiting <= len(self.orders.running)


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
