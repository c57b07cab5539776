"""shard-sequence in processes: two and four ranks give what one gives, and what fails on one fails on all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rank_cases
import torch
from forms import FORMS, every_form
from rank_pool import Failed, Pool, pools

Pools = Callable[[int], Pool]

EXACT = 1e-12
"""Of float64, in which sums may run in another order."""

LOOP = {"steps": 2}, {"past": 3}
JOINT = {"joint": True, "keeps": True}, {"text": 6}
BATCH = {}, {"frames": 3, "batch": 2}
COPIES = {"twin": "copies", "depth": 2}, {}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pools]:
    yield from pools()


def agreeing(answers: list[Any]) -> rank_cases.Seen:
    """What all ranks saw alike."""
    failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
    assert failed is None, failed
    assert all(answer[1:] == answers[0][1:] for answer in answers)
    return max(answers)


@pytest.mark.parametrize(
    ("ranks", "model", "given"),
    [
        pytest.param(2, *LOOP, id="2-loop-and-past"),
        pytest.param(4, *LOOP, id="4-loop-and-past", marks=pytest.mark.slow),
        pytest.param(2, *JOINT, id="2-joint-text"),
        pytest.param(4, *JOINT, id="4-joint-text", marks=pytest.mark.slow),
        pytest.param(2, *BATCH, id="2-batch-by-rows"),
        pytest.param(4, *BATCH, id="4-batch-by-rows", marks=pytest.mark.slow),
        pytest.param(2, *COPIES, id="2-copies"),
        pytest.param(4, *COPIES, id="4-copies", marks=pytest.mark.slow),
    ],
)
def test_several_ranks_give_what_one_gives(pool: Pools, ranks: int, model: Any, given: Any) -> None:
    found = agreeing(pool(ranks).run(rank_cases.graph, model=model, given=given))
    assert found.difference < EXACT and len(found.applied) == 1
    assert f"run on {ranks} ranks" in found.applied[0]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_in_narrower_numbers(pool: Pools, dtype: torch.dtype, bound: float) -> None:
    model, given = LOOP
    found = agreeing(pool(2).run(rank_cases.graph, model=model, given=given, dtype=dtype))
    assert found.difference < bound and len(found.applied) == 1


@pytest.mark.parametrize(
    ("ranks", "joint", "frames"),
    [pytest.param(2, False, 4, marks=pytest.mark.slow), (4, False, 4), (2, True, 12)],
)
def test_sparse_attention_selects_for_the_heads_of_a_rank(pool: Pools, ranks: int, joint: bool, frames: int) -> None:
    given = {"past": 4, "frames": frames}
    found = agreeing(pool(ranks).run(rank_cases.graph, model={"joint": joint}, given=given, front=rank_cases.SPARSE))
    assert found.difference < EXACT and len(found.applied) == 1


def test_compiled_by_inductor_and_called_again(pool: Pools) -> None:
    case = rank_cases.compiled_world
    found = agreeing(pool(2).run(case, model={}, given={}, dtype=torch.float32, preset="exact"))
    assert found.difference < 1e-5 and len(found.applied) == 1


def test_a_mesh_without_other_passes(pool: Pools) -> None:
    case = rank_cases.compiled_world
    found = agreeing(pool(2).run(case, model={}, given={}, preset="off", mesh=True, delegate="eager"))
    assert found.difference < EXACT and len(found.applied) == 1


def test_sizes_that_change(pool: Pools) -> None:
    given = [{"text": 5, "past": 2}, {"text": 7, "past": 3}, {"text": 9, "past": 5}]
    found = agreeing(pool(2).run(rank_cases.sizes, given=given, preset="exact", delegate="eager"))
    assert found.difference < EXACT and found.applied and not found.missed


def test_caches_that_are_written_in_place(pool: Pools) -> None:
    found = agreeing(pool(2).run(rank_cases.cached, preset="exact", delegate="eager"))
    assert found.difference < EXACT and found.applied


@pytest.mark.parametrize("form", every_form(quick=["in-place cache"]))
def test_every_form_of_a_chunk_is_dealt_out(pool: Pools, form: str) -> None:
    """In each call of it, with a history that grows."""
    passes = f"{rank_cases.FRONT},shard-sequence{{gpus=2}},outline-regions"
    found = agreeing(pool(2).run(rank_cases.formed, form=form, passes=passes, delegate="eager"))
    assert found.difference < EXACT and len(found.applied) >= len(FORMS[form].PARTS) and not found.missed


def test_ranks_decide_alike(pool: Pools) -> None:
    """Which context is read and which steps are reused follows inputs that all have, and the drift of all tokens."""
    found = agreeing(pool(2).run(rank_cases.rollout, frames=20, drift=0.3))
    assert found.difference < EXACT and found.applied and found.reused


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "preset"), [(2, "off"), (2, "exact"), (4, "sparse"), (2, "all"), (4, "all")])
def test_worldplay(pool: Pools, ranks: int, preset: str) -> None:
    arguments = {"family": "worldplay", "heads": ranks, "calls": (8,), "preset": preset, "delegate": "eager"}
    found = agreeing(pool(ranks).run(rank_cases.library, **arguments))
    assert found.difference < EXACT and found.applied and not found.missed


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["exact", "all"])
def test_matrix_game(pool: Pools, preset: str) -> None:
    arguments = {"family": "matrix_game", "heads": 4, "calls": (0,), "preset": preset, "delegate": "eager"}
    found = agreeing(pool(2).run(rank_cases.library, **arguments))
    assert found.difference < EXACT and found.applied


def test_ranks_that_compile_different_graphs_stop(pool: Pools) -> None:
    answers = pool(2).run(rank_cases.of_another_size, preset="exact", delegate="eager")
    assert all(isinstance(answer, Failed) and "did not compile the same graph" in answer for answer in answers)


def test_a_rank_that_fails_stops_all(pool: Pools) -> None:
    answers = pool(2).run(rank_cases.with_a_failure, preset="exact", delegate="eager")
    assert all(isinstance(answer, Failed) and "rank 1 of 2 failed, and all ranks stop" in answer for answer in answers)


RECORDED: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("rollout", {"frames": 24, "drift": 1e9}),
    "sizes": ("sizes", {"given": [{"past": past} for past in (3, 3, 4, 3, 4, 4)], "delegate": "eager"}),
    "cached": ("cached", {"chunks": 6, "delegate": "eager"}),
    "call-by-call": ("formed", {"form": "call by call", "delegate": "eager"}),
}
QUICK = {("sizes", 2), ("cached", 2)}
"""Unrecorded, the others run by default too: decisions, and every form of a chunk."""


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        pytest.param(name, ranks, marks=[pytest.mark.slow] * ((name, ranks) not in QUICK))
        for name in RECORDED
        for ranks in (2, 4)
    ],
)
def test_recorded_exchanges_give_what_they_give_unrecorded(pool: Pools, name: str, ranks: int) -> None:
    case, options = RECORDED[name]
    answers = pool(ranks).run(rank_cases.recorded, which=case, **options)
    found = agreeing([answer if isinstance(answer, Failed) else answer[0] for answer in answers])
    assert found.difference < EXACT and len(found.applied) >= 1
    assert all(played or case == "cached" for _, played in answers)  # there each call writes to another place


@pytest.mark.parametrize("event", ["weights move", "regions are watched", "memory is full"])
def test_ranks_record_and_play_together_or_not_at_all(pool: Pools, event: str) -> None:
    answers = pool(2).run(rank_cases.uneven, event=event)
    assert not any(isinstance(answer, Failed) for answer in answers), answers
    assert max(difference for difference, _ in answers) < EXACT
    assert answers[0][1] == answers[1][1] > 0
