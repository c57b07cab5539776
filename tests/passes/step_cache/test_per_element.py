"""Elements of a batch that go separate ways: each gets what its own steps give by hand, and only those are computed."""

from __future__ import annotations

import math

import pytest
import torch
from stepped_toy import Toy
from toy_world import Block, ToyWorld

from lightint_compile.lowering.driver import driver_source, is_self_contained
from lightint_compile.passes.ir.decision_points import StepPoint, point_of
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.step_cache.per_element import EACH
from lightint_compile.reporting.rundown import rundown

COND = torch.ops.higher_order.cond
WAYS = [((1, 2), (), (2,)), ((1,), (2,), ()), ((1, 2), (1, 2), (1,)), ((2,), (1,), (1, 2))]


@pytest.fixture(scope="module")
def toy():
    return Toy(batch=3)


def cases(ways: list[object]) -> list[object]:
    """Each strategy with each way; those are slow that show neither a strategy nor a way for the first time."""
    every = [(strategy, way) for strategy in range(3) for way in range(len(ways))]
    names = "hold", "extrapolate", "residual"
    return [
        pytest.param(
            names[strategy], ways[way], id=f"{names[strategy]}-{way}", marks=[pytest.mark.slow] * (way % 3 != strategy)
        )
        for strategy, way in every
    ]


@pytest.mark.parametrize(("strategy", "reused"), cases(WAYS))
def test_each_element_gets_what_its_own_steps_give_by_hand(toy, strategy, reused) -> None:
    program, _ = toy.rewritten(f"step-cache{{strategy={strategy},drift=none}}")
    got, _, _ = toy.run_each(program, reused)
    for element, steps in enumerate(reused):
        rows = slice(element, element + 1)
        torch.testing.assert_close(got[rows], toy.by_hand(steps, strategy, rows), rtol=1e-10, atol=1e-12)


def test_only_the_elements_that_need_a_step_compute_it(toy) -> None:
    program, result = toy.rewritten("step-cache{strategy=hold,drift=1e9}")
    (remark,) = result.remarks
    assert remark.args["each"] and "by each element of the batch for itself" in remark.message
    _, calls, _ = toy.run_each(program, ((1, 2), (), (2,)))
    # Step 1: elements 1 and 2 compute; step 2: element 1. Of two blocks, the first runs before the decision.
    assert calls["block_0_row"] == 3
    together = sum(count for name, count in calls.items() if name == "block_0")
    _, plain, _ = toy.run_each(program, ((), (), ()))
    assert plain["block_0"] == together + 2, "two steps of two blocks lack the second one"
    assert not any(name.endswith("_row") for name in plain)


@pytest.mark.parametrize(("strategy", "reused"), cases([(), (1, 2), (1,)]))
def test_elements_that_agree_run_what_a_shared_decision_runs(toy, strategy, reused) -> None:
    program, _ = toy.rewritten(f"step-cache{{strategy={strategy},drift=none}}")
    got, calls, record = toy.run_each(program, (reused,) * 3)
    assert torch.equal(got, toy.run(program, reused)[0])
    assert not any(name.endswith("_row") for name in calls) and not record.decision.elements
    torch.testing.assert_close(got, toy.by_hand(reused, strategy), rtol=1e-10, atol=1e-12)


def test_a_pair_with_equal_cameras_is_told_apart_by_its_drift(toy) -> None:
    watching, _ = toy.rewritten("step-cache{strategy=hold,drift=1e9}")
    _, _, record = toy.run_each(watching, ((1,),) * 3)
    (first,) = {step for step, _ in record.own[0].drifts}
    drifts = [own.drifts[0][1] for own in record.own]
    assert first == 1 and len(set(drifts)) == 3
    bound = sorted(drifts)[1]
    program, _ = toy.rewritten(f"step-cache{{strategy=hold,drift={bound!r}}}")
    got, calls, record = toy.run_each(program, ((1,),) * 3)
    kept = [(1,) if drift <= bound else () for drift in drifts]
    for element, steps in enumerate(kept):
        rows = slice(element, element + 1)
        torch.testing.assert_close(got[rows], toy.by_hand(steps, "hold", rows), rtol=1e-10, atol=1e-12)
    assert calls["block_0_row"] == 1
    assert [own.refused_steps for own in record.decision.elements] == [() if steps else (1,) for steps in kept]
    assert record.decision.refused_steps == (1,) and record.decision.drifts == ((1, max(drifts)),)


def test_what_an_element_must_compute_anyway_is_not_measured_for_it(toy) -> None:
    program, _ = toy.rewritten("step-cache{strategy=hold,drift=1e9}")
    _, _, record = toy.run_each(program, ((1,), (), (2,)))
    assert [tuple(step for step, _ in own.drifts) for own in record.own] == [(1,), (), (2,)]
    assert not any(own.refused_steps for own in record.own)


def test_what_is_not_a_number_refuses_its_own_element_only(toy) -> None:
    program, _ = toy.rewritten("step-cache{strategy=hold,drift=1e9}")
    noise, toy.noise = toy.noise, toy.noise.clone()
    toy.noise[1, 0, 0, 0, 0] = math.nan
    try:
        got, _, record = toy.run_each(program, ((1, 2),) * 3)
    finally:
        toy.noise = noise
    assert [own.refused_steps for own in record.decision.elements] == [(), (1, 2), ()]
    assert math.isnan(record.decision.drifts[0][1])
    torch.testing.assert_close(got[::2], toy.by_hand((1, 2), "hold", slice(None, None, 2)), rtol=1e-10, atol=1e-12)


