from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differential import trace, trace_function
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightint_compile.passes.analysis.axes.factors import extent
from lightint_compile.passes.analysis.grid_axes.axes import Atom, Origin, cut, join, regroup
from lightint_compile.passes.analysis.token_axis import TokenAxis
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.sizes import quotient, same

VIDEO = torch.zeros(1, 4, 4, 8, 8)
PATCH = torch.zeros(16, 4, 1, 2, 2)


def last(function: Callable[..., Any], axis: int, **arguments: Tensor) -> TokenAxis:
    """What the axis of the function's output holds."""
    program = trace_function(function, arguments)
    output = program.graph.output_node().args[0][0]  # type: ignore[index]
    found = program.fact(TokenGrid).of(output, axis)
    assert found is not None
    return found


def patchify(video: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(video, weight, stride=(1, 2, 2)).flatten(2).transpose(1, 2)


def test_a_convolution_over_a_volume_says_frames_rows_and_columns():
    found = last(lambda video, weight: patchify(video, weight), 1, video=VIDEO, weight=PATCH)
    assert str(found) == "4x4x4"
    assert found.grid and found.grid.seed == "conv3d"


def test_the_grid_reaches_heads_and_comes_back():
    def heads(video: Tensor, weight: Tensor, square: Tensor) -> Tensor:
        tokens = F.linear(F.layer_norm(patchify(video, weight), (16,)), square)
        return tokens.view(1, -1, 2, 8).transpose(1, 2)

    arguments = {"video": VIDEO, "weight": PATCH, "square": torch.zeros(16, 16)}
    assert str(last(heads, 2, **arguments)) == "4x4x4"
    assert not last(heads, 1, **arguments).grids
    assert (
        str(last(lambda video, weight, square: heads(video, weight, square).transpose(1, 2).flatten(2), 1, **arguments))
        == "4x4x4"
    )


def test_views_and_permutations_of_a_video_are_a_grid_in_both_layouts():
    def channels_first(video: Tensor) -> Tensor:
        cut = video.reshape(1, 4, 4, 1, 4, 2, 4, 2).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return cut.flatten(4).flatten(1, 3)

    def channels_last(video: Tensor) -> Tensor:
        cut = video.reshape(1, 4, 1, 4, 2, 4, 2, 4).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return cut.flatten(4).flatten(1, 3)

    assert str(last(channels_first, 1, video=VIDEO)) == "4x4x4"
    assert str(last(channels_last, 1, video=torch.zeros(1, 4, 8, 8, 4))) == "4x4x4"


def test_frames_in_front_of_a_plane_are_a_grid_and_a_plane_alone_is_one_frame():
    def by_frame(video: Tensor, weight: Tensor) -> Tensor:
        planes = F.conv2d(video.reshape(-1, 4, 8, 8), weight, stride=2).flatten(2).transpose(1, 2)
        return planes.reshape(1, 4, 16, 16)

    arguments = {"video": torch.zeros(1, 4, 4, 8, 8), "weight": torch.zeros(16, 4, 2, 2)}
    assert str(last(lambda video, weight: by_frame(video, weight).flatten(1, 2), 1, **arguments)) == "4x4x4"
    assert str(last(by_frame, 2, **arguments)) == "1x4x4"


def test_columns_before_rows_are_no_grid():
    found = last(lambda video: video.permute(0, 1, 2, 4, 3).flatten(2).transpose(1, 2), 1, video=VIDEO)
    assert not found.grids


def test_text_in_front_and_behind_are_spans_and_slices_find_them():
    def joined(video: Tensor, weight: Tensor, text: Tensor) -> Tensor:
        return torch.cat([text, patchify(video, weight), text[:, :2]], 1)

    arguments = {"video": VIDEO, "weight": PATCH, "text": torch.zeros(1, 5, 16)}
    found = last(joined, 1, **arguments)
    assert str(found) == "5 | 4x4x4 | 2"
    assert (found.prefix, found.suffix, found.length) == (5, 2, 71)
    assert found.spans[0].sources == ("text",)
    assert str(last(lambda video, weight, text: joined(video, weight, text)[:, 5:-2], 1, **arguments)) == "4x4x4"
    assert (
        str(last(lambda video, weight, text: joined(video, weight, text).split([5, 66], 1)[0], 1, **arguments)) == "5"
    )


def test_a_slice_of_whole_frames_knows_its_first_frame_and_a_torn_one_has_no_grid():
    frames = last(lambda video, weight: patchify(video, weight)[:, 32:], 1, video=VIDEO, weight=PATCH)
    assert str(frames) == "2x4x4"
    assert frames.grid and frames.grid.first_frame == 2
    torn = last(lambda video, weight: patchify(video, weight)[:, 30:], 1, video=VIDEO, weight=PATCH)
    assert torn.why_not == "a slice that does not end at a frame"


def test_picking_frames_of_the_latent_keeps_the_grid_and_picking_tokens_loses_it():
    def frames(video: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        return patchify(video.index_select(2, chosen), weight)

    def tokens(video: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        return patchify(video, weight).index_select(1, chosen)

    arguments = {"video": VIDEO, "weight": PATCH, "chosen": torch.tensor([0, 3])}
    assert str(last(frames, 1, **arguments)) == "2x4x4"
    assert last(tokens, 1, **arguments).why_not == "tokens picked by an index"


PICKS = [
    lambda video, chosen: video.index_select(2, chosen),
    lambda video, chosen: video.index_select(-3, chosen),
    lambda video, chosen: video[:, :, chosen],
]


@pytest.mark.parametrize("pick", PICKS)
def test_the_extent_of_picked_frames_is_read_from_the_index(pick: Callable[[Tensor, Tensor], Tensor]):
    def picked(video: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        return patchify(pick(video, chosen), weight)

    program = trace_function(picked, {"video": VIDEO, "weight": PATCH, "chosen": torch.tensor([0, 3])})
    facts, chosen = program.fact(TokenGrid), program.placeholders()[2]
    (node,) = chosen.users
    (atom,) = facts.axes[node][2]
    assert facts.holder(atom.origin, atom.size) == (chosen, 0)


@pytest.mark.parametrize("lose", [lambda x: x.flip(1), lambda x: x.roll(3, 1), lambda x: x.sort(1).values])
def test_a_changed_order_loses_the_grid(lose: Callable[[Tensor], Tensor]):
    assert not last(lambda video, weight: lose(patchify(video, weight)), 1, video=VIDEO, weight=PATCH).grids


def test_windows_are_not_the_grid_and_undoing_them_finds_it_again():
    def windows(video: Tensor, weight: Tensor) -> Tensor:
        tokens = patchify(video, weight).view(1, 2, 2, 2, 2, 2, 2, 16)
        return tokens.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(8, 8, 16)

    def back(video: Tensor, weight: Tensor) -> Tensor:
        tokens = windows(video, weight).view(1, 2, 2, 2, 2, 2, 2, 16)
        return tokens.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(1, 64, 16)

    assert not last(windows, 1, video=VIDEO, weight=PATCH).grids
    assert str(last(back, 1, video=VIDEO, weight=PATCH)) == "4x4x4"


def test_position_tables_seed_a_grid_for_tokens_that_arrive_flat():
    def rotated(tokens: Tensor) -> Tensor:
        frames, rows, columns = torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(4), indexing="ij")
        angle = torch.stack([frames, rows, columns], -1).reshape(-1, 3).sum(-1, keepdim=True)
        return tokens * angle.cos()

    program = trace(rotated, {"tokens": torch.zeros(1, 32, 8)})
    output = program.graph.output_node().args[0][0]  # type: ignore[index]
    assert str(program.fact(TokenGrid).of(output, 1)) == "2x4x4"


class FlatTokens(nn.Module):
    """Tokens arrive flat and are made a video at the end."""

    def __init__(self, *, reorder: bool = False) -> None:
        super().__init__()
        self.reorder = reorder
        self.linear = nn.Linear(8, 16)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.linear(tokens)
        volume = hidden.view(1, 2, 4, 4, 4, 2, 2)
        order = (0, 4, 2, 1, 5, 3, 6) if self.reorder else (0, 4, 1, 2, 5, 3, 6)
        video = volume.permute(order)
        return (video.flatten(3) if self.reorder else video.reshape(1, 4, 2, 8, 8)), hidden


def test_the_unpatchify_at_the_end_says_what_the_flat_input_was():
    program = trace(FlatTokens(), {"tokens": torch.zeros(1, 32, 8)})
    fact = program.fact(TokenGrid)
    hidden = program.graph.output_node().args[0][1]  # type: ignore[index]
    assert str(fact.of(hidden, 1)) == "2x4x4"
    assert fact.confirmed == {"tokens"}


def test_a_view_at_the_end_in_another_order_is_no_evidence():
    program = trace(FlatTokens(reorder=True), {"tokens": torch.zeros(1, 32, 8)})
    hidden = program.graph.output_node().args[0][1]  # type: ignore[index]
    found = program.fact(TokenGrid).of(hidden, 1)
    assert found and found.why_not == "axis 1 of the input tokens, whose grid is not known"


def test_symbolic_frames_stay_symbolic():
    class Patch(nn.Module):
        def forward(self, video: Tensor, weight: Tensor) -> Tensor:
            tokens = patchify(video, weight)
            return tokens.view(1, -1, 4, 4, 16).flatten(1, 3)[:, 16:]

    program = trace(Patch(), {"video": VIDEO.clone(), "weight": PATCH}, dynamic={"video": 2})
    output = program.graph.output_node().args[0][0]  # type: ignore[index]
    found = program.fact(TokenGrid).of(output, 1)
    assert found and found.grid
    assert found.grid.shape[1:] == (4, 4)
    assert same(found.grid.frames + 1, found.grid.tokens / 16 + 1)
    assert found.grid.first_frame == 1


def test_symbolic_frames_are_cut_apart_with_padding_behind_them():
    class Patch(nn.Module):
        def forward(self, memory: Tensor, new: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            tokens = patchify(torch.cat([memory, new], 2), weight)
            padded = torch.cat([tokens, tokens.new_zeros(1, 20 * 16 - tokens.shape[1], 16)], 1)
            remembered = memory.shape[2] * 16
            rest = padded[:, remembered:]
            return padded[:, :remembered], rest[:, : new.shape[2] * 16], padded[:, : remembered + 8]

    inputs = {"memory": VIDEO.clone(), "new": VIDEO[:, :, :3].clone(), "weight": PATCH}
    program = trace(Patch(), inputs, dynamic={"memory": 2})
    fact = program.fact(TokenGrid)
    front, rest, torn = (fact.of(node, 1) for node in program.graph.output_node().args[0])  # type: ignore[union-attr]
    assert front and front.grid and rest and rest.grid and torn
    assert front.grid.shape[1:] == rest.grid.shape[1:] == (4, 4) and front.grid.first_frame == 0
    assert same(front.grid.frames * 16, front.length) and rest.grid.frames == 3
    assert same(rest.grid.first_frame, front.grid.frames) and front.grid.seed == rest.grid.seed
    assert torn.grid is None


@pytest.mark.parametrize(
    "function",
    [
        lambda tensor: tensor.sum(),
        lambda tensor: torch.fft.fft(tensor).real,
        lambda tensor: tensor.nonzero(),
        lambda tensor: torch.linalg.svd(tensor)[1],
        lambda tensor: tensor.unfold(0, 2, 1),
        lambda tensor: tensor.topk(2).values,
    ],
)
def test_foreign_graphs_give_an_empty_fact(function: Callable[[Tensor], Tensor]):
    program: Program = trace_function(function, {"tensor": torch.ones(4, 4)})
    fact = program.fact(TokenGrid)
    assert not any(fact.grids_of(node) for node in program.graph.nodes)


# --- the algebra, against what the operations do to numbered tokens ---------------------------------------------------

EXTENTS = (2, 3, 4)


def numbered() -> tuple[Tensor, tuple[tuple[Atom, ...], ...]]:
    """A volume whose elements are their own numbers, and its axes."""
    atoms = tuple((Atom(size, origin=Origin("video", axis, 5)),) for axis, size in enumerate(EXTENTS))
    return torch.arange(math.prod(EXTENTS)).view(EXTENTS), atoms


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(3)), st.sampled_from([(24,), (6, 4), (2, 12), (2, 3, 4), (4, 6), (3, 8), (12, 2)]))
def test_an_axis_explained_by_whole_atoms_holds_its_tokens_in_that_order(order: list[int], shape: tuple[int, ...]):
    values, axes = numbered()
    seen = values.permute(order).reshape(shape)
    for number, axis in enumerate(regroup(tuple(axes[dim] for dim in order), shape)):
        if axis is None:
            continue
        assert extent(axis) == shape[number]
        if all(atom.origin and atom.size == EXTENTS[atom.origin.axis] for atom in axis):
            held = [atom.origin.axis for atom in axis if atom.origin]
            rest = [dim for dim in range(3) if dim not in held]
            wanted = values.permute(*held, *rest).reshape(extent(axis), -1)[:, 0]
            along = seen.movedim(number, 0).reshape(shape[number], -1)[:, 0]
            assert torch.equal(along - along[0], wanted - wanted[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(1, 6), st.integers(0, 3))
def test_cutting_a_joined_axis_keeps_whole_frames_only(start: int, length: int, text: int):
    grid = tuple(Atom(size, origin=Origin("video", axis, 5)) for axis, size in enumerate(EXTENTS))
    axis = join([(Atom(text, note="text"),), grid])
    stop = min(start + length, text + 24)
    if start >= stop:
        return
    found = cut(axis, start, stop)
    assert extent(found) == stop - start
    whole = [part for part in (found[0].parts or (found,)) if len(part) == 3 and part[0].size != 24]
    assert all(part[1:] == grid[1:] and extent(part) % 12 == 0 for part in whole)


def test_sizes_compare_and_divide_without_guessing():
    import sympy

    frames = sympy.Symbol("frames", positive=True, integer=True)
    assert quotient(32 * frames, 8) == 4 * frames
    assert quotient(32 * frames, 16 * frames) == 2
    assert quotient(32 * frames, 64) is None
    assert quotient(7, 2) is None
    assert quotient(frames + 1, 2) is None and quotient(4 * frames + 2, 2) == 2 * frames + 1
    assert same(4 * (frames + 1), 4 * frames + 4)
