"""Frames of several grids that attend to themselves together: a memory and new frames, rotated apart and joined."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differential import largest_difference, rewritten, run, trace, trace_function
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightint_compile import kernels
from lightint_compile.passes.analysis.attention_sites import AttentionSites, SiteKind
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import RemarkKind

SMALL = "sparse-attention{tile=2x2x2,min-tokens=0}"
PLANE = 4


def heads(video: Tensor) -> Tensor:
    """[1, 16, T, H, W] to two heads [1, 2, tokens, 8]."""
    tokens = F.conv3d(video, video.new_ones(16, 1, 1, 1, 1), groups=16).flatten(2).transpose(1, 2)
    return tokens.view(1, -1, 2, 8).transpose(1, 2)


def drawn(dtype: torch.dtype = torch.float64, **frames: int) -> dict[str, Tensor]:
    """A video of each name with so many frames; of ``text``, so many tokens."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        name: (1, 2, count, 8) if name == "text" else (1, 16, count, PLANE, PLANE) for name, count in frames.items()
    }
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def apart(memory: Tensor, new: Tensor) -> Tensor:
    """Attention of all frames over all, their places told by another angle each."""
    old, made = heads(memory), heads(new)
    query = torch.cat([old.sin(), made.cos()], 2)
    key = torch.cat([old.tanh(), made.sigmoid()], 2)
    return F.scaled_dot_product_attention(query, key, torch.cat([old, made], 2))


class Apart(nn.Module):
    """:func:`apart`, as a module."""

    def forward(self, memory: Tensor, new: Tensor) -> Tensor:
        return apart(memory, new)


def remarks_of(program: Program, kind: RemarkKind) -> list[Any]:
    _, result = rewritten(program, SMALL)
    return [each for each in result.remarks if each.kind is kind]


def dense_difference(program: Program, feeds: dict[str, Tensor]) -> float:
    """How far the rewritten graph is from the original when its operators read every key."""
    copy, result = rewritten(program, SMALL)
    assert result.modified
    with kernels.using("dense"):
        return largest_difference(run(copy, feeds), run(program, feeds))


def test_grids_that_are_joined_attend_as_one_of_more_frames():
    feeds = drawn(memory=5, new=6)
    program = trace_function(apart, feeds)
    (site,) = program.fact(AttentionSites)
    assert (site.kind, str(site.query_grid), str(site.key_grid)) == (SiteKind.PREFILL, "11x4x4", "11x4x4")
    assert site.own_grids == site.key_axis.grids and not site.context_grids
    copy, _ = rewritten(program, SMALL)
    (node,) = copy.calls(torch.ops.lightint.sparse_attention_segments.default)
    assert node.args[3:5] == ([11, 4, 4], [11, 4, 4])
    assert dense_difference(program, feeds) < 1e-12


def test_the_best_tiles_are_those_of_the_one_grid():
    """Joined and rotated as one grid, the same numbers choose the same tiles."""

    def together(video: Tensor) -> Tensor:
        tokens = heads(video)
        return F.scaled_dot_product_attention(tokens, tokens.cos(), tokens.sin())

    def in_two(video: Tensor) -> Tensor:
        old, made = heads(video[:, :, :5]), heads(video[:, :, 5:])
        key, value = torch.cat([old.cos(), made.cos()], 2), torch.cat([old.sin(), made.sin()], 2)
        return F.scaled_dot_product_attention(torch.cat([old, made], 2), key, value)

    feeds = drawn(video=11)
    copies = [rewritten(trace_function(call, feeds), SMALL)[0] for call in (in_two, together)]
    assert largest_difference(*(run(copy, feeds) for copy in copies)) < 1e-12


@pytest.mark.parametrize("memory", [3, 5, 8])
def test_numbers_of_frames_may_be_symbols(memory: int):
    feeds = drawn(memory=5, new=6)
    program = trace(Apart(), feeds, dynamic={"memory": [2], "new": [2]})
    (applied,) = remarks_of(program, RemarkKind.APPLIED)
    assert applied.rule == "prefill"
    assert dense_difference(program, drawn(memory=memory, new=11 - memory)) < 1e-12


