"""Rings in processes: ranks that do not divide the heads give what one rank gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rank_cases
import torch
from rank_pool import Failed, Pool, pools
from ring_worlds import KINDS, Prefilling, RingWorld

Pools = Callable[[int], Pool]

EXACT = 1e-12
"""Of float64; a part that is missing or counted twice makes a tenth."""

AROUND = {(2, 3): "around 2 ranks", (4, 3): "around 4 ranks"}
AROUND |= {(4, 2): "around 2 teams of 2 ranks", (4, 6): "around 2 teams of 2 ranks"}
"""Which way keys and values go, of ranks and heads."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pools]:
    yield from pools()


def agreeing(answers: list[Any], around: str) -> rank_cases.Seen:
    """What all ranks saw alike, with rings that run so."""
    failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
    assert failed is None, failed
    assert all(answer[1:] == answers[0][1:] for answer in answers)
    found: rank_cases.Seen = max(answers)
    assert found.applied and not found.missed and all(around in told for told in found.applied)
    return found


LOOP = {"steps": 2}, {"past": 3}
JOINT = {"joint": True, "keeps": True}, {"text": 6}
BATCH = {}, {"frames": 3, "batch": 2}
COPIES = {"twin": "copies"}, {}
SHOWN = [(2, 3, *LOOP), (4, 6, *JOINT), (4, 2, *BATCH), (2, 3, *COPIES)]
FURTHER = [(*pair, *way) for pair in AROUND for way in (LOOP, JOINT, BATCH, COPIES) if (*pair, *way) not in SHOWN]


@pytest.mark.parametrize(
    ("ranks", "heads", "model", "given"), [*SHOWN, *(pytest.param(*each, marks=pytest.mark.slow) for each in FURTHER)]
)
def test_any_number_of_heads(pool: Pools, ranks: int, heads: int, model: Any, given: Any) -> None:
    model = {"heads": heads, "width": 8 * heads, **model}
    found = agreeing(pool(ranks).run(rank_cases.graph, model=model, given=given), AROUND[ranks, heads])
    assert found.difference < EXACT


def kind_on_ranks(pool: Pools, kind: str, ranks: int, heads: int, around: str) -> None:
    case = {"model": {"kind": kind, "heads": heads}, "given": {"past": 2}, "world": RingWorld}
    assert agreeing(pool(ranks).run(rank_cases.graph, **case), around).difference < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_attention(pool: Pools, kind: str) -> None:
    """Text and a past of all ranks in the softmax once, the own tokens around."""
    kind_on_ranks(pool, kind, 2, 9 if kind == "grouped" else 3, "around 2 ranks")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * (kind != "per-head"))
        for kind in ("frames", "per-head", "causal", *KINDS[5:])
    ],
)
def test_every_kind_of_attention_in_teams(pool: Pools, kind: str) -> None:
    """Ranks of a team have tokens of one another then, and heads of their own; one key head has no teams."""
    heads = 18 if kind == "grouped" else 6
    kind_on_ranks(pool, kind, 4, heads, "around 4 ranks" if kind in ("grouped", "one-key-head") else AROUND[4, 6])


@pytest.mark.parametrize(
    ("ranks", "model", "frames"),
    [
        (2, {"heads": 3, "depth": 2}, 8),
        pytest.param(4, {"heads": 2, "depth": 2}, 8, marks=pytest.mark.slow),
        pytest.param(4, {"heads": 6, "kind": "per-head"}, 8, marks=pytest.mark.slow),
        (4, {"heads": 6, "kind": "grouped", "depth": 2}, 8),
        (2, {"heads": 3, "kind": "per-head"}, 6),
        pytest.param(4, {"heads": 3, "kind": "tokens-first"}, 8, marks=pytest.mark.slow),
    ],
    ids=["pure", "teams", "teams-masked", "teams-of-shared-keys", "by-rows-masked", "tokens-first"],
)
def test_a_context_that_all_steps_read(pool: Pools, ranks: int, model: dict[str, Any], frames: int) -> None:
    case = {"model": {"steps": 2, **model}, "given": {"frames": frames}, "world": Prefilling}
    assert agreeing(pool(ranks).run(rank_cases.graph, **case), AROUND[ranks, model["heads"]]).difference < EXACT


