"""What workers are to compile, and what came of it: one thread a worker gives it the largest region that waits.

An order may be placed before the region is known that it is for (:func:`.sharing.begin`): regions whose parcels say the
same are one order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

from lightint_compile.lowering.workers.pool import Artifact, NotCompiledError, Worker, Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Order:
    """A parcel to be compiled.

    Attributes:
        key: what it says; orders of one key are the same.
        content: the parcel, packed.
        work: how much there is to do.
        answer: what a worker made of it; ``None`` where this process is to compile it.
    """

    key: str
    content: bytes
    work: int
    answer: Future[Artifact | None] = field(default_factory=Future)


class Orders:
    """Orders for workers, which are ended with it."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._placed: dict[str, Order] = {}
        self._waiting: list[Order] = []  # the least work first
        self._changed = threading.Condition()
        self._is_closed = False
        self._serving: list[threading.Thread] | None = None

    @property
    def running(self) -> list[Worker]:
        """Workers that were not let go: a program that is lowered once more does without."""
        return self._workers.running

    @property
    def waiting(self) -> int:
        """How many orders no worker has begun with."""
        return len(self._waiting)

    def place(self, orders: Sequence[Order]) -> list[Order]:
        """Have them compiled; each as it was placed first."""
        with self._changed:
            new = {order.key: order for order in orders if order.key not in self._placed}
            self._placed |= new
            self._waiting = sorted([*self._waiting, *new.values()], key=lambda order: order.work)
            self._changed.notify_all()
        if self._serving is None:
            self._serving = self._served()
        return [self._placed[order.key] for order in orders]

    def keep(self, keys: Collection[str]) -> None:
        """Forget what was placed and is not among ``keys``, unless a worker has begun with it."""
        with self._changed:
            self._waiting = [order for order in self._waiting if order.key in keys]

    def take_back(self) -> None:
        """Let this process compile the order of the least work, if one is waiting."""
        with self._changed:
            order = self._waiting.pop(0) if self._waiting else None
        if order is not None:
            order.answer.set_result(None)

    def close(self) -> None:
        """End the workers, and what serves them."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._workers.close()
        for thread in self._serving or ():
            thread.join()  # its channel is closed, so that it hears nothing any more

    def __enter__(self) -> Orders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _served(self) -> list[threading.Thread]:
        """A thread for each worker; where the system has no more of them, the other workers are let go."""
        threads: list[threading.Thread] = []
        for worker in self._workers.all:
            thread = threading.Thread(target=self._serve, args=(worker,), daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                log.info("a worker is not used: %s", error)
                worker.close()
            else:
                threads.append(thread)
        return threads

    def _serve(self, worker: Worker) -> None:
        """Give a worker what waits until all is over, or the worker is lost. Each order that it takes is answered."""
        try:
            worker.wait_until_ready()
            while (order := self._next()) is not None:
                artifact = None
                try:
                    artifact = worker.compile(order.content)
                    log.debug("worker %s has compiled %s", worker.pid, order.key)
                except NotCompiledError as reason:
                    log.debug("worker %s cannot compile %s: %s", worker.pid, order.key, reason)
                finally:
                    order.answer.set_result(artifact)
        except Exception as reason:  # WorkerLostError, and whatever else: a thread has nobody to raise to
            if worker.close.alive:  # else this process has let it go
                log.info("worker %s is lost: %s", worker.pid, reason)
                worker.kill()
        worker.close()

    def _next(self) -> Order | None:
        """The most work that waits, once there is some; ``None`` when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return None if self._is_closed else self._waiting.pop()
