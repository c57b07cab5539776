"""Exchanges between ranks, alone and behind products: ``torchrun --nproc-per-node 2 tests/benchmarks/exchanges.py``.

By the backend of the group (``all_to_all_single``) and by copies between GPUs (``lightint::exchange_rows``). A block is
three linears, whose results are exchanged, work on what came, two results that are exchanged back, two linears and a
feed-forward network: once without exchanges, once with them joined to two, and once with each by itself, started as
soon as it can be and waited for as late as it can be. Microseconds, medians; on a GPU also as CUDA graphs, in which the
host has no part.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives  # registers the collectives
import torch.nn.functional as F
from torch import Tensor

from lightint_compile.kernels.exchange import exchange_rows

Start = Callable[[Tensor], Tensor]

ON_GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


def main() -> None:
    """Measure and print; the first rank prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[3120, 15600], help="tokens that a rank has")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    local = int(os.environ["LOCAL_RANK"])
    if ON_GPU:
        torch.cuda.set_device(local)
    device = torch.device("cuda", local) if ON_GPU else torch.device("cpu")
    dist.init_process_group("nccl" if ON_GPU else "gloo")
    assert dist.group.WORLD is not None
    ways = {way: partial(start, group=str(dist.group.WORLD.group_name)) for way, start in WAYS.items()}
    with torch.no_grad():
        for tokens in given.tokens:
            for way, start in ways.items():
                for units in (1, 2, 3):
                    rows = torch.randn(_ranks(), units, tokens, given.width // _ranks(), device=device, dtype=DTYPE)
                    sent = rows.nbytes * (_ranks() - 1) / _ranks() / 1e6
                    _say(f"{way}: {sent:.1f} MB: {_told(partial(_exchanged, start, rows), given.repeats)}")
            block = Block.of(tokens, given.width, device)
            _say(f"block of {tokens} tokens, no exchange: {_told(partial(block.joined, lambda x: x), given.repeats)}")
            for way, start in ways.items():
                _say(f"{way}, two joined: {_told(partial(block.joined, start), given.repeats)}")
                _say(f"{way}, each by itself: {_told(partial(block.apart, start), given.repeats)}")
    dist.destroy_process_group()


def _by_backend(rows: Tensor, group: str) -> Tensor:
    splits = [1] * len(rows)
    started: Tensor = torch.ops._c10d_functional.all_to_all_single(rows, splits, splits, group)
    return started


WAYS = {"collectives": _by_backend, "copies": exchange_rows}


def _arrived(started: Tensor) -> Tensor:
    found: Tensor = torch.ops._c10d_functional.wait_tensor(started)
    return found


def _exchanged(start: Start, rows: Tensor) -> Tensor:
    return _arrived(start(rows))


@dataclass(frozen=True)
class Block:
    """The part of a block around its attention.

    Attributes:
        x: what it gets, ``[tokens, width]``.
        squares: five weights ``[width, width]``.
        up, down: of the feed-forward network.
    """

    x: Tensor
    squares: list[Tensor]
    up: Tensor
    down: Tensor

    @classmethod
    def of(cls, tokens: int, width: int, device: torch.device) -> Block:
        def drawn(*sizes: int) -> Tensor:
            return torch.randn(*sizes, device=device, dtype=DTYPE) * 0.02

        return cls(
            drawn(tokens, width),
            [drawn(width, width) for _ in range(5)],
            drawn(4 * width, width),
            drawn(width, 4 * width),
        )

    def joined(self, start: Start) -> Tensor:
        """Two exchanges: of three results, and of two."""
        brought = _arrived(start(torch.stack([self._packed(each) for each in self.squares[:3]], 1)))
        made = [_worked(brought[:, number]) for number in range(3)]
        back = _arrived(start(torch.stack(made[0], 1)))
        return self._ended(*(F.linear(_unpacked(back[:, n]), self.squares[3 + n]) for n in (0, 1)))

    def apart(self, start: Start) -> Tensor:
        """Five, each behind what it sends."""
        under_way = [start(self._packed(each)) for each in self.squares[:3]]
        made = [_worked(_arrived(each)) for each in under_way]
        first = start(made[0][0])
        second = start(_worked(made[0][1])[0])
        one = F.linear(_unpacked(_arrived(first)), self.squares[3])
        return self._ended(one, F.linear(_unpacked(_arrived(second)), self.squares[4]))

    def _packed(self, weight: Tensor) -> Tensor:
        """A linear's result as a row for each rank, ``[ranks, tokens, width / ranks]``."""
        made = F.linear(self.x, weight)
        return made.view(len(made), _ranks(), -1).transpose(0, 1).contiguous()

    def _ended(self, one: Tensor, other: Tensor) -> Tensor:
        return F.linear(F.linear(one + other, self.up), self.down)


def _worked(rows: Tensor) -> tuple[Tensor, Tensor]:
    """In place of norms, rotations and cameras."""
    wide = rows.float()
    return (wide * 1.5).to(rows.dtype), (wide * 0.5).to(rows.dtype)


def _unpacked(rows: Tensor) -> Tensor:
    return rows.transpose(0, 1).reshape(rows.shape[1], -1)


def _ranks() -> int:
    return dist.get_world_size()


def _told(call: Callable[[], Tensor], repeats: int) -> str:
    took, host = _timed(call, repeats)
    return f"{took:.0f} us, host {host:.0f}" + (f", recorded {_recorded(call, repeats):.0f}" if ON_GPU else "")


def _timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Microseconds of one of so many calls, and of starting it."""
    for _ in range(3):
        call()
    taken, started = [], []
    for _ in range(5):
        _wait()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        started.append((time.perf_counter() - begin) / repeats * 1e6)
        _wait()
        taken.append((time.perf_counter() - begin) / repeats * 1e6)
    return statistics.median(taken), statistics.median(started)


def _recorded(call: Callable[[], Tensor], repeats: int) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(repeats):
            call()
    return _timed(graph.replay, 3)[0] / repeats


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
