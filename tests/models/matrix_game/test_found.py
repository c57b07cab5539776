"""What the exact passes find in a later clip by themselves: cameras and text once, and no row that nothing reads."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
import torch.fx as fx
from differential import feeds_of, largest_difference, rewritten, run, trace

from lightint_compile.models.registry import world_model
from lightint_compile.passes.ir.flops import program_flops
from lightint_compile.passes.ir.program import Program

EXACT = "canonicalize-attention,sink-row-repeats,hoist-invariants,dead-tail"
MODEL = world_model("matrix-game:tiny")
LINEAR = torch.ops.aten.linear.default


@pytest.fixture(scope="module")
def programs() -> tuple[Program, Program]:
    program = trace(MODEL.module(), MODEL.example_inputs(25))
    return program, rewritten(program, EXACT)[0]


def linears(program: Program, module: str) -> Counter[int]:
    """Rows of the products with weights of modules of this name, and how many there are."""
    return Counter(node.meta["val"].shape[1] for node in program.calls(LINEAR) if module in weight_of(program, node))


def weight_of(program: Program, node: fx.Node) -> str:
    """The path of a product's weight, which may be widened first."""
    weight = node.args[1]
    while weight.op != "placeholder":
        (weight,) = weight.all_input_nodes
    return program.input_of(weight).path


@pytest.mark.parametrize("module", ["cam_injector_layer1", "cam_scale_layer", "patch_embedding_wancamctrl"])
def test_cameras_are_looked_at_once_a_clip(programs: tuple[Program, Program], module: str) -> None:
    before, after = (linears(program, module) for program in programs)
    assert before[120] == 3 * after.total() and after.total() in (1, 2)


@pytest.mark.parametrize("module", ["cross_attn.k", "cross_attn.v", "text_embedding"])
def test_text_is_read_once(programs: tuple[Program, Program], module: str) -> None:
    before, after = (linears(program, module) for program in programs)
    assert before.total() == 3 * after.total() > 0


@pytest.mark.parametrize("module", ["time_embedding", "time_projection"])
def test_times_are_embedded_once_each(programs: tuple[Program, Program], module: str) -> None:
    # Those of memory, of clean and of noisy frames, and of padding.
    before, after = (linears(program, module) for program in programs)
    assert set(before) == {120} and set(after) == {4} and before.total() == after.total() > 0


def test_padding_and_dropped_predictions_are_not_computed(programs: tuple[Program, Program]) -> None:
    # 19 of 20 frames of 6 tokens; of the last block 10 frames, which is what a clip adds.
    before, after = (linears(program, "blocks.1.ffn") for program in programs)
    assert before == {120: 6} and after == {60: 6}
    before, after = (linears(program, "blocks.0.ffn") for program in programs)
    assert before == {120: 6} and after == {114: 6}
    assert linears(programs[1], "blocks.1.self_attn.k") == {114: 3}


@pytest.mark.slow
def test_a_later_clip_of_the_released_size_takes_15_percent_less() -> None:
    model = world_model("matrix-game:5b-720p")
    program = trace(model.module("meta", torch.bfloat16), model.example_inputs(25, "meta", torch.bfloat16))
    before, after = (program_flops(each)["total"] for each in (program, rewritten(program, EXACT)[0]))
    assert after <= 0.85 * before


@pytest.mark.slow
def test_projections_of_8_bit_are_seen_through(programs: tuple[Program, Program]) -> None:
    config = dataclasses.replace(MODEL.config, int8=True)
    before = trace(dataclasses.replace(MODEL, config=config).module(), MODEL.example_inputs(25))
    after, _ = rewritten(before, EXACT)
    rows = Counter(node.meta["val"].shape[0] for node in after.calls(torch.ops.aten._int_mm.default))
    # Of two blocks q, k, v, o of self-attention and q, o of cross-attention in each step; k, v of the text once.
    assert rows == {19 * 6: 8 * 3, 10 * 6: 4 * 3, 8: 4}
    assert program_flops(after) == program_flops(programs[1])


@pytest.mark.slow
def test_projections_in_float32_stay_so_and_weights_are_widened_once() -> None:
    module, inputs = MODEL.module(dtype=torch.bfloat16), MODEL.example_inputs(25, dtype=torch.bfloat16)
    before = trace(module, inputs)
    after, _ = rewritten(before, EXACT)
    for projection in ("self_attn.q", "self_attn.o", "time_projection", "head.head"):
        found = [node for node in after.calls(LINEAR) if projection in weight_of(after, node)]
        assert found and {node.meta["val"].dtype for node in found} == {torch.float32}
        assert len({node.args[1] for node in found}) == len({weight_of(after, node) for node in found})
    feeds = feeds_of(module, inputs)
    assert largest_difference(run(after, feeds), run(before, feeds)) == 0


def test_the_numbers_are_the_same(programs: tuple[Program, Program]) -> None:
    feeds = feeds_of(MODEL.module(), MODEL.example_inputs(25))
    assert largest_difference(run(programs[1], feeds), run(programs[0], feeds)) < 1e-6
