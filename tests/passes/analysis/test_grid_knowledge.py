"""What the token grid knows of joined grids, folded batches, windows of buffers, padding and known indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from differential import trace, trace_function
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile.passes.analysis.attention_sites import AttentionSites
from lightint_compile.passes.analysis.token_axis import TokenAxis
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.analysis.token_spans import folded as stretches_of

ARGUMENTS = {
    "video": torch.zeros(2, 4, 4, 8, 8),
    "weight": torch.zeros(16, 4, 1, 2, 2),
    "past": torch.zeros(2, 4, 2, 8, 8),
    "text": torch.zeros(2, 5, 16),
}


def patchify(video: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(video, weight, stride=(1, 2, 2)).flatten(2).transpose(1, 2)


def facts(function: Callable[..., Any], **more: Tensor) -> tuple[TokenGrid, Any]:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    program = trace_function(function, {name: (ARGUMENTS | more)[name] for name in names})
    return program.fact(TokenGrid), program.graph.output_node().args[0][0]  # type: ignore[index]


def axis(function: Callable[..., Any], number: int = 1, **more: Tensor) -> TokenAxis:
    fact, output = facts(function, **more)
    found = fact.of(output, number)
    assert found is not None
    return found


# --- grids of equal height and width, joined -------------------------------------------------------------------------


def joined(past: Tensor, video: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([patchify(past, weight), patchify(video, weight)], 1)


def test_joined_grids_are_one_block_of_more_frames() -> None:
    found = axis(lambda past, video, weight: joined(past, video, weight))
    assert str(found) == "2x4x4 | 4x4x4"
    assert found.block is not None and str(found.block) == "6x4x4"


def test_frames_of_joined_grids_are_seen_by_themselves_and_come_back() -> None:
    def by_frame(past: Tensor, video: Tensor, weight: Tensor) -> Tensor:
        frames = joined(past, video, weight).view(2, 6, 16, 16)
        return F.layer_norm(frames, (16,)).transpose(1, 2).transpose(1, 2).flatten(1, 2)

    assert str(axis(by_frame)) == "2x4x4 | 4x4x4"

    def rows_apart(past: Tensor, video: Tensor, weight: Tensor) -> Tensor:
        return joined(past, video, weight).view(2, 6, 4, 4, 16).sin().reshape(2, 96, 16)

    assert str(axis(rows_apart)) == "2x4x4 | 4x4x4"


def test_some_frames_of_joined_grids_are_frames_of_each() -> None:
    def some(past: Tensor, video: Tensor, weight: Tensor) -> Tensor:
        return joined(past, video, weight).view(2, 6, 16, 16)[:, 1:4].flatten(1, 2)

    found = axis(some)
    assert str(found) == "1x4x4 | 2x4x4"
    assert [grid.first_frame for grid in found.grids] == [1, 0]
    alone = axis(lambda past, video, weight: joined(past, video, weight).view(2, 6, 16, 16)[:, 3:].flatten(1, 2))
    assert str(alone) == "3x4x4" and alone.grid and alone.grid.first_frame == 1


def test_grids_of_other_planes_and_text_are_no_frames() -> None:
    def other(past: Tensor, video: Tensor, weight: Tensor) -> Tensor:
        wide = patchify(past[..., :4], weight)
        return torch.cat([wide, patchify(video, weight)], 1).view(2, 5, 16, 16).flatten(1, 2)

    assert not axis(other).grids
    found = axis(lambda past, video, weight: torch.cat([patchify(past[..., :4], weight), patchify(video, weight)], 1))
    assert str(found) == "2x4x2 | 4x4x4" and found.block is None

    def of_text(text: Tensor, video: Tensor, weight: Tensor) -> Tensor:
        rows = text.repeat(1, 4, 1)[:, :16]
        return torch.cat([rows, patchify(video, weight)], 1).view(2, 5, 16, 16).flatten(1, 2)

    assert not axis(of_text).grids


# --- a batch in front of the tokens of each element ------------------------------------------------------------------


def test_a_batch_folded_into_the_tokens_is_found_and_comes_back() -> None:
    def folded(video: Tensor, weight: Tensor, text: Tensor) -> Tensor:
        tokens = torch.cat([text, patchify(video, weight)], 1)
        return tokens.reshape(2 * 69, 2, 8)

    fact, output = facts(folded)
    (batch, inner), whole = stretches_of(fact.axes[output][0]), fact.of(output, 0)
    assert (batch, str(inner)) == (2, "5 | 4x4x4")
    assert whole is not None and whole.why_not == "2 times 5 | 4x4x4 lie one behind the other"
    assert stretches_of(fact.axes[output][1]) is None

    def back(video: Tensor, weight: Tensor, text: Tensor) -> Tensor:
        return folded(video, weight, text).sin().view(2, 69, 16)

    assert str(axis(back)) == "5 | 4x4x4"
    alone, output = facts(lambda video, weight: patchify(video, weight).reshape(128, 16))
    assert [str(each) for each in stretches_of(alone.axes[output][0])] == ["2", "4x4x4"]


# --- windows of a buffer ---------------------------------------------------------------------------------------------


class Cache(nn.Module):
    """Keys written behind those of the past, whose number is known only when it runs."""

    def forward(self, video: Tensor, weight: Tensor, cache: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        tokens, start = patchify(video, weight), past.shape[0]
        cache = cache.slice_scatter(tokens, 1, start, start + 64)
        window = cache[:, : start + 64]
        return window, window[:, start:]


class InPlace(nn.Module):
    """The same in the caller's buffer."""

    def forward(self, video: Tensor, weight: Tensor, cache: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        tokens, start = patchify(video, weight), past.shape[0]
        cache[:, start : start + 64] = tokens
        window = cache[:, : start + 64]
        return window, window[:, start:]


@pytest.mark.parametrize("kind", [Cache, InPlace])
def test_a_window_written_at_a_place_known_at_run_time_is_read_again(kind: type[nn.Module]) -> None:
    inputs = {"video": ARGUMENTS["video"], "weight": ARGUMENTS["weight"]}
    inputs |= {"cache": torch.zeros(2, 200, 16), "past": torch.zeros(7)}
    program = trace(kind(), inputs, dynamic={"past": 0})
    fact, (window, own) = program.fact(TokenGrid), program.graph.output_node().args[0]  # type: ignore[misc]
    found, again = fact.of(window, 1), fact.of(own, 1)
    assert found is not None and [str(span.grid) for span in found.spans] == ["None", "4x4x4"]
    assert [span.kept for span in found.spans] == [True, False]
    assert not isinstance(found.prefix, int)
    assert again is not None and str(again) == "4x4x4"


def test_a_buffer_that_is_written_all_over_holds_what_was_written() -> None:
    def filled(video: Tensor, weight: Tensor, text: Tensor) -> Tensor:
        buffer = torch.zeros(2, 69, 16)
        return buffer.slice_scatter(text, 1, 0, 5).slice_scatter(patchify(video, weight), 1, 5, 69)

    found = axis(filled)
    assert found.grid and (found.prefix, found.suffix) == (5, 0)
    numbered = axis(
        lambda video, weight: torch.zeros(2, 64, 16).index_copy(1, torch.arange(64), patchify(video, weight))
    )
    assert str(numbered) == "4x4x4"


def test_attention_over_a_window_with_kept_tokens_that_are_no_frames_is_a_cache() -> None:
    def attend(video: Tensor, weight: Tensor, square: Tensor, cache: Tensor) -> Tensor:
        tokens = F.linear(patchify(video, weight), square)[:, None]
        keys = cache.slice_scatter(tokens, 2, 40, 104)[:, :, :104]
        return F.scaled_dot_product_attention(tokens, keys, keys)

    arguments = {"video": ARGUMENTS["video"], "weight": ARGUMENTS["weight"], "square": torch.zeros(16, 16)}
    arguments |= {"cache": torch.zeros(2, 1, 128, 16)}
    (site,) = trace_function(attend, arguments).fact(AttentionSites)
    assert str(site.kind) == "cache" and "own tokens are among the keys" in site.reason
    assert str(site.key_axis) == "40 | 4x4x4"


# --- padding, and indices that are known -----------------------------------------------------------------------------


def test_padding_rows_stay_apart_and_are_cut_off_again() -> None:
    found = axis(lambda video, weight: F.pad(patchify(video, weight), (0, 0, 2, 6)))
    assert str(found) == "2 | 4x4x4 | 6" and [span.note for span in found.spans] == ["padding", "", "padding"]
    assert str(axis(lambda video, weight: F.pad(patchify(video, weight), (0, 0, 2, 6)).sin()[:, 2:-6])) == "4x4x4"


@pytest.mark.parametrize(("first", "last", "grid"), [(32, 64, "2x4x4"), (0, 16, "1x4x4"), (8, 24, "None")])
def test_tokens_picked_by_numbers_that_are_a_run_are_a_slice(first: int, last: int, grid: str) -> None:
    found = axis(lambda video, weight: patchify(video, weight).index_select(1, torch.arange(first, last)))
    assert str(found.grid) == grid
    assert not found.grid or found.grid.first_frame == first // 16
