"""Large glue becomes several pieces, cut where little crosses; small glue stays whole."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.fx as fx
from hypothesis import given, settings
from hypothesis import strategies as st
from region_graphs import region
from torch import Tensor, nn
from toyvideo import traced, values_for

from lightint_compile.passes.ir.node_queries import is_ordered, is_scalar, is_tuple
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.outline_regions import parts as parts_of
from lightint_compile.passes.outline_regions.parts import LARGEST, WIDEST, parts
from lightint_compile.passes.pipeline import Pipeline


def drawn(seed: int, steps: int) -> fx.GraphModule:
    """A graph of elementwise operations, views, joins and splits, each of what is drawn from some values before it."""

    def function(*inputs: Tensor) -> Tensor:
        draw, values = random.Random(seed), list(inputs)
        for _ in range(steps):
            one, other = (values[-draw.randint(1, min(8, len(values)))] for _ in "ab")
            made = [one.sin(), one + other, (one * 2).view(6, 4).reshape(4, 6), one.t().contiguous().view(4, 6)]
            first, second = torch.cat([one, other]).split(4)
            values.append(draw.choice([*made, first * 0.5, second.tanh(), one[:, :3].repeat(1, 2)]))
        return torch.stack(values[-9:]).sum(0)

    return region(function, torch.randn(4, 6), torch.randn(4, 6))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_parts_are_in_order_and_neither_tuples_nor_numbers_cross(seed: int, steps: int) -> None:
    nodes = [node for node in drawn(seed, steps).graph.nodes if node.op == "call_function"]
    found = parts(nodes)
    assert sorted(node.name for part in found for node in part) == sorted(node.name for node in nodes)
    place = {node: number for number, part in enumerate(found) for node in part}
    for node in nodes:
        for source in node.all_input_nodes:
            if source in place:
                assert place[source] <= place[node]
                assert place[source] == place[node] or not (is_tuple(source) or is_scalar(source))
    for part in found:
        order = {node: number for number, node in enumerate(part)}
        assert all(order.get(source, -1) < order[node] for node in part for source in node.all_input_nodes)
    if len(nodes) <= LARGEST:
        assert len(found) == 1


def test_it_is_cut_at_the_narrowest_place() -> None:
    def function(x: Tensor) -> Tensor:
        for _ in range(60):
            x = x.sin()
        x = x.sum(0, keepdim=True)  # a row crosses here, and everything elsewhere
        for _ in range(100):
            x = x.cos()
        return x

    graph = region(function, torch.randn(64, 8)).graph
    first, second = parts([node for node in graph.nodes if node.op == "call_function"])
    assert first[-1].target is torch.ops.aten.sum.dim_IntList and len(second) == 100


def test_views_in_front_are_no_half() -> None:
    """All of them are read behind the cut: nothing would be left in front of it."""

    def function(x: Tensor) -> Tensor:
        rows = [x[number % 4 :][:1] for number in range(90)]
        for row in rows:
            x = x * row
        return x

    nodes = [node for node in region(function, torch.randn(8, 6)).graph.nodes if node.op == "call_function"]
    found = parts(nodes)
    assert all(found) and sum(map(len, found)) == len(nodes)


def test_nothing_is_cut_where_much_would_cross() -> None:
    def function(x: Tensor) -> Tensor:
        for _ in range(200):
            x = x.sin()
        return x

    for size, pieces in ((1 << 10, 2), (WIDEST + 1, 1)):
        nodes = [node for node in region(function, torch.empty(size)).graph.nodes if node.op == "call_function"]
        assert len(parts(nodes)) == pieces


def test_what_draws_random_numbers_keeps_its_order() -> None:
    def function(x: Tensor) -> Tensor:
        drawn = []
        for _ in range(30):
            kept, mask = torch.ops.aten.native_dropout.default(x, 0.5, True)
            drawn += [kept, mask]
            x = (x + torch.rand_like(x)).sin() * 2
        return sum(drawn) + x

    nodes = [node for node in region(function, torch.randn(4)).graph.nodes if node.op == "call_function"]
    found = parts(nodes)
    assert len(found) > 1
    assert list(filter(is_ordered, itertools.chain(*found))) == list(filter(is_ordered, nodes))


class Preamble(nn.Module):
    """Much that runs once in front of blocks."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        for number in range(self.steps):
            even, odd = x.split(4, -1)
            x = torch.cat([even / (number + 2), (odd + even).sin()], -1)
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize(("steps", "further"), [(15, 0), (45, 3), (90, 5)])
def test_results_are_equal_to_the_last_bit(steps: int, further: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Preamble(steps).eval(), torch.randn(3, 8)
    program = traced(model, x)
    cut = outlined(program)
    assert all(len(region.graph.nodes) <= LARGEST + 20 for _, region in cut.graph_module.named_children())
    monkeypatch.setattr(parts_of, "LARGEST", 10_000)
    assert glue_of(cut) == glue_of(outlined(program)) + further
    with torch.no_grad():
        (got,) = cut.graph_module(*values_for(program, model, x=x))
        assert torch.equal(got, model(x))


def outlined(program: Program) -> Program:
    after = program.snapshot()
    Pipeline.parse("outline-regions").run(after, strict=True)
    return after


def glue_of(program: Program) -> int:
    return sum(region.meta["lightint"]["kind"] == "glue" for _, region in program.graph_module.named_children())
