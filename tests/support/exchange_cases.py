"""Cases of ``lightint::exchange_rows`` that every rank of a pool runs; each raises where something is wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightint_compile.errors import StateError
from lightint_compile.kernels import exchange_copies
from lightint_compile.kernels.exchange import exchange_rows

DTYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.float64)


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else torch.device("cpu")


def group() -> str:
    assert dist.group.WORLD is not None
    return str(dist.group.WORLD.group_name)


def rows_of(rank: int, number: int, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a rank sends: anybody can say what it is."""
    draw = torch.Generator().manual_seed(1000 * number + rank)
    return torch.randint(0, 200, (dist.get_world_size(), *sizes), generator=draw).to(dtype).to(device())


def expected(number: int, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What came from everyone."""
    own, count = dist.get_rank(), dist.get_world_size()
    return torch.stack([rows_of(rank, number, sizes, dtype)[own] for rank in range(count)])


def arrived(found: Tensor) -> Tensor:
    waited: Tensor = torch.ops._c10d_functional.wait_tensor(found)
    return waited


def equal(found: Tensor, wanted: Tensor) -> None:
    assert torch.equal(found, wanted), (found.shape, found.dtype, (found != wanted).sum())


def many(rounds: int, largest: int = 3000) -> None:
    """Exchanges of changing sizes, several on their way, waited for in any order; the rows are gone at once."""
    draw, number = random.Random(5), 0
    for _ in range(rounds):
        under_way: list[tuple[Tensor, Tensor]] = []
        for _ in range(draw.randrange(1, 8)):
            sizes, dtype = (draw.randrange(1, 4), draw.randrange(1, largest)), draw.choice(DTYPES)
            number += 1
            rows = rows_of(dist.get_rank(), number, sizes, dtype)
            under_way.append((exchange_rows(rows, group()), expected(number, sizes, dtype)))
            if rows.is_cuda:
                rows.fill_(99)  # what comes next on the stream may use the memory
            del rows
            while under_way and draw.random() < 0.3:
                found, wanted = under_way.pop(draw.randrange(len(under_way)))
                equal(arrived(found), wanted)
        for found, wanted in draw.sample(under_way, len(under_way)):
            equal(arrived(found), wanted)


def of_one_row() -> None:
    exchange_rows(torch.zeros(1, 3), group())


def by_copies(case: str) -> None:
    """A case on GPUs, which must have been done by copies."""
    torch.zeros(1, device="cuda")
    {"many": _many, "recorded": _recorded, "grown": _grown, "refused": _refused}[case]()
    torch.cuda.synchronize()
    (lanes,) = [found for known in exchange_copies._found.values() for found in known.values()]
    assert lanes is not None, "symmetric memory could not be had"
    dist.barrier()


def _many() -> None:
    for largest in (3000, 400_000):
        many(rounds=12, largest=largest)


def _grown() -> None:
    for number, width in enumerate((1 << 18, 1 << 22, 1 << 20, 1 << 23)):
        started = exchange_rows(rows_of(dist.get_rank(), number, (width,), torch.float32), group())
        equal(arrived(started), expected(number, (width,), torch.float32))


class _Recording:
    """Exchanges of one input, several on their way, among other work; recorded once."""

    def __init__(self, seed: int, count: int, width: int) -> None:
        self._seed, self._count, self._sizes = seed, count, (width,)
        self.given = rows_of(dist.get_rank(), seed, self._sizes, torch.float32)
        self._work = torch.randn(256, 256, device="cuda")
        self.graph = torch.cuda.CUDAGraph()
        self._run()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.found = self._run()

    def _run(self) -> list[Tensor]:
        draw, work = random.Random(self._seed), self._work
        found, under_way = dict[int, Tensor](), list[tuple[int, Tensor]]()
        for number in range(self._count):
            under_way.append((number, exchange_rows(self.given + number, group())))
            work = work @ self._work * 1e-3
            while len(under_way) > draw.randrange(1, 6):
                which, started = under_way.pop(draw.randrange(len(under_way)))
                found[which] = arrived(started) * 1
        found.update({which: arrived(started) * 1 for which, started in under_way})
        return [found[number] for number in range(self._count)]

    def play(self, number: int) -> None:
        self.given.copy_(rows_of(dist.get_rank(), number, self._sizes, torch.float32))
        self.graph.replay()
        wanted = expected(number, self._sizes, torch.float32)
        for place, found in enumerate(self.found):
            equal(found, wanted + place)


def _recorded() -> None:
    """Recordings played in turn, with eager exchanges on their way meanwhile, and one that outgrows their memory."""
    draw = random.Random(11)
    graphs = [_Recording(seed, count, width) for seed, (count, width) in enumerate(((9, 5000), (1, 70_000), (14, 300)))]
    for number in range(100, 160):
        under_way: Any = None
        if draw.random() < 0.6:
            rows = rows_of(dist.get_rank(), number, (4000,), torch.float32)
            under_way = exchange_rows(rows, group()), expected(number, (4000,), torch.float32)
        for _ in range(draw.randrange(1, 4)):
            draw.choice(graphs).play(number + draw.randrange(50))
        if under_way is not None:
            equal(arrived(under_way[0]), under_way[1])
        if number == 130:
            _grown()
            graphs.append(_Recording(7, 6, 2000))


def _refused() -> None:
    """A recording that begins with an exchange larger than any before."""
    arrived(exchange_rows(torch.zeros(dist.get_world_size(), 8, device="cuda"), group()))
    torch.cuda.synchronize()
    rows, graph = torch.zeros(dist.get_world_size(), 1 << 25, device="cuda"), torch.cuda.CUDAGraph()
    refused = pytest.raises(StateError, match="a recording cannot begin with exchanges")
    with refused, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        exchange_rows(rows, group())