def test_bfloat16():
    feeds = drawn(torch.bfloat16, memory=5, new=6)
    reference = run(trace_function(apart, drawn(memory=5, new=6)), {n: t.double() for n, t in feeds.items()})
    copy, _ = rewritten(trace_function(apart, feeds), SMALL)
    with kernels.using("dense"):
        found = run(copy, feeds)
    assert largest_difference([each.double() for each in found], reference) < 2e-2


# --- what is no block of frames ---------------------------------------------------------------------------------------


def attention(order: Callable[..., tuple[list[Tensor], list[Tensor]]]) -> Callable[..., Tensor]:
    """Queries and keys as ``order`` joins the heads of its arguments."""

    def call(memory: Tensor, new: Tensor, text: Tensor) -> Tensor:
        queries, keys = order(heads(memory), heads(new), text)
        key = torch.cat(keys, 2)
        return F.scaled_dot_product_attention(torch.cat(queries, 2), key, key.cos())

    return call


TWINS = {
    "keys in another order": (lambda a, b, text: ([a, b], [b, a]), "the queries' frames are not the last keys"),
    "queries that are no keys": (lambda a, b, text: ([a, b], [b, b]), "the queries' frames are not the last keys"),
    "more queries than keys": (lambda a, b, text: ([a, b], [b]), "the queries' frames are not the last keys"),
    "queries of the first frames": (lambda a, b, text: ([a, a], [a, b]), "the queries' frames are not the last keys"),
    "a part of the last": (lambda a, b, text: ([a, b[:, :, :32]], [a, b]), "the queries' frames are not the last"),
    "text between queries": (lambda a, b, text: ([a, text, b], [a, b]), "tokens without a grid lie between frames: q"),
    "text between keys": (lambda a, b, text: ([a, b], [a, text, b]), "tokens without a grid lie between frames: keys"),
}


@pytest.mark.parametrize("twin", TWINS)
def test_what_is_no_block_stays_dense_with_the_reason(twin: str):
    order, reason = TWINS[twin]
    program = trace_function(attention(order), drawn(memory=5, new=6, text=7))
    (missed,) = remarks_of(program, RemarkKind.MISSED)
    assert missed.rule == "several-grids" and reason in missed.message


def test_frames_of_another_plane_stay_dense():
    feeds = drawn(memory=5) | {"new": torch.randn(1, 16, 6, 2, 2, dtype=torch.float64)}
    (missed,) = remarks_of(trace_function(apart, feeds), RemarkKind.MISSED)
    assert "several grids share the axes" in missed.message


# --- drawn ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    frames=st.lists(st.integers(2, 5), min_size=2, max_size=4),
    asked=st.integers(1, 4),
    cut=st.integers(0, 3),
    query_text=st.sampled_from(["", "front", "behind"]),
    key_text=st.sampled_from(["", "front", "behind"]),
)
def test_any_last_grids_are_queries(frames: list[int], asked: int, cut: int, query_text: str, key_text: str):
    """The last of several grids, the first of them without some frames, with text on either side of both."""
    asked = min(asked, len(frames))
    cut = min(cut, frames[-asked] - 1)
    starts = list(itertools.accumulate(frames, initial=0))

    def beside(parts: list[Tensor], text: Tensor, side: str) -> Tensor:
        return torch.cat({"": parts, "front": [text, *parts], "behind": [*parts, text]}[side], 2)

    def call(text: Tensor, video: Tensor) -> Tensor:
        made = [heads(video[:, :, start:stop]) for start, stop in itertools.pairwise(starts)]
        first, *more = made[-asked:]
        queries = [first[:, :, cut * PLANE * PLANE :].sin(), *(each.cos() for each in more)]
        key, value = (beside(each, text, key_text) for each in ([x.tan() for x in made], [x.exp() for x in made]))
        return F.scaled_dot_product_attention(beside(queries, text, query_text), key, value)

    feeds = drawn(text=7, video=sum(frames))
    program = trace_function(call, feeds)
    (site,) = program.fact(AttentionSites)
    assert site.query_grid is not None and site.query_grid.frames == sum(frames[-asked:]) - cut
    assert site.kind is (SiteKind.DENOISE if asked < len(frames) else SiteKind.PREFILL)
    copy, result = rewritten(program, SMALL)
    if result.modified:
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-12
