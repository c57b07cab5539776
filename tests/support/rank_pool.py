"""Processes that share one call, started once a session: each answers the cases it is sent, one after the other."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

Case = Callable[..., Any]

PATIENCE = 120.0
"""Seconds in which a case must answer."""

_FIRST = ["torch", "torch._dynamo", "lightint_compile"]
"""What every process has when it starts."""


class Pool:
    """``count`` processes of one group: of gloo on a CPU, of NCCL where each has a GPU, of gloo where all have one.

    Args:
        device: ``cpu``, ``cuda``, or ``one gpu``, which torch's symmetric memory has to allow.
        patience: seconds in which a case must answer.

    A server without threads forks them: a lock that a thread of the tests holds would be held for ever in a copy.
    """

    def __init__(self, count: int, device: str = "cpu", patience: float = PATIENCE) -> None:
        self._patience = patience
        context, port = get_context("forkserver"), _free_port()
        context.set_forkserver_preload(_FIRST)
        self.is_open = True
        self._ends: list[Connection] = []
        self._workers = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(rank, count, port, theirs, device), daemon=True)
            worker.start()
            theirs.close()
            self._ends.append(ours)
            self._workers.append(worker)

    def run(self, case: Case, /, **arguments: Any) -> list[Any]:
        """What ``case(**arguments)`` gives on each rank; an exception is the text of its traceback, as a ``Failed``."""
        for end in self._ends:
            end.send((case, arguments))
        answers = []
        for rank, end in enumerate(self._ends):
            if not end.poll(self._patience):
                self.close()
                raise AssertionError(f"rank {rank} does not answer")
            answers.append(end.recv())
        return answers

    def close(self) -> None:
        """End the processes; those of a case that did not answer as well."""
        self.is_open = False
        for end, worker in zip(self._ends, self._workers, strict=True):
            with contextlib.suppress(OSError):
                end.send(None)
            worker.join(5)
            worker.kill()


class Failed(str):
    """The traceback of a case that raised."""


def pools(device: str = "cpu") -> Iterator[Callable[[int], Pool]]:
    """Pools by their number of ranks, made when they are first asked for: the body of a session's fixture."""
    made: dict[int, Pool] = {}

    def pool(count: int) -> Pool:
        if count not in made or not made[count].is_open:
            made[count] = Pool(count, device)
        return made[count]

    yield pool
    for each in made.values():
        each.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(rank: int, count: int, port: int, end: Connection, device: str) -> None:
    os.environ.update(TORCHINDUCTOR_COMPILE_THREADS="1", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    own: dict[str, Any] = {"backend": "gloo"}
    if device == "one gpu":
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
        torch.cuda.set_device(0)
    elif device == "cuda":
        torch.cuda.set_device(rank)
        own = {"backend": "nccl", "device_id": torch.device(device, rank)}
    address, patience = f"tcp://127.0.0.1:{port}", timedelta(seconds=PATIENCE)
    dist.init_process_group(init_method=address, rank=rank, world_size=count, timeout=patience, **own)
    while (sent := end.recv()) is not None:
        case, arguments = sent
        try:
            torch._dynamo.reset()
            with torch.no_grad():
                answer = case(**arguments)
        except Exception:
            answer = Failed(traceback.format_exc())
        end.send(answer)
    dist.destroy_process_group()
