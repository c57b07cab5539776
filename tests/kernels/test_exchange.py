"""``lightint::exchange_rows``: what it refuses, copies and barriers on simulated ranks, and what real ranks get."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import exchange_cases
import pytest
import torch
from rank_pool import Failed, Pool, pools
from simulated_streams import Graph, Rank, Stream, races, simulated
from torch._subclasses.fake_tensor import FakeTensorMode

from lightint_compile.errors import InputError
from lightint_compile.kernels.exchange import exchange_rows
from lightint_compile.kernels.exchange_copies import SLOTS, Lane, Memory

Pools = Callable[[int], Pool]


def test_the_fake_form_needs_no_group() -> None:
    with FakeTensorMode():
        found = exchange_rows(torch.empty(2, 3, 5, dtype=torch.bfloat16), "none")
        assert (found.shape, found.dtype, found.is_contiguous()) == ((2, 3, 5), torch.bfloat16, True)
        with pytest.raises(InputError, match="rows are not contiguous"):
            exchange_rows(torch.empty(2, 5, 3).mT, "none")
    assert exchange_rows(torch.empty(4, 2, device="meta"), "none").shape == (4, 2)


def test_no_gradient_is_given() -> None:
    with FakeTensorMode(), pytest.raises(InputError, match="no gradient"):
        exchange_rows(torch.empty(2, 3, requires_grad=True), "none").sum().backward()


# --- copies and barriers, simulated ----------------------------------------------------------------------------------


class Program:
    """The same exchanges on every rank; what a rank waits for, and on which stream, is its own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, rank: Rank) -> None:
        alike, own = random.Random(self.seed), random.Random(1000 * self.seed + rank.rank)
        streams, graphs = [rank.current, Stream(rank)], list[Graph]()
        for _ in range(alike.randrange(10, 40)):
            step = alike.choice(["eager", "eager", "eager", "wait", "record", "fail", "replay", "replay"])
            if step == "eager":
                rank.start()
            elif step == "wait":
                self.wait(rank.arrivals, own)
            elif step in ("record", "fail"):
                graphs += self.recorded(rank, alike, own, step == "fail")
            elif graphs:
                rank.replay(alike.choice(graphs))
            if own.random() < 0.2:
                following = own.choice(streams)
                if following is not rank.current:
                    following.wait_stream(rank.current)
                    rank.current = following

    def wait(self, arrivals: list[Any], own: random.Random) -> None:
        if arrivals and own.random() < 0.8:
            arrivals.pop(own.randrange(len(arrivals))).wait()

    def recorded(self, rank: Rank, alike: random.Random, own: random.Random, fails: bool) -> list[Graph]:
        """A recording; one that fails ends early on a rank, and nobody keeps it."""
        waiting, count = rank.arrivals, alike.randrange(1, 2 * SLOTS)
        first = len(waiting)
        rank.begin()
        for _ in range(own.randrange(count) + 1 if fails else count):
            rank.start()
            while len(waiting) > first and own.random() < 0.4:
                waiting.pop(own.randrange(first, len(waiting))).wait()
        while len(waiting) > first:
            waiting.pop().wait()
        graph = rank.end()
        return [] if fails else [graph]


@pytest.mark.parametrize("count", [2, 3])
def test_no_slot_is_written_to_while_it_is_read(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for seed in range(40):
        assert races(simulated(monkeypatch, count, Program(seed))) == [], seed


@pytest.mark.parametrize("missing", ["waits", "meeting"])
def test_one_edit_away_slots_are_overwritten(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    reach = Lane._reach

    def without_waits(self: Any, caller: Any) -> None:
        self._caller, self._read = caller, self._number
        reach(self, caller)

    def without_meeting(self: Any, caller: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Rank, "meet", lambda rank, lane: None)
            reach(self, caller)

    monkeypatch.setattr(Lane, "_reach", without_waits if missing == "waits" else without_meeting)
    found = [each for seed in range(40) for each in races(simulated(monkeypatch, 2, Program(seed)))]
    assert any("written to while it is read" in each for each in found)


def test_rows_are_staged_without_a_gap_and_pulled_from_their_places() -> None:
    """The arithmetic of slots, for three ranks in one process."""
    width, count = 5, 3
    blocks = [torch.zeros(2 * SLOTS * 16, dtype=torch.uint8) for _ in range(count)]
    memories = [Memory(blocks[rank], Handle(rank, blocks), 16, timedelta(1)) for rank in range(count)]
    rows = [torch.arange(count * width, dtype=torch.uint8).view(count, width) + 50 * rank for rank in range(count)]
    for memory, sent in zip(memories, rows, strict=True):
        memory.stage(sent, 1, 2)
    for memory in memories:
        found = torch.zeros_like(rows[0])
        memory.pull(found, 1, 2)
        for sender in range(count):
            wanted = torch.zeros(width) if sender == memory.rank else rows[sender][memory.rank]
            assert torch.equal(found[sender], wanted.to(torch.uint8))


class Handle:
    """torch's handle of symmetric memory that lies in one process."""

    def __init__(self, rank: int, blocks: list[torch.Tensor]) -> None:
        self.rank, self.world_size, self._blocks = rank, len(blocks), blocks

    def get_buffer(self, rank: int, sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self._blocks[rank].view(sizes)


# --- on ranks --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[Pools]:
    yield from pools()


def check(answers: list[Any]) -> None:
    assert all(answer is None for answer in answers), next(a for a in answers if isinstance(a, Failed))


@pytest.mark.parametrize("ranks", [2, 4])
def test_exchanges_without_gpus(pool: Pools, ranks: int) -> None:
    check(pool(ranks).run(exchange_cases.many, rounds=12))


def test_a_row_too_few(pool: Pools) -> None:
    answers = pool(2).run(exchange_cases.of_one_row)
    assert all(isinstance(answer, Failed) and "there is not one row a rank" in answer for answer in answers)


PATIENCE = 55.0
"""Seconds in which ranks on GPUs must answer: a barrier that nobody comes to waits for longer."""


@pytest.fixture(scope="module", params=["two GPUs", "one GPU"])
def gpus(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Two ranks: each on a GPU of its own in a group of NCCL, and both on one GPU in a group of gloo."""
    if request.param == "two GPUs" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    pool = Pool(2, "cuda" if request.param == "two GPUs" else "one gpu", PATIENCE)
    yield pool
    pool.close()


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["many", "recorded", "grown", "refused"])
def test_exchanges_by_copies(gpus: Pool, case: str) -> None:
    if not gpus.is_open:
        pytest.fail("the ranks did not answer in another case")
    check(gpus.run(exchange_cases.by_copies, case=case))
