"""Jobs of a benchmark in processes of their own: they get ready side by side, and are timed one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

import torch.multiprocessing as processes

from lightint_compile.errors import told


class Subject(Protocol):
    """What is measured, in the process that is timed."""

    def warm_up(self) -> None:
        """Compile, and call for the first times."""
        ...

    def measure(self) -> dict[str, Any]:
        """What was measured, by the fields of a result."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of job. Both members are found by name in a new process, so they stand in modules.

    Attributes:
        subject: makes what is measured of a job.
        result: the class of results, a dataclass with the fields ``job``, ``warm_seconds`` and ``error``.
    """

    subject: Callable[[Any], Subject]
    result: type[Any]


def side_by_side(kind: Kind, jobs: Sequence[Any], patience: float) -> Iterator[Any]:
    """A result of every job, in order.

    A job that is not ready after ``patience`` seconds, or whose process dies, counts as failed and holds up no other.
    """
    workers = [(job, *_started(kind, job)) for job in jobs]
    deadline = time.monotonic() + patience
    warm = {job: _received(kind, job, ours, deadline - time.monotonic()) for job, _, ours in workers}
    for job, worker, _ in workers:
        if warm[job].error:
            worker.terminate()
    for job, worker, ours in workers:
        result = warm[job]
        if not result.error:
            ours.send("your turn")
            result = _received(kind, job, ours, patience)
        worker.terminate() if result.error else worker.join()
        yield result


def _started(kind: Kind, job: Any) -> tuple[SpawnProcess, Connection]:
    context = processes.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_work, args=(kind, job, theirs), daemon=True)
    worker.start()
    theirs.close()
    return worker, ours


def _received(kind: Kind, job: Any, end: Connection, patience: float) -> Any:
    """What a worker says next, or why it says nothing."""
    if not end.poll(max(patience, 0.0)):
        return kind.result(job, 0.0, error=f"not ready after {max(patience, 0.0):.0f} s")
    try:
        return end.recv()
    except EOFError:
        return kind.result(job, 0.0, error="its process died")


def _work(kind: Kind, job: Any, end: Connection) -> None:
    start = time.perf_counter()
    result = kind.result(job, 0.0)
    try:
        subject = kind.subject(job)
        subject.warm_up()
        result = dataclasses.replace(result, warm_seconds=time.perf_counter() - start)
        print(f"{job.title}: ready after {result.warm_seconds:.0f} s", flush=True)
        end.send(result)
        end.recv()
        end.send(dataclasses.replace(result, **subject.measure()))
    except Exception as error:
        print(f"{job.title}: {error}", flush=True)
        end.send(dataclasses.replace(result, error=told(error)))
