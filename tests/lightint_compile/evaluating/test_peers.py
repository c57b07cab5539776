"""Every peer's rule on numbers made by hand, and on the smallest maze."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightint_compile.errors import OptionError, StateError
from lightint_compile.evaluating.peers import PEERS
from lightint_compile.evaluating.peers.block_rule import stack_of
from lightint_compile.evaluating.peers.easy_cache import EasyCache
from lightint_compile.evaluating.peers.first_block_cache import FirstBlockCache
from lightint_compile.evaluating.peers.flow_cache import FlowCache
from lightint_compile.evaluating.peers.rule import relative_l1
from lightint_compile.evaluating.peers.taylor_seer import TaylorSeer
from lightint_compile.evaluating.peers.teacache import TeaCache, modulated_input
from lightint_compile.evaluating.peers.world_kv import WorldKV
from lightint_compile.evaluating.variants import variant_of, variants_of
from lightint_compile.models.registry import world_model

pytestmark = pytest.mark.filterwarnings("ignore:.*no trained weights")


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1), value)


def in_steps(rule: Any, steps: int) -> Any:
    rule._steps = steps
    rule.begin()
    return rule


def decisions(rule: Any, decide: Callable[[int], bool], steps: int) -> list[bool]:
    """Which steps are skipped, where a computed step leaves a residual of its number."""
    skipped = []
    for step in range(steps):
        skipped.append(decide(step))
        if not skipped[-1]:
            rule.computed_residual(step, one(float(step)))
    return skipped


def test_relative_l1() -> None:
    assert float(relative_l1(torch.tensor([1.0, 3.0]), torch.tensor([2.0, -2.0]))) == pytest.approx(1.5)


def test_teacache_sums_changes_and_computes_the_first_and_the_last_step() -> None:
    rule = in_steps(TeaCache(threshold=0.1), 6)
    inputs = [1.0, 1.06, 1.10, 1.19, 1.19, 1.19]  # changes 0.06, 0.038, 0.082: the third passes 0.1
    assert decisions(rule, lambda step: rule.decides(step, one(inputs[step])), 6) == [
        *(False, True, True, False, True, False)
    ]
    assert float(rule.residual(4)) == 5.0
    rule.begin_chunk()
    assert not rule.decides(1, one(1.19))


def test_first_block_cache_compares_with_the_last_computed_step() -> None:
    rule = in_steps(FirstBlockCache(threshold=0.12), 4)
    first = [1.0, 1.1, 1.2, 1.3]  # 0.1 is below; 0.2 against step 0 is not; then 0.083
    assert decisions(rule, lambda step: rule.decides(one(first[step])), 4) == [False, True, False, True]
    assert float(rule.residual(3)) == 2.0


def test_taylorseer_holds_and_then_goes_on_by_the_difference() -> None:
    rule = in_steps(TaylorSeer(interval=2), 4)
    empty: Any = None
    assert [rule.skips_all(step, one(0), empty, ()) for step in range(4)] == [False, True, False, True]
    rule.computed_residual(0, one(1.0))
    assert float(rule.residual(1)) == 1.0
    rule.computed_residual(2, one(5.0))
    assert float(rule.residual(3)) == 7.0  # 5 + (5 - 1) / 2 * 1


def test_easycache_predicts_the_change_of_the_output_by_that_of_the_input() -> None:
    rule = in_steps(EasyCache(threshold=0.5), 5)
    latents = [1.0, 2.0, 2.5, 2.6, 3.0]
    outputs = [4.0, 6.0, 9.0, 9.0, 8.0]

    def step(number: int) -> float:
        return float(rule.step(number, lambda: one(outputs[number]), one(latents[number])))

    # Step 0 is warm-up. Step 1 has no k yet: computed, k = |6 - 4| / |2 - 1| = 2. Step 2: 2 * 0.5 / 6 < 0.5, skipped.
    assert [step(0), step(1)] == [4.0, 6.0]
    assert rule._k == 2.0
    assert step(2) == 2.5 + (6.0 - 2.0)
    assert step(3) == pytest.approx(2.6 + 4.0)  # 0.167 + 2 * 0.1 / 6 is still below
    assert step(4) == 8.0  # the last one


def test_flowcache_decides_a_chunk_by_its_embedded_input_and_may_skip_the_last_step() -> None:
    rule = in_steps(FlowCache(threshold=0.1, warmup=2), 4)
    inputs = [1.0, 1.01, 1.02, 1.03]
    assert decisions(rule, lambda step: rule.decides(step, one(inputs[step])), 4) == [False, False, True, True]
    rule.begin_chunk()
    assert not rule.decides(3, one(1.03))


@pytest.fixture(scope="module")
def chunk() -> nn.Module:
    return world_model("maze:tiny").module()


def called(chunk: nn.Module, history: int = 24) -> Tensor:
    inputs = world_model("maze:tiny").example_inputs(history)
    with torch.no_grad():
        made: Tensor = chunk(*inputs.values())
    return made


@pytest.mark.parametrize(
    ("rule", "computed"),
    [
        (TeaCache(threshold=0.0), 4),
        (TeaCache(threshold=1e9), 2),
        (FirstBlockCache(threshold=0.0), 4),
        (FirstBlockCache(threshold=1e9), 1),
        (TaylorSeer(interval=1), 4),
        (TaylorSeer(interval=2), 2),
        (EasyCache(threshold=0.0), 4),
        (EasyCache(threshold=1e9), 3),
        (FlowCache(threshold=0.0), 4),
        (FlowCache(threshold=1e9), 1),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else str(value),
)
def test_rules_skip_what_they_say_and_leave_the_model_as_it_was(chunk: nn.Module, rule: Any, computed: int) -> None:
    expected = called(chunk)
    with rule.applied(world_model("maze:tiny"), chunk):
        rule.begin()
        found = called(chunk)
        assert rule.computed == computed
    assert torch.equal(found, expected) == (computed == 4)
    assert torch.equal(called(chunk), expected)


def test_teacache_reads_what_the_first_attention_reads(chunk: nn.Module) -> None:
    block, seen = stack_of(chunk.transformer)[0], []
    linear = block.img_attn_q.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    whole = block.register_forward_pre_hook(lambda module, args: seen.append(modulated_input(module, *args)))
    called(chunk)
    linear.remove(), whole.remove()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen[::2], seen[1::2], strict=True))
    with pytest.raises(StateError, match="no adapter"):
        modulated_input(nn.Linear(1, 1), one(1.0), None)


def test_worldkv_encodes_a_chunk_once_and_applies_positions_again(chunk: nn.Module) -> None:
    model, rule = world_model("maze:tiny"), WorldKV()
    encoded: list[tuple[int, ...]] = []
    original = rule._encode

    def encode(owner: Any, frames: Any, *rest: Any) -> None:
        encoded.append(tuple(frames))
        original(owner, frames, *rest)

    rule._encode = encode  # type: ignore[method-assign]
    expected = called(chunk, 4)
    with rule.applied(model, chunk):
        rule.begin()
        # Of one chunk of context nothing was known before: the same as computing it anew, up to rounding.
        assert torch.allclose(called(chunk, 4), expected, atol=1e-5)
        called(chunk, 8)
        called(chunk, 8)
        assert encoded == [(0, 1, 2, 3), (4, 5, 6, 7)]
        rule.begin()
        called(chunk, 4)
        assert encoded[2:] == [(0, 1, 2, 3)]
    assert torch.equal(called(chunk, 4), expected)


def test_every_peer_has_settings_that_can_be_asked_for() -> None:
    for name, rule in PEERS.items():
        for setting in rule.sweep:
            assert variant_of(f"{name}:{setting}" if setting else name)
    names = [each.name for each in variants_of(["peers"])]
    assert {"published", "inductor", "steps-1", "steps-2", "steps-3", "kv-reuse", *PEERS} < set(names)
    assert len(variants_of(["sweep"])) == 1 + sum(len(rule.sweep) for rule in PEERS.values())
    with pytest.raises(OptionError, match="did you mean 'threshold'"):
        variant_of("teacache:treshold=1")
    with pytest.raises(OptionError, match="no number"):
        variant_of('teacache:threshold="x"')
