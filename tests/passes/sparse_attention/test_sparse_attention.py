from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import worldplay_tiny
import zoo
from differential import feeds_of, largest_difference, rewritten, run, trace_function
from torch import Tensor

from lightint_compile import capture, kernels
from lightint_compile.errors import OptionError
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.passes.sparse_attention import SparseAttention

SMALL = "sparse-attention{tile=2x2x2,min-tokens=0}"
WHOLE = torch.ops.lightint.sparse_attention.default
SEGMENTS = torch.ops.lightint.sparse_attention_segments.default
PREPARED = torch.ops.lightint.sparse_attention_prepared.default
POOL = torch.ops.lightint.pool_tiles.default
DENSE = torch.ops.aten.scaled_dot_product_attention.default


def patches(video: Tensor) -> Tensor:
    """[1, 16, T, H, W] to two heads [1, 2, tokens, 8]."""
    tokens = F.avg_pool3d(video, 1).flatten(2).transpose(1, 2)
    return tokens.view(1, -1, 2, 8).transpose(1, 2)


def denoise(current: Tensor, context: Tensor, text: Tensor) -> Tensor:
    query = patches(current)
    key = torch.cat([text, patches(context), query], 2)
    value = torch.cat([text, patches(context), query.cos()], 2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def inputs(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


DENOISE = {"current": (1, 16, 4, 4, 4), "context": (1, 16, 8, 4, 4), "text": (1, 2, 5, 8)}


def only(program: Program, target: Any) -> Any:
    (node,) = program.calls(target)
    return node


def dense_difference(program: Program, feeds: dict[str, Any], text: str = SMALL) -> float:
    """How far the rewritten graph is from the original when its operators read every key: 0 unless wired wrong."""
    copy, result = rewritten(program, text)
    assert result.modified
    with kernels.using("dense"):
        return largest_difference(run(copy, feeds), run(program, feeds))


def missed(remarks: tuple[Remark, ...]) -> dict[str, str]:
    return {remark.rule: remark.message for remark in remarks if remark.kind is RemarkKind.MISSED}


# --- what is written ----------------------------------------


def test_a_denoising_step_reads_its_segments_without_the_concatenation():
    feeds = inputs(**DENOISE)
    program = trace_function(denoise, feeds)
    copy, _ = rewritten(program, SMALL)
    node = only(copy, SEGMENTS)
    assert [key.meta["val"].shape[2] for key in node.args[1]] == [5, 128, 64]
    assert node.args[3:7] == ([4, 4, 4], [12, 4, 4], 5, [2, 2, 2])
    # coverage, protected frames, neighbours, scale, context's density, means of skipped tiles, sparse from 0 keys on
    assert node.args[8:] == (None, 0, 1, None, 0.05, 2, 0)
    assert not list(copy.calls(DENSE))
    assert dense_difference(program, feeds) < 1e-6


def part_of(rows: slice) -> Any:
    """Queries that are some rows of the grid of 12 frames of 4x4: what is left where others are not read."""

    def call(video: Tensor, text: Tensor) -> Tensor:
        tokens = patches(video)
        key, value = torch.cat([text, tokens], 2), torch.cat([text, tokens.cos()], 2)
        return F.scaled_dot_product_attention(tokens[:, :, rows], key, value)

    return call


def split_in_two(video: Tensor, text: Tensor) -> Tensor:
    past, current = patches(video[:, :, :8]), patches(video[:, :, 8:])
    key, value = torch.cat([text, past, current], 2), torch.cat([text, past.cos(), current.cos()], 2)
    return F.scaled_dot_product_attention(current, key, value)


PART = {"video": (1, 16, 12, 4, 4), "text": (1, 2, 5, 8)}


def test_queries_that_are_the_last_frames_read_the_best_tiles_of_all():
    feeds = inputs(**PART)
    program = trace_function(part_of(slice(8 * 16, None)), feeds)
    copy, _ = rewritten(program, SMALL)
    node = only(copy, SEGMENTS)
    assert node.args[3:7] == ([4, 4, 4], [12, 4, 4], 5, [2, 2, 2])
    assert dense_difference(program, feeds) < 1e-6
    # As if the frames in front of them were another grid, under one density for all.
    other, _ = rewritten(trace_function(split_in_two, feeds), SMALL.replace("}", ",context-density=none}"))
    with kernels.using("gather"):
        assert largest_difference(run(copy, feeds), run(other, feeds)) < 1e-6


@pytest.mark.parametrize("rows", [slice(0, 64), slice(64, 128), slice(8 * 16 + 4, None)], ids=str)
def test_queries_that_are_other_rows_stay_dense(rows: slice):
    program = trace_function(part_of(rows), inputs(**PART))
    copy, result = rewritten(program, SMALL)
    assert not result.modified and only(copy, DENSE)
    (reason,) = missed(result.remarks).values()
    assert "not the last keys" in reason or "frame" in reason


def two_steps(current: Tensor, context: Tensor, text: Tensor, other: Tensor) -> Tensor:
    """Two denoising steps over one context, and one over another."""
    results = []
    for shift, frames in ((0.0, context), (0.5, context), (1.0, other)):
        query, past = patches(current + shift), patches(frames)
        key = torch.cat([text, past, query], 2)
        results.append(F.scaled_dot_product_attention(query, key, torch.cat([text, past.cos(), query.cos()], 2)))
    return torch.stack(results)


def test_context_that_several_steps_read_is_pooled_once():
    feeds = inputs(**DENOISE, other=DENOISE["context"])
    program = trace_function(two_steps, feeds)
    copy, result = rewritten(program, f"hoist-invariants,{SMALL}")
    pools = list(copy.calls(POOL))
    assert [pool.args[1:] for pool in pools] == [([8, 4, 4], tile) for tile in ([2, 2, 2], [1, 2, 2], [1, 2, 2])]
    readers = list(copy.calls(PREPARED))
    assert [(node.args[3], *node.args[-3:-1]) for node in readers] == [tuple(pools)] * 2
    assert all((node.args[1][1], node.args[2][1]) == (pools[0].args[0], pools[2].args[0]) for node in readers)
    assert only(copy, SEGMENTS)  # what nobody else reads is pooled where it is read
    applied = [
        remark.args["context_pool_readers"] for remark in result.remarks if remark.pass_name == SparseAttention.name
    ]
    assert sorted(applied) == [1, 2, 2]
    assert dense_difference(program, feeds, f"hoist-invariants,{SMALL}") < 1e-6
    apart, _ = rewritten(program, SMALL)  # not merged: three contexts, none shared
    assert not list(apart.calls(POOL))
    with kernels.using("gather"):
        assert largest_difference(run(copy, feeds), run(apart, feeds)) == 0


def test_context_that_is_cut_across_operands_is_not_pooled_beforehand():
    def steps(current: Tensor, context: Tensor, text: Tensor) -> Tensor:
        past = torch.cat([text, patches(context)], 2).clone()
        results = []
        for query in (patches(current), patches(current + 1)):
            key = torch.cat([past, query], 2)
            results.append(F.scaled_dot_product_attention(query, key, key))
        return torch.stack(results)

    copy, result = rewritten(trace_function(steps, inputs(**DENOISE)), SMALL)
    assert len(list(copy.calls(SEGMENTS))) == 2 and not list(copy.calls(POOL))
    assert [remark.args["context_pool_readers"] for remark in result.remarks] == [0, 0]


def test_a_value_that_is_no_concatenation_is_read_whole():
    def step(current: Tensor, context: Tensor, text: Tensor) -> Tensor:
        query = patches(current)
        key = torch.cat([text, patches(context), query], 2)
        return F.scaled_dot_product_attention(query, key, key.sin())

    copy, _ = rewritten(trace_function(step, inputs(**DENOISE)), SMALL)
    assert only(copy, WHOLE).args[5] == 5


@pytest.mark.parametrize("first", [True, False])
def test_text_queries_stay_dense_and_join_again_on_either_side(first: bool):
    def joint(current: Tensor, text: Tensor) -> Tensor:
        parts = [text, patches(current)] if first else [patches(current), text]
        tokens = torch.cat(parts, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens.cos())

    feeds = inputs(current=(1, 16, 4, 4, 4), text=(1, 2, 5, 8))
    program = trace_function(joint, feeds)
    copy, _ = rewritten(program, SMALL)
    assert only(copy, DENSE).args[0].meta["val"].shape[2] == 5
    assert only(copy, WHOLE if first else SEGMENTS).args[5] == 5
    assert dense_difference(program, feeds) < 1e-6


def test_text_behind_the_keys_moves_to_the_front_piece_by_piece():
    def joint(current: Tensor, text: Tensor) -> Tensor:
        query = patches(current)
        key = torch.cat([query.transpose(1, 2), text.transpose(1, 2)], 1).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, key)

    feeds = inputs(current=(1, 16, 4, 4, 4), text=(1, 2, 5, 8))
    program = trace_function(joint, feeds)
    copy, _ = rewritten(program, SMALL)
    assert [key.meta["val"].shape[2] for key in only(copy, SEGMENTS).args[1]] == [5, 64]
    assert not list(copy.calls(torch.ops.aten.cat.default))
    assert dense_difference(program, feeds) < 1e-6


BOTH = {**DENOISE, "front": (1, 2, 3, 8)}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_text_on_both_sides_of_the_keys_moves_to_the_front(whole: bool, masked: bool):
    """Large patches of old chunks in front of the frames, rows of padding behind them."""

    def step(current: Tensor, context: Tensor, text: Tensor, front: Tensor, allowed: Tensor) -> Tensor:
        query = patches(current)
        key = torch.cat([front, patches(context), query, text], 2)
        value = torch.cat([front, patches(context), query.cos(), text.sin()], 2)
        key, value = (key * 2, value.sin()) if whole else (key, value)
        return F.scaled_dot_product_attention(query, key, value, allowed if masked else None)

    allowed = torch.ones(1, 1, 1, 200, dtype=torch.bool)
    allowed[..., 1], allowed[..., -2] = False, False
    feeds = {**inputs(**BOTH), "allowed": allowed}
    program = trace_function(step, feeds)
    copy, _ = rewritten(program, SMALL)
    target = torch.ops.lightint.sparse_attention_masked.default if masked else SEGMENTS
    lengths = [key.meta["val"].shape[2] for key in only(copy, target).args[1]]
    assert lengths == ([3, 5, 192] if whole else [3, 5, 128, 64])
    assert dense_difference(program, feeds) < 1e-6


@pytest.mark.parametrize("behind", [0, 4])
def test_tokens_on_one_side_may_be_counted_by_a_symbol(behind: int):
    def step(current: Tensor, text: Tensor) -> Tensor:
        query = patches(current)
        key = torch.cat([text, query, query[:, :, :behind].sin()], 2) * 2
        return F.scaled_dot_product_attention(query, key, key.cos())

    feeds = inputs(current=(1, 16, 4, 4, 4), text=(1, 2, 5, 8))
    program = capture.trace(step, (), feeds, dynamic={"text": 2})
    copy, result = rewritten(program, SMALL)
    assert result.modified
    for tokens in (5, 9):
        feeds = inputs(current=(1, 16, 4, 4, 4), text=(1, 2, tokens, 8))
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-6


def test_text_on_both_sides_of_the_queries_stays():
    def joint(current: Tensor, text: Tensor, front: Tensor) -> Tensor:
        tokens = torch.cat([front, patches(current), text], 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)

    feeds = {name: value for name, value in inputs(**BOTH).items() if name != "context"}
    _, result = rewritten(trace_function(joint, feeds), SMALL)
    assert "queries 3 | 4x4x4 | 5" in missed(result.remarks)["text-on-both-sides"]


@pytest.mark.parametrize("name", ["wan", "cogvideox", pytest.param("cosmos", marks=pytest.mark.slow)])
def test_real_models_compute_the_same_when_every_key_is_read(name: str):
    module, kwargs = zoo.build(name)
    feeds = feeds_of(module, kwargs)
    program = zoo.program(name)
    assert dense_difference(program, feeds, "sparse-attention{tile=2x2x2,min-tokens=0,density=0.6}") == 0
    sparse, _ = rewritten(program, "sparse-attention{tile=2x2x2,min-tokens=0,density=0.6}")
    with kernels.using("gather"):
        skipped = largest_difference(run(sparse, feeds)[:1], run(program, feeds)[:1])
    assert 0 < skipped < 0.1


def test_a_world_model_with_a_symbolic_history():
    program = worldplay_tiny.program()
    copy, result = rewritten(program, SMALL)
    depth, steps = worldplay_tiny.CONFIG.depth, worldplay_tiny.CONFIG.steps
    applied = [remark for remark in result.remarks if remark.kind is RemarkKind.APPLIED]
    assert [remark.rule for remark in applied].count("prefill") == depth
    assert [remark.rule for remark in applied].count("denoise") == depth * steps
    prefills, denoises, pools = (list(copy.calls(target)) for target in (SEGMENTS, PREPARED, POOL))
    assert {node.args[5] for node in prefills} == {node.args[6] for node in denoises} == {19}
    assert {len(node.args[1]) for node in prefills} == {2} and {len(node.args[1]) for node in denoises} == {3}
    assert len(pools) == 3 * depth and all(len(pool.users) == steps for pool in pools)
    assert all(node.args[3].args[0] in node.args[1] and node.args[-2].args[0] in node.args[2] for node in denoises)
    for history in (8, 12):
        feeds = feeds_of(worldplay_tiny.module(), worldplay_tiny.inputs(history))
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-12


# --- what is kept ----------------------------------------


PUBLISHED = "context-density=0.175,keep-current=true,"


@pytest.mark.parametrize(
    ("options", "frames", "kept"),
    [(PUBLISHED, 8, 70), (PUBLISHED, 12, 79), (PUBLISHED, 20, 97), ("", 8, 57), ("", 12, 59), ("", 20, 65)],
)
def test_the_budget_of_a_denoising_step(options: str, frames: int, kept: int):
    shapes = {"current": (1, 16, 4, 30, 52), "context": (1, 16, frames, 30, 52), "text": (1, 2, 850, 8)}
    with torch.device("meta"):
        program = trace_function(denoise, {name: torch.empty(shape) for name, shape in shapes.items()})
    copy, result = rewritten(program, f"sparse-attention{{{options}min-tokens=0}}")
    assert result.remarks[0].args["kept_blocks"] == kept
    assert only(copy, SEGMENTS).args[9] == (4 if options else 0), "frames that are always read"
    assert result.remarks[0].args["key_blocks"] == (frames + 4) // 4 * 52


def test_a_prefill_keeps_a_share_of_everything():
    def prefill(video: Tensor) -> Tensor:
        tokens = patches(video)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)

    _, result = rewritten(trace_function(prefill, inputs(video=(1, 16, 8, 8, 8))), f"{SMALL[:-1]},density=0.25}}")
    (remark,) = result.remarks
    assert (remark.rule, remark.args["kept_blocks"], remark.args["key_blocks"]) == ("prefill", 16, 64)
    assert remark.flops_before == 2 * 2 * 512 * 512 * 16
    assert remark.flops_after == 2 * 2 * 512 * (16 * 8 + 2 * 64) * 16  # tokens of 16 tiles, two means of 64