@pytest.mark.parametrize(
    ("ranks", "heads", "dtype", "bound"),
    [
        (2, 3, torch.float32, 1e-5),
        pytest.param(2, 3, torch.bfloat16, 3e-2, marks=pytest.mark.slow),
        pytest.param(4, 6, torch.float32, 1e-5, marks=pytest.mark.slow),
        (4, 6, torch.bfloat16, 3e-2),
    ],
    ids=str,
)
def test_in_narrower_numbers(pool: Pools, ranks: int, heads: int, dtype: torch.dtype, bound: float) -> None:
    case = {"model": {"heads": heads, "steps": 2}, "given": {"past": 3}, "world": RingWorld, "dtype": dtype}
    assert agreeing(pool(ranks).run(rank_cases.graph, **case), AROUND[ranks, heads]).difference < bound


@pytest.mark.slow
def test_compiled_by_inductor_and_called_again(pool: Pools) -> None:
    case = {"model": {"heads": 3, "width": 24}, "given": {}, "dtype": torch.float32, "preset": "exact"}
    assert agreeing(pool(2).run(rank_cases.compiled_world, **case), "around 2 ranks").difference < 1e-5


def test_sizes_that_change(pool: Pools) -> None:
    given = [{"text": 5, "past": 2}, {"text": 7, "past": 3}, {"text": 9, "past": 5}]
    case = {"given": given, "model": {"heads": 3, "width": 24}, "preset": "exact", "delegate": "eager"}
    found = agreeing(pool(2).run(rank_cases.sizes, **case), AROUND[2, 3])
    assert found.difference < EXACT


def test_caches_that_are_written_in_place_go_nowhere(pool: Pools) -> None:
    """They hold the keys of all tokens on every rank; the first call reads nothing but its own tokens."""
    answers = pool(2).run(rank_cases.cached, heads=3, preset="exact", delegate="eager")
    failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
    assert failed is None, failed
    assert max(answers).difference < EXACT
    assert ["are rings" in told for told in answers[0].applied] == [True, *[False] * (len(answers[0].applied) - 1)]
    assert len(answers[0].applied) > 1


def test_a_mask_of_sizes_that_change_keeps_a_site_whole(pool: Pools) -> None:
    """Where a stretch of keys lies among the columns is known while sizes are numbers."""
    given = [{"text": 5, "past": 2}, {"text": 7, "past": 3}]
    case = {"given": given, "world": RingWorld, "model": {"kind": "padding"}, "preset": "off", "delegate": "eager"}
    answers = pool(2).run(rank_cases.sizes, **case)
    failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
    assert failed is None, failed
    assert max(answers).difference < EXACT and len(answers[0].applied) == len(answers[0].missed) == 1
    assert "no ring runs: only a call tells which keys its mask is for" in answers[0].missed[0]


@pytest.mark.slow
def test_a_context_of_any_number_of_frames(pool: Pools) -> None:
    """Selected by cameras; its keys and values are kept from call to call."""
    case = {"model": {"heads": 3, "width": 24}, "frames": 8, "preset": "context"}
    assert agreeing(pool(2).run(rank_cases.rollout, **case), "around 2 ranks").difference < EXACT


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "heads"), [(2, 3), (4, 2)])
def test_ranks_decide_alike(pool: Pools, ranks: int, heads: int) -> None:
    case = {"model": {"heads": heads, "width": 8 * heads}, "size": (8, 6), "frames": 20, "drift": 0.3}
    found = agreeing(pool(ranks).run(rank_cases.rollout, **case), AROUND[ranks, heads])
    assert found.difference < EXACT and found.reused


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["off", "exact", "all"])
def test_worldplay_with_fewer_heads_than_ranks(pool: Pools, preset: str) -> None:
    case = {"family": "worldplay", "heads": 2, "calls": (8,), "preset": preset, "delegate": "eager"}
    assert agreeing(pool(4).run(rank_cases.library, **case), AROUND[4, 2]).difference < EXACT


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "heads"), [(2, 3), (3, 4)])
def test_matrix_game(pool: Pools, ranks: int, heads: int) -> None:
    """Its actions attend per place over frames, with heads that three ranks do not divide either: those stay apart."""
    case = {"family": "matrix_game", "heads": heads, "calls": (0,), "preset": "exact", "delegate": "eager"}
    assert agreeing(pool(ranks).run(rank_cases.library, **case), f"around {ranks} ranks").difference < EXACT
