"""Pieces that always run together are one call; where copies differ, or something lies between, they stay apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.lowering import Lowered, lower
from lightint_compile.options import LightintOptions
from lightint_compile.passes import outline_regions
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.node_data import Tokens
from lightint_compile.passes.ir.node_queries import Dependencies
from lightint_compile.passes.outline_regions.forms import Forms
from lightint_compile.passes.outline_regions.merging import merged
from lightint_compile.passes.outline_regions.pieces import Piece

aten = torch.ops.aten

LAYERS = 3


class Layers:
    """In every layer two sines of one angle, and what adds them: three pieces by hand."""

    def __init__(self, swap: bool = False, other: bool = False) -> None:
        self.graph, self.pieces = fx.Graph(), list[Piece]()
        x = self.graph.placeholder("x")
        for layer in range(LAYERS):
            first, second = (self.call(torch.sin, x) for _ in range(2))
            halved = self.call(torch.neg, first)
            operands = (second, halved) if swap and layer == 1 else (halved, second)
            x = self.call(torch.sub if other and layer == 1 else torch.add, *operands)
            self.pieces += [Piece("block", [first]), Piece("block", [second]), Piece("glue", [halved, x])]
        self.graph.output(x)

    def call(self, function: Callable[..., object], *args: fx.Node) -> fx.Node:
        return self.graph.call_function(function, args)

    def merged(self, boundaries: Sequence[fx.Node] = ()) -> list[list[str]]:
        dependencies = Dependencies(self.graph)
        found = merged(self.pieces, set(boundaries), dependencies, Forms(dependencies, Tokens()))
        return sorted([node.name for node in piece.nodes] for piece in found)


def test_what_runs_together_in_every_layer_is_one_piece() -> None:
    names = [["sin", "sin_1", "neg", "add"], ["sin_2", "sin_3", "neg_1", "add_1"], ["sin_4", "sin_5", "neg_2", "add_2"]]
    assert Layers().merged() == names


def test_a_value_that_is_read_elsewhere_too_is_handed_out() -> None:
    layers = Layers()
    read = layers.graph.find_nodes(op="call_function", target=torch.sin)[2]
    with layers.graph.inserting_before(layers.graph.output_node()):
        layers.call(torch.cos, read)
    assert len(layers.merged()) == LAYERS


@pytest.mark.parametrize("layers", [Layers(swap=True), Layers(other=True)], ids=["wiring", "operator"])
def test_copies_that_differ_stay_apart(layers: Layers) -> None:
    assert len(layers.merged()) > LAYERS


def test_another_number_of_copies_stays_apart() -> None:
    layers = Layers()
    del layers.pieces[0]
    assert ["neg", "add"] in layers.merged()


def test_a_new_piece_begins_behind_a_boundary() -> None:
    layers = Layers()
    sines = layers.graph.find_nodes(op="call_function", target=torch.sin)
    assert len(layers.merged(sines)) == 3 * LAYERS


def test_what_is_made_between_two_pieces_keeps_them_apart() -> None:
    layers = Layers()
    for halved in layers.graph.find_nodes(op="call_function", target=torch.neg):
        with layers.graph.inserting_before(halved):
            halved.args = (layers.call(torch.tanh, halved.args[0]),)  # in no piece, as a write to a cache is
    assert all(len(names) == 1 or "add" in names[-1] for names in layers.merged())
    assert all(len(names) < 4 for names in layers.merged())


class Streaming(nn.Module):
    """Blocks whose norm is modulated, whose queries and keys are rotated by position, and whose cache is in place."""

    def __init__(self, width: int = 16, heads: int = 2, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(StreamingBlock(width, heads) for _ in range(blocks))
        self.register_buffer("angles", torch.polar(torch.ones(64, width // heads // 2), torch.randn(64, 4)))

    def forward(self, x: Tensor, shift: Tensor, caches: list[dict[str, Tensor]], start: int) -> Tensor:
        rotation = self.angles[start : start + x.shape[1], None]
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, shift, cache, start, rotation)
        return x

    def caches(self) -> list[dict[str, Tensor]]:
        return [{name: torch.zeros(1, 24, 2, 8) for name in "kv"} for _ in self.blocks]


class StreamingBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width, elementwise_affine=False), CachedAttention(width, heads)
        self.modulation = nn.Parameter(torch.randn(1, 3, width))

    def forward(self, x: Tensor, shift: Tensor, cache: dict[str, Tensor], start: int, rotation: Tensor) -> Tensor:
        add, scale, gate = (self.modulation + shift).unbind(1)
        return x + gate * self.attention(self.norm(x) * (1 + scale) + add, cache, start, rotation)


class SpelledNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.weight


class CachedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = SpelledNorm(width), SpelledNorm(width)

    def forward(self, y: Tensor, cache: dict[str, Tensor], start: int, rotation: Tensor) -> Tensor:
        query, key, value = self.norm_q(self.q(y)), self.norm_k(self.k(y)), self.v(y)
        query, key, value = (each.unflatten(-1, (self.heads, -1)) for each in (query, key, value))
        end = start + y.shape[1]
        cache["k"][:, start:end] = rotated(key, rotation)
        cache["v"][:, start:end] = value
        heads = (rotated(query, rotation), cache["k"][:, :end], cache["v"][:, :end])
        attended = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in heads))
        return self.o(attended.transpose(1, 2).flatten(2))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).float()) * rotation).flatten(-2)


def lowered(model: Streaming) -> Lowered:
    inputs = torch.randn(1, 4, 16), torch.randn(1, 3, 16), model.caches(), 4
    return lower(capture.trace(model, inputs), LightintOptions(delegate="eager"), {})


def test_blocks_that_came_in_parts_are_one_call_in_front_of_a_write_and_one_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = Streaming().eval().requires_grad_(False)
    whole = lowered(model).calls
    cut = outline_regions.cut
    found: list[int] = []

    def in_parts(*args: Any) -> list[Piece]:
        pieces = halved(cut(*args))
        found.append(len(pieces))
        return pieces

    monkeypatch.setattr(outline_regions, "cut", in_parts)
    assert lowered(model).calls == whole == {"block_0": 3, "block_1": 3}
    assert found == [12]


def halved(pieces: Sequence[Piece]) -> list[Piece]:
    """Every block in two: a search that took the projections of all queries and keys for the region leaves as much."""
    return [
        Piece(piece.kind, list(nodes), path=piece.path, is_region=True) for piece in pieces for nodes in parts(piece)
    ]


def parts(piece: Piece) -> list[list[fx.Node]]:
    """The first projection with what it comes from, and the rest."""
    inside = set(piece.nodes)
    first = next(node for node in piece.nodes[0].graph.nodes if node in inside and node.target is aten.linear.default)
    front = reached([first], lambda node: (source for source in node.all_input_nodes if source in inside))
    return [[node for node in piece.nodes if (node in front) is wanted] for wanted in (True, False)]


def test_merged_pieces_compute_what_eager_does_while_caches_fill() -> None:
    torch.manual_seed(0)
    model = Streaming().eval().requires_grad_(False)
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "delegate": "eager"})
    mine, theirs = model.caches(), model.caches()
    for start in (0, 4, 4, 8, 12):
        x, shift = torch.randn(1, 4, 16), torch.randn(1, 3, 16)
        torch.testing.assert_close(compiled(x, shift, mine, start), model(x, shift, theirs, start))
        torch.testing.assert_close(mine, theirs)