def test_without_a_context_share_the_density_applies_to_all_keys():
    program = trace_function(denoise, inputs(**DENOISE))
    copy, _ = rewritten(program, f"{SMALL[:-1]},context-density=none,density=0.5,protect-frames=1,neighbours=0}}")
    assert only(copy, SEGMENTS).args[7:11] == (0.5, None, 1, 0)


# --- what is left ----------------------------------------


def test_masks_dropout_and_text_stay_dense_with_a_reason():
    def attend(video: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        tokens = patches(video)
        masked = F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask)
        dropped = F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.5)
        words = F.linear(text, torch.ones(8, 8))
        crossed = F.scaled_dot_product_attention(tokens, words, words)
        causal = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True)
        return masked + dropped + crossed + causal + F.scaled_dot_product_attention(text, text, text).sum()

    arguments = inputs(video=(1, 16, 4, 4, 4), text=(1, 2, 5, 8), mask=(1, 1, 1, 64))
    program = trace_function(attend, arguments)
    _, result = rewritten(program, SMALL)
    assert not result.modified
    assert [remark.rule for remark in result.remarks] == ["mask", "dropout", "cross-attention", "mask", "no-grid"]
    assert result.remarks[0].message == "stays dense: it has a additive mask of 1x1x1x64"
    assert result.remarks[0].flops_before == 2 * 2 * 64 * 64 * 16


