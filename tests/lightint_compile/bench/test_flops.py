"""FLOPs of a rollout: against torch's own counter, on a line in the depth, and the published table at full size."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightint_compile.bench.counting import MODULATION, ChunkCounter, Work, total
from lightint_compile.bench.flops import VARIANTS, Traces, Variant, count, line, rollout, stages_of, table
from lightint_compile.models.registry import LARGE, TINY, world_model
from lightint_compile.path_decisions import decide
from lightint_compile.runtime.decision import Decision

FULL: Any = world_model(TINY)
MODEL = dataclasses.replace(FULL, config=dataclasses.replace(FULL.config, steps=3))
"""Three denoising steps trace faster than four."""
SPARSE = {"min_tokens": 0, "tile": [4, 2, 2], "density": 0.3}
ALL = Variant({"preset": "all", **SPARSE}, "published")


@pytest.fixture(scope="module")
def traces() -> Traces:
    return Traces(MODEL, torch.float32)


def decision(frames: int, *steps: int) -> Decision:
    return Decision(chunk=6, context_frames=tuple(range(frames)), reused_steps=steps)


DECISIONS = [decision(12), decision(12), decision(12, 1), decision(8)]


@pytest.fixture(scope="module")
def counted(traces: Traces) -> list[Work]:
    return count(traces, ALL, 2, DECISIONS)


def test_the_models_own_work_is_what_torchs_counter_sees(traces: Traces) -> None:
    chunk = MODEL.module("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        chunk(*traces.inputs(24).values())
    (work,) = count(traces, VARIANTS["off"], MODEL.depth, [decision(20)])
    assert total(work) == pytest.approx(counter.get_total_flops(), rel=1e-4)  # the capture drops a little dead work
    assert {stage for stage, _ in work} == {"prefill", "denoise", "text"}
    assert total(work, kind=MODULATION) > 0.05 * total(work)


@pytest.mark.slow
def test_flops_are_a_straight_line_in_the_depth(traces: Traces, counted: list[Work]) -> None:
    deeper = (count(traces, ALL, depth, DECISIONS) for depth in (3, 4))
    for made, low, middle, high in zip(DECISIONS, counted, *deeper, strict=True):
        expected = line(low, middle, (2, 3), 4)
        at_borders = 0.002 if made.reused_steps else 0.0  # modulation on a row a frame, in or out of the branch
        assert total(high) == pytest.approx(total(expected), rel=at_borders, abs=0)
        assert total(high, kind="attention") == total(expected, kind="attention")


def test_only_what_runs_is_counted(counted: list[Work]) -> None:
    first, again, reusing, short = counted
    assert total(first, "text") > 0 == total(again, "text"), "the text branch is kept between calls"
    assert total(first, "prefill") == total(again, "prefill") == total(reusing, "prefill") > total(short, "prefill")
    assert 0.5 < total(reusing, "denoise") / total(again, "denoise") < 0.9
    assert total(again, kind=MODULATION) < 0.02 * total(again), "modulation runs on one row a frame"


def test_sparse_attention_counts_the_blocks_that_are_kept(traces: Traces, counted: list[Work]) -> None:
    never = dataclasses.replace(ALL, options={"preset": "all", "min_tokens": 10**9})
    (dense,) = count(traces, never, 2, DECISIONS[:1])
    sparse = counted[0]
    assert total(dense, kind="linear") == total(sparse, kind="linear")
    assert total(sparse, "prefill", "attention") < total(dense, "prefill", "attention")


def test_stages_follow_the_data() -> None:
    program = Traces(MODEL, torch.float32).program(2, with_history=False)
    stages = stages_of(program, MODEL.roles)
    assert set(stages.values()) == {"denoise", "text"}
    assert stages[program.graph.output_node()] == "denoise"
    counter = ChunkCounter(program, lambda node: stages[node])
    assert counter.kind(next(program.calls(torch.ops.aten.scaled_dot_product_attention.default))) == "attention"


@pytest.mark.slow
def test_at_full_size_all_stays_below_seven_petaflop() -> None:
    model = world_model(LARGE)
    found = rollout(Traces(model), VARIANTS["all"], "left-31,right-32", 64, (2, 3), model.depth)
    assert 4.0e15 < total(found.work) <= 7.0e15
    assert sum(len(each.context_frames) for each in found.decisions) >= 16 * 8 - 12, "no less context than published"
    assert len(list(table({"all": found}))) == 3


def test_a_line_is_exact_in_whole_numbers() -> None:
    low, high = ({("denoise", "linear"): 10 * depth + 3} for depth in (2, 3))
    assert line(low, high, (2, 3), 54) == {("denoise", "linear"): 543}


def test_decisions_are_those_of_the_command() -> None:
    release = decide("left-31,right-32", 64, VARIANTS["release"].decided_by, 20)
    assert sum(len(each.context_frames) for each in release) == 148
