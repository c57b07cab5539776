"""The workers of one compilation, seen from the process that compiles: started together, and ended together."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from lightint_compile.lowering.workers.channel import Channel, ChannelError
from lightint_compile.read_back import an_object, parsed

log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that a worker has to get ready, and for each region. One that takes longer is given up."""

READY = "ready"
"""What a worker says first, once all that compiling needs is there."""

LEAVE = 60.0
"""Seconds that a worker has to finish what it does once it is not needed any more: it may be writing into a cache that
others read."""

_RUN = (
    "import json, sys; sys.path += [each for each in json.loads(sys.argv[4]) if each not in sys.path]; "
    "from lightint_compile.lowering.workers.worker import main; main(*map(int, sys.argv[1:4]))"
)


class WorkerLostError(Exception):
    """A worker is gone, takes too long, or says what no worker says."""


class NotCompiledError(Exception):
    """A worker could not compile a region, and why."""


@dataclass(frozen=True)
class Artifact:
    """What a worker made of a region.

    Attributes:
        guard: as of :func:`.region_sizes.guard_on`.
        content: what :meth:`.CompiledArtifact.load` reads.
    """

    guard: str | None
    content: bytes


class Worker:
    """One process that compiles regions.

    Args:
        threads: how many compilers of kernels it may run at a time.
        gpu: the CUDA device that regions run on; below zero for the CPU.

    Attributes:
        close: lets the process end, with what it has started, once it has finished what it does. It may be called
            twice, and is called at exit.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, threads: int, gpu: int) -> None:
        ours, theirs = socket.socketpair()
        number = _above_standard(theirs)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _RUN, *map(str, (number, os.getpid(), gpu)), json.dumps(_path())],
                env=_environment(threads),
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(number)
        self._channel = Channel(ours)
        self.close = weakref.finalize(self, _let_go, self._process, self._channel, os.getpid())

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def kill(self) -> None:
        """End the process, whatever it does: it does not do what a worker does."""
        if self.close.alive:
            _kill(self._process)
            self.close()

    def wait_until_ready(self) -> None:
        """Wait until it has what compiling needs.

        Raises:
            WorkerLostError: it does not come to that.
        """
        if READY not in self._heard():
            raise WorkerLostError("it did not say that it is ready")

    def compile(self, content: bytes) -> Artifact:
        """Have a region compiled.

        Args:
            content: a packed parcel.

        Raises:
            NotCompiledError: the worker cannot.
            WorkerLostError: nothing can be said of it.
        """
        try:
            self._channel.send(content)
        except OSError as error:
            raise WorkerLostError(str(error)) from error
        answer = self._heard()
        if "differs" in answer:
            raise WorkerLostError(f"it has other settings: {answer['differs']}")
        if "error" in answer:
            raise NotCompiledError(str(answer["error"]))
        guard = answer.get("guard", 0)
        if guard is not None and not isinstance(guard, str):
            raise WorkerLostError(f"it answered {answer}")
        return Artifact(guard, self._received())

    def _heard(self) -> Mapping[str, Any]:
        try:
            return parsed(self._received().decode(), an_object)
        except ValueError as error:
            raise WorkerLostError(f"its answer is none: {error}") from error

    def _received(self) -> bytes:
        try:
            return self._channel.receive(PATIENCE)
        except (OSError, ChannelError) as error:
            raise WorkerLostError(str(error) or type(error).__name__) from error


def _above_standard(theirs: socket.socket) -> int:
    """A socket as a descriptor that is none of standard input and output, which may be closed in this process."""
    import fcntl  # not on Windows, where there are no workers

    with theirs:
        return fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)


def _path() -> list[str]:
    """Where this process finds modules; not in the working folder, which may be another one by now."""
    return [each for each in sys.path if each]


def _environment(threads: int) -> dict[str, str]:
    """This process's.

    Inductor of a worker starts compilers of kernels when it first has some, and they end with it.
    """
    own = {
        "PYTHONSAFEPATH": "1",  # no module of the working folder's in place of Python's own
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
    }
    return {name: value for name, value in os.environ.items() if name != "PYTHONINSPECT"} | own


def _let_go(process: subprocess.Popen[bytes], channel: Channel, owner: int) -> None:
    if os.getpid() != owner:  # a process that was forked meanwhile exits
        return
    channel.close()
    with contextlib.suppress(RuntimeError):  # no thread is to be had, or the interpreter ends: it leaves by itself
        threading.Thread(target=_wait_for, args=(process,), daemon=True).start()


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LEAVE)
    except subprocess.TimeoutExpired:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(OSError):  # it has ended in between
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Workers:
    """Several workers; none of them is left when the context is.

    Args:
        count: how many.
        threads: how many compilers of kernels each may run at a time.
        gpu: the CUDA device that regions run on; below zero for the CPU.
    """

    def __init__(self, count: int, threads: int, gpu: int = -1) -> None:
        self.all: list[Worker] = []
        try:
            for _ in range(count):
                self.all.append(Worker(threads, gpu))
        except OSError as error:  # memory or processes are limited: those that run are enough
            log.info("%s of %s workers run: %s", len(self.all), count, error)

    @property
    def running(self) -> list[Worker]:
        """Those that were not let go: a program that is lowered once more does without."""
        return [worker for worker in self.all if worker.close.alive]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all of them."""
        for worker in self.all:
            worker.close()