def test_short_sites_the_first_blocks_and_tiles_that_keep_all_stay_dense():
    program = zoo.program("wan")
    assert "too-short" in missed(rewritten(program, "sparse-attention{tile=2x2x2,min-frame-tiles=16}")[1].remarks)
    assert "too-short" in missed(rewritten(program, "sparse-attention{tile=2x2x2,min-tokens=257}")[1].remarks)
    assert "nothing-to-skip" in missed(rewritten(program, "sparse-attention{tile=4x8x8,min-tokens=0}")[1].remarks)
    assert "coarse-tiles" in missed(rewritten(program, "sparse-attention{tile=2x2x4}")[1].remarks)
    assert "too-short" in missed(rewritten(program, "sparse-attention{tile=2x2x4,min-frame-tiles=8}")[1].remarks)
    assert "coarse-tiles" not in missed(rewritten(program, "sparse-attention{tile=2x2x4,min-tokens=0}")[1].remarks)
    first = rewritten(program, f"{SMALL[:-1]},skip-first=1}}")[1].remarks
    applied = [remark.module_path for remark in first if remark.kind is RemarkKind.APPLIED]
    assert "skip-first" in missed(first)
    assert applied == ["blocks.1.attn1"]


def test_a_length_that_depends_on_data_stays_dense():
    assert "data-dependent" in missed(rewritten(zoo.program("mochi"), SMALL)[1].remarks)


def test_a_second_run_changes_nothing():
    copy, _ = rewritten(zoo.program("cogvideox"), SMALL)
    assert not Pipeline.parse(SMALL).run(copy, strict=True).modified


def test_the_pass_prints_and_parses():
    text = "sparse-attention{density=0.2,context-density=none,tile=4x4x8,min-tokens=0,skip-first=1}"
    (step,) = Pipeline.parse(text).passes
    assert step == SparseAttention(density=0.2, context_density=None, tile=(4, 4, 8), min_tokens=0, skip_first=1)
    assert str(Pipeline((step,))).lower() == text


@pytest.mark.parametrize("options", [{"density": 0.0}, {"coverage": 1.5}, {"tile": (4, 8)}, {"neighbours": -1}])
def test_bad_options_are_refused(options: dict[str, Any]):
    with pytest.raises(OptionError):
        SparseAttention(**options)
