"""A graph with fewer blocks has the regions of the whole one, and is no other graph's loss."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile.capture import fewer_blocks, from_dynamo, repeated_blocks
from lightint_compile.capture.fewer_blocks import KEPT, places_of, with_fewer_blocks
from lightint_compile.capture.module_stacks import Differs
from lightint_compile.lowering import _regions, _root_of
from lightint_compile.lowering.workers.sharing import _jobs
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.input_writes import InputWrites
from lightint_compile.passes.ir.program import Program
from lightint_compile.pipeline_run import run_passes
from lightint_compile.torch_regions import is_region_call, reuses_regions

once_only = pytest.mark.skipif(not reuses_regions(), reason="this torch traces a region in every call")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.eps = 1e-5

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + torch.sigmoid(self.gate(F.layer_norm(x, (8,), eps=self.eps))) * x.sin()
        x = x + self.down(F.gelu(self.up(F.layer_norm(x, (8,)))))
        return x, x.square().sum(-1)


class Looped(nn.Module):
    """Several steps through all blocks; what each block gives besides is stacked, and the last is read alone."""

    def __init__(self, depth: int, steps: int = 3) -> None:
        super().__init__()
        self.blocks, self.steps = nn.ModuleList(Block() for _ in range(depth)), steps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = []
        for _ in range(self.steps):
            for block in self.blocks:
                x, sums = block(x)
                kept.append(sums)
            x = x.cos()
        return x, torch.stack(kept), kept[-1].exp()


class Attending(nn.Module):
    """An attention over keys of the text, which another method of the block makes."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_text, self.mlp = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def text(self, words: Tensor) -> Tensor:
        return F.silu(self.to_text(words))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        key = torch.cat([text, self.to_q(x)], 1)
        x = x + F.scaled_dot_product_attention(self.to_q(x), key, key)
        return x + self.mlp(F.layer_norm(x, (8,)))


class OfText(nn.Module):
    """A text that is made once, and steps that all read it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attending() for _ in range(depth))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        text = [block.text(words) for block in self.blocks]
        for _ in range(3):
            for block, keys in zip(self.blocks, text, strict=True):
                x = block(x, keys)
        return x


def programs(module: nn.Module, *args: Tensor) -> tuple[Program | None, Program]:
    """The program of fewer blocks, and of all."""
    smaller: list[Callable[[], fx.GraphModule] | None] = []
    found: list[Program | None] = []
    in_place = repeated_blocks.blocks_in_place

    def watched(graph_module: fx.GraphModule) -> int:
        smaller.append(fewer_blocks(graph_module))
        return in_place(graph_module)

    def read(graph_module: fx.GraphModule, given: Sequence[Any]) -> None:
        found.append(None if smaller[0] is None else from_dynamo(smaller[0](), given))
        found.append(from_dynamo(graph_module, given))

    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(repeated_blocks, "blocks_in_place", watched)
        assert repeated_blocks.trace_by_blocks(module, args, {}, read)
    few, whole = found
    assert whole is not None
    return few, whole


def keys(program: Program, preset: str) -> set[str]:
    """What is compiled of a program."""
    run_passes(program, LightintOptions.from_mapping({"preset": preset}))
    regions = _regions(_root_of(program, InputWrites.of(program.graph)))
    return {job.order.key for job in _jobs(regions, {})}


CASES: dict[str, tuple[Callable[[int], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "a chain": (Looped, lambda: (torch.randn(3, 8),)),
    "once": (lambda depth: Looped(depth, 1), lambda: (torch.randn(3, 8),)),
    "attention to text": (OfText, lambda: (torch.randn(2, 4, 8), torch.randn(2, 3, 8))),
}


@once_only
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("preset", ["exact", "all"])
def test_regions_are_those_of_the_whole(case: str, preset: str) -> None:
    made, inputs_of = CASES[case]
    smaller, whole = programs(made(11).eval().requires_grad_(False), *inputs_of())
    assert smaller is not None
    assert len(smaller.graph.nodes) < len(whole.graph.nodes) * 2 / 3
    found, wanted = keys(smaller, preset), keys(whole, preset)
    assert wanted & found
    assert len(wanted - found) <= 1  # what reads all blocks at once is another


@once_only
@pytest.mark.parametrize("depth", [2, KEPT, 2 * KEPT - 1])
def test_where_most_calls_are_left_there_is_none(depth: int) -> None:
    smaller, whole = programs(Looped(depth).eval().requires_grad_(False), torch.randn(3, 8))
    assert smaller is None
    assert whole.graph.nodes


class Captured(NamedTuple):
    """A graph as Dynamo hands it over, before and after a look at fewer of its blocks."""

    before: str
    after: str
    calls: int
    fewer: int
    refused: str


def calls(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if is_region_call(node)]


def captured(module: nn.Module) -> Captured:
    caught: list[Captured] = []
    places = places_of(module, module.blocks)

    def caught_by(graph_module: fx.GraphModule) -> int:
        before, whole = str(graph_module.graph), calls(graph_module)
        smaller = with_fewer_blocks(graph_module, places)
        assert smaller is not None
        smaller.graph.lint()
        after = str(graph_module.graph)
        with graph_module.graph.inserting_after(whole[-2]):
            graph_module.graph.call_function(operator.length_hint, (whole[-2],))
        with pytest.raises(Differs) as refused:
            with_fewer_blocks(graph_module, places)
        caught.append(Captured(before, after, len(whole), len(calls(smaller)), str(refused.value)))
        raise Differs("seen")

    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(repeated_blocks, "blocks_in_place", caught_by)
        assert not repeated_blocks.trace_by_blocks(module, (torch.randn(3, 8),), {}, lambda *_: None)
    return caught[0]


@once_only
def test_the_first_blocks_are_left_and_the_graph_itself_stays_as_it_is() -> None:
    found = captured(Looped(10).eval().requires_grad_(False))
    assert found.before == found.after
    assert (found.calls, found.fewer) == (30, 3 * KEPT)
    assert "reads all results" in found.refused


@once_only
def test_a_block_of_its_own_at_the_end_is_left() -> None:
    module = Looped(10)
    module.blocks[9].eps = 1e-3
    found = captured(module.eval().requires_grad_(False))
    assert (found.calls, found.fewer) == (30, 3 * (KEPT + 1))


def test_places_are_those_in_each_list() -> None:
    module = nn.Module()
    module.first, module.second = (nn.ModuleList(nn.Tanh() for _ in range(2)) for _ in range(2))
    places = places_of(module, [*module.first, *module.second])
    assert places == {"first.0": 0, "first.1": 1, "second.0": 0, "second.1": 1}


def test_outside_of_a_trace_by_blocks_there_is_none() -> None:
    graph: Any = fx.Graph()
    graph.output(())
    assert fewer_blocks(fx.GraphModule({}, graph)) is None