def test_one_program_serves_every_length_of_history(toy) -> None:
    program, _ = toy.rewritten("step-cache{drift=none}")
    history, cameras = toy.history, toy.cameras
    reused = ((1, 2), (), (2,))
    try:
        toy.history = torch.cat([history, 2 * history, -history], 2)
        toy.cameras = torch.cat([cameras, cameras, cameras], 1)[:, :28]
        got, _, _ = toy.run_each(program, reused)
        for element, steps in enumerate(reused):
            rows = slice(element, element + 1)
            expected = toy.by_hand(steps, "extrapolate", rows)
            torch.testing.assert_close(got[rows], expected, rtol=1e-10, atol=1e-12)
    finally:
        toy.history, toy.cameras = history, cameras


def test_a_batch_of_symbolic_size_divides_in_every_size() -> None:
    toy = Toy(batch=3, dynamic={"noise": 0, "history": (0, 2), "extrinsics": (0, 1)})
    program, result = toy.rewritten("step-cache{drift=none}")
    assert [remark.args.get("each") for remark in result.remarks] == [True]
    tensors = toy.noise, toy.history, toy.cameras
    for reused in (((1, 2), (), (2,)), ((1,), (1, 2))):
        toy.noise, toy.history, toy.cameras = (tensor[: len(reused)] for tensor in tensors)
        got, _, _ = toy.run_each(program, reused)
        for element, steps in enumerate(reused):
            rows = slice(element, element + 1)
            torch.testing.assert_close(got[rows], toy.by_hand(steps, "extrapolate", rows), rtol=1e-10, atol=1e-12)


def test_the_driver_can_be_kept_on_disk_and_the_report_says_that_elements_decide(toy) -> None:
    program, _ = toy.rewritten("step-cache")
    assert is_self_contained(program.graph_module)
    assert "choose_each(step_1_reused" in driver_source(program.snapshot().graph_module)
    said = dict(rundown(program.graph_module))
    assert "[each element of the batch: if reused" in said["step 1"]
    assert said["block_0_row"].startswith("2 calls")


def test_half_precision() -> None:
    toy = Toy(torch.bfloat16, batch=2)
    for strategy in ("hold", "extrapolate", "residual"):
        program, _ = toy.rewritten(f"step-cache{{strategy={strategy},drift=none}}")
        got, _, _ = toy.run_each(program, ((1, 2), (1,)))
        assert got.dtype == torch.bfloat16
        for element, steps in enumerate(((1, 2), (1,))):
            rows = slice(element, element + 1)
            torch.testing.assert_close(got[rows], toy.by_hand(steps, strategy, rows), rtol=2e-2, atol=2e-2)


def test_a_batch_of_one_grows_nothing() -> None:
    program, result = Toy().rewritten("step-cache")
    assert not list(program.calls(EACH)) and len(list(program.calls(COND))) == 2
    assert not any(name.endswith("_row") for name, _ in program.graph_module.named_children())
    assert "each" not in result.remarks[0].args


class Mixing(Block):
    def forward(self, tokens, time, context):
        tokens, kept = super().forward(tokens, time, context)
        return self.mixed(tokens), kept


class CentredOverBatch(Mixing):
    def mixed(self, tokens):
        return tokens - tokens.mean(0, keepdim=True)


class Flipped(Mixing):
    def mixed(self, tokens):
        return tokens + 0.1 * tokens.flip(0)


class SummedUp(Mixing):
    def mixed(self, tokens):
        return tokens.cumsum(0)


class Compared(Mixing):
    def mixed(self, tokens):
        return tokens + (tokens[:, None] - tokens[None]).abs().mean(1)


class FirstOfAll(Mixing):
    def mixed(self, tokens):
        return tokens + tokens[:1]


class Attending(Mixing):
    def mixed(self, tokens):
        return tokens + torch.einsum("bnc,anc->ban", tokens, tokens).softmax(1).sum(1)[..., None]


def world_of(kind):
    class World(ToyWorld):
        def __init__(self) -> None:
            super().__init__()
            blocks = [kind(self.width) for _ in range(2)]
            self.blocks = torch.nn.ModuleList(blocks)

    return World


@pytest.mark.parametrize(
    ("kind", "at", "why"),
    [
        pytest.param(CentredOverBatch, "mean", "it reduces over the batch", marks=pytest.mark.slow),
        pytest.param(Flipped, "flip", "no rule says", marks=pytest.mark.slow),
        pytest.param(SummedUp, "cumsum", "it runs along the batch", marks=pytest.mark.slow),
        pytest.param(Compared, "sub", "meet one another", marks=pytest.mark.slow),
        pytest.param(FirstOfAll, "slice", "it selects along the batch", marks=pytest.mark.slow),
        (Attending, "einsum", "with itself"),
    ],
)
def test_where_elements_meet_they_share_a_decision_and_a_remark_says_why(kind, at, why) -> None:
    toy = Toy(kind=world_of(kind), batch=2)
    program, result = toy.rewritten("step-cache{strategy=hold,drift=none}")
    applied, missed = result.remarks
    assert (applied.kind, missed.kind, missed.rule) == (RemarkKind.APPLIED, RemarkKind.MISSED, "batch")
    assert "share a decision" in missed.message and at in missed.message and why in missed.message, missed.message
    assert not list(program.calls(EACH)) and len(list(program.calls(COND))) == 2
    root = program.graph_module
    points = [point_of(root, node) for node in root.graph.nodes]
    assert not any(spec.each for spec in points if isinstance(spec, StepPoint))
    torch.testing.assert_close(toy.run(program, ())[0], toy.run(toy.program)[0])
