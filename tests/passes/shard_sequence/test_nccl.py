"""Two GPUs of one host, over NCCL or by copies: exchanges of heads and rings give what float64 on one does, rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import rank_cases
import rank_worlds
import torch
from rank_pool import Failed, Pool, pools
from ring_worlds import KINDS, Prefilling, RingWorld

from lightint_compile.passes.ir.exchange_ways import EXCHANGES

Pools = Callable[[int], Pool]

BOUNDS = {torch.float32: 2e-3, torch.bfloat16: 3e-2}
"""Relative to the largest value; a part that is missing or counted twice makes a tenth."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pools]:
    yield from pools("cuda")


def agreed(pool: Pools, told: str, dtype: torch.dtype, **case: object) -> None:
    """Both ranks agree with float64 on one; every remark of the pass says ``told``."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    answers = pool(2).run(rank_cases.on_gpus, dtype=dtype, preset="exact", **case)
    failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
    assert failed is None, failed
    found: rank_cases.Seen = max(answers)
    assert found.difference < BOUNDS[dtype]
    assert found.applied and not found.missed and all(told in each for each in found.applied), found


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("kind", ("", *KINDS))
def test_rings(pool: Pools, kind: str, dtype: torch.dtype) -> None:
    """Three heads on two ranks; a head dimension that the kernels of every dtype take."""
    heads = 9 if kind == "grouped" else 3
    case = {"model": {"kind": kind, "heads": heads}, "given": {"past": 2}, "world": RingWorld}
    agreed(pool, "around 2 ranks", dtype, **case)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_context_that_goes_around(pool: Pools, dtype: torch.dtype) -> None:
    case = {"model": {"steps": 2, "heads": 3, "depth": 2}, "given": {"frames": 8}, "world": Prefilling}
    agreed(pool, "around 2 ranks", dtype, **case)


@pytest.mark.gpu
@pytest.mark.parametrize("exchanges", EXCHANGES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("joint", [False, True])
def test_heads_that_are_exchanged(pool: Pools, dtype: torch.dtype, joint: bool, exchanges: str) -> None:
    case = {"model": {"joint": joint, "steps": 2}, "given": {"past": 3}, "world": rank_worlds.World}
    agreed(pool, "ranks", dtype, exchanges=exchanges, **case)


@pytest.mark.gpu
@pytest.mark.parametrize("exchanges", EXCHANGES)
@pytest.mark.parametrize("joint", [False, True])
def test_exchanges_that_are_recorded(pool: Pools, joint: bool, exchanges: str) -> None:
    case = {"model": {"joint": joint, "steps": 2}, "given": {"past": 3}, "world": rank_worlds.World}
    agreed(pool, "ranks", torch.float32, cuda_graphs=True, seeds=(0, 1, 2, 3), exchanges=exchanges, **case)
