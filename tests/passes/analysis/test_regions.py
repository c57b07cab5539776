from __future__ import annotations

import operator
import random
from collections.abc import Callable

import pytest
import torch
from differential import trace_function
from torch import Tensor, nn
from torch.nn import functional
from toyvideo import Block, First, ToyChunk, shuffled, toy_inputs, traced, without_paths

from lightint_compile.passes.analysis.regions import RegionGroup, Regions
from lightint_compile.passes.ir.condensed_graph import Contraction, on_cycles
from lightint_compile.passes.ir.node_data import argument_nodes
from lightint_compile.passes.ir.node_queries import Dependencies
from lightint_compile.passes.ir.program import Program

aten = torch.ops.aten


@pytest.fixture(scope="module")
def chunk() -> Program:
    return traced(ToyChunk(depth=3, steps=4), *toy_inputs())


def regions_of(module: nn.Module, *args: Tensor) -> Regions:
    return traced(module, *args).fact(Regions)


def largest(regions: Regions) -> RegionGroup:
    return max(regions, key=lambda group: group.saved)


def test_every_block_of_every_step_is_a_copy_of_one_region(chunk: Program) -> None:
    group = largest(chunk.fact(Regions))
    assert len(group.instances) == 12
    assert sorted(group.paths) == sorted(f"blocks.{block}@{step}" for block in range(3) for step in range(1, 5))


def test_blocks_of_the_prefill_are_another_region_and_its_dead_last_block_none(chunk: Program) -> None:
    groups = list(chunk.fact(Regions))
    assert [sorted(group.paths) for group in groups[1:]] == [["blocks.0", "blocks.1"]]


@pytest.mark.parametrize("form", ["paths", "no paths", "shuffled", "shuffled, no paths"])
def test_copies_are_isomorphic_disjoint_and_leave_no_cycle(chunk: Program, form: str) -> None:
    program = shuffled(chunk) if "shuffled" in form else chunk
    program = without_paths(program) if "no paths" in form else program
    regions = program.fact(Regions)
    assert len(largest(regions).instances) == 12
    assert [group.size for group in regions] == [group.size for group in chunk.fact(Regions)]
    copies = [nodes for group in regions for nodes in group.instances]
    assert len(set().union(*copies)) == sum(map(len, copies))
    assert not on_cycles(copies, Dependencies(program.graph))
    for group in regions:
        for nodes in group.instances:
            _assert_same(group.instances[0], nodes)


def test_pieces_that_never_become_ready_are_those_missing_in_an_order(chunk: Program) -> None:
    dependencies = Dependencies(chunk.graph)
    nodes = [node for node in dependencies.order if node.op == "call_function"]
    make, stuck = random.Random(0), 0
    for _ in range(20):
        taken = make.sample(nodes, 24)
        pieces = [taken[place : place + 2] for place in range(0, 24, 2)]
        ordered = Contraction(pieces, dependencies).order()
        assert on_cycles(pieces, dependencies) == {number for number in range(12) if number not in ordered}
        stuck += len(on_cycles(pieces, dependencies))
    assert stuck


def _assert_same(first: tuple[torch.fx.Node, ...], other: tuple[torch.fx.Node, ...]) -> None:
    image = dict(zip(first, other, strict=True))
    for left, right in image.items():
        assert left.target == right.target
        for source, source_of_other in zip(argument_nodes(left), argument_nodes(right), strict=True):
            assert image.get(source, source_of_other) is source_of_other


TWINS = {
    "a constant": {"eps": 1e-3},
    "a size": {"inner": 24},
    "a dtype": {"dtype": torch.float16},
}


@pytest.mark.parametrize("change", TWINS)
def test_a_block_that_differs_in(change: str) -> None:
    group = largest(regions_of(ToyChunk(depth=3, steps=2, overrides={1: TWINS[change]}), *toy_inputs()))
    assert sorted(group.paths) == sorted(f"blocks.{block}@{step}" for block in (0, 2) for step in (1, 2))


def test_a_differing_dtype_of_inputs_alone_is_seen() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(16) for _ in range(4))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            for index, block in enumerate(self.blocks):
                if index == 2:
                    x, c = x.double(), c.double()
                x, _ = block(x, c)
            return x

    module = Mixed()
    module.blocks[2:].double()
    groups = list(regions_of(module, torch.randn(1, 6, 16), torch.randn(1, 16)))
    assert sorted(len(group.instances) for group in groups) == [2, 2]


def test_a_table_row_that_differs_stays_outside_and_the_region_whole() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(ScaledBlock(i) for i in range(4))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x, c)
            return x

    class ScaledBlock(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index, self.inner = index, Block(16)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return self.inner(x, c[self.index])[0] * c[self.index, 0, 0]

    (group,) = regions_of(Scaled(), torch.randn(1, 6, 16), torch.randn(4, 1, 16))
    assert len(group.instances) == 4
    rows = [node for nodes in group.instances for node in nodes if node.target is aten.select.int]
    assert {node.args[2] for node in rows} <= {0}


def test_what_was_hoisted_out_of_a_block_is_not_part_of_it() -> None:
    program = traced(ToyChunk(depth=3, steps=4), *toy_inputs())
    whole = largest(program.fact(Regions))
    # The first modulation of each block is given to its later steps, as if it did not change over them.
    linears = [n for n in program.calls(aten.linear.default) if n.args[1].name.endswith("_mod_weight")]
    for weight in {node.args[1] for node in linears}:
        first, *later = [node for node in linears if node.args[1] is weight][1:]
        for node in later:
            node.replace_all_uses_with(first)
    program.graph.eliminate_dead_code()
    program.changed()
    group = largest(program.fact(Regions))
    assert len(group.instances) == 12
    assert group.size < whole.size
    assert not any(linear in nodes for nodes in group.instances for linear in linears)


def test_a_path_out_of_a_block_and_back_is_cut_out_of_it() -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleList([Block(16), Block(16)]) for _ in range(1))
            self.heads = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
            self.stages = nn.ModuleList(Half() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for index, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
                x = stage(x, head, 1 + index)
            return x

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor, head: nn.Module, power: int) -> Tensor:
            y = torch.tanh(self.a(x)).exp().sin() + 1
            side = (head(y) * y).cumsum(-1).roll(power, -1)
            z = torch.tanh(self.b(y)).exp().sin() + 1
            for _ in range(4):
                z = z.cos() + side
            return x + z

    program = traced(Detour(), torch.randn(2, 16))
    copies = [nodes for group in program.fact(Regions) for nodes in group.instances]
    assert copies
    assert not on_cycles(copies, Dependencies(program.graph))


def test_two_equal_blocks_are_a_region_and_a_plain_mlp_has_none() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(16) for _ in range(2))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            for block in self.blocks:
                x, _ = block(x, c)
            return x

    (group,) = regions_of(Two(), torch.randn(1, 6, 16), torch.randn(1, 16))
    assert group.paths == ("blocks.0", "blocks.1")
    mlp = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.ReLU())))
    assert not list(regions_of(mlp, torch.randn(2, 8)))
    assert not list(regions_of(First(Block(16)), torch.randn(1, 6, 16), torch.randn(1, 16)))


def test_tuples_and_their_elements_are_on_the_same_side(chunk: Program) -> None:
    for group in chunk.fact(Regions):
        for nodes in group.instances:
            for node in nodes:
                if node.target is operator.getitem:
                    assert node.args[0] in nodes


class Root(nn.Module):
    """A norm of many operations, as models spell it in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        wide = x * 0.5
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).tanh() * self.weight


def _rest_of_a_block(x: Tensor) -> Tensor:
    x = torch.cat([x.sin(), x.cos().abs().sqrt()], -1)[..., 4:12].erf().neg() + x.mean(-1, keepdim=True)
    x = (x.flip(-1).sinh() / (1 + x.exp())).atan().roll(1, -1).clamp(-3, 3)
    return (x.square() - x.amax(-1, keepdim=True)).sigmoid() * x.cumsum(-1)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.q_norm, self.k_norm = Root(), Root()


class WithoutBlocks(nn.Module):
    """Blocks that are called part by part, so that no module path holds all of one."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Parts() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            query, key = part.q_norm(part.q(x)), part.k_norm(part.k(x))
            x = x + _rest_of_a_block(part.out(torch.softmax(query @ key.mT, -1) @ x))
        return x


def test_a_norm_with_a_path_is_not_taken_out_of_blocks_without_one() -> None:
    (group,) = regions_of(WithoutBlocks(6).eval().requires_grad_(False), torch.randn(1, 5, 8))
    assert len(group.instances) == 6
    assert group.size > 25


class Network(nn.Module):
    """The blocks of a step in a module of their own, which every step calls."""

    def __init__(self, blocks: nn.Module, dim: int = 16) -> None:
        super().__init__()
        self.inp, self.out, self.blocks = nn.Linear(4, dim), nn.Linear(dim, 4), blocks

    def forward(self, noise: Tensor, conditioning: Tensor) -> Tensor:
        tokens = self.inp(noise)
        for block in self.blocks:
            tokens, _ = block(tokens, conditioning)
        return self.out(tokens)


class Steps(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.time = network, nn.Linear(1, 16)

    def forward(self, noise: Tensor) -> Tensor:
        for step in range(3):
            noise = noise + self.network(noise, self.time(torch.full((1, 1), 1.0 - 0.2 * step)))
        return noise


@pytest.mark.parametrize("last", [40, 36])
def test_a_step_of_blocks_of_several_kinds_is_no_block(last: int) -> None:
    """Two kinds of two each (and a last one of its own): a step would save more than any kind does."""
    kinds = [32, 32, 40, last]
    regions = regions_of(Steps(Network(nn.ModuleList(Block(16, inner=inner) for inner in kinds))), toy_inputs()[0])
    found = sorted(sorted({path.split("@")[0] for path in group.paths}) for group in regions if group.size > 20)
    blocks = [f"network.blocks.{number}" for number in range(4)]
    if last == 40:
        assert found == [blocks[:2], blocks[2:]]
    else:
        assert found == [["network"], blocks[:2], blocks[2:3]]  # the last one with what is made of it
    assert all(len(group.instances) in (3, 6) for group in regions)


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        heads = [each(x).unflatten(-1, (2, -1)).transpose(1, 2) for each in (self.q, self.k, self.v)]
        return nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


class Twice(nn.Module):
    """One block with two attentions in a list, and an MLP that is as much as both."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attention(dim) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.up, self.gate, self.down = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, conditioning: Tensor) -> tuple[Tensor, None]:
        for norm, attention in zip(self.norms, self.attentions, strict=False):
            x = x + attention(norm(x) * (1 + conditioning[:, None].sin())) * conditioning[:, None].cos()
        inner = self.norms[2](x)
        return x + self.down(self.up(inner) * nn.functional.silu(self.gate(inner))), None


def test_a_block_with_a_list_of_attentions_stays_whole() -> None:
    regions = regions_of(Steps(Network(nn.ModuleList(Twice(16) for _ in range(3)))), toy_inputs()[0])
    assert len(largest(regions).instances) == 9
    assert {path.split("@")[0] for path in largest(regions).paths} == {f"network.blocks.{n}" for n in range(3)}


_STEPS = (
    lambda x, y, weight: torch.tanh(x + y),
    lambda x, y, weight: functional.linear(x, weight),
    lambda x, y, weight: functional.layer_norm(x, (8,)),
    lambda x, y, weight: x * torch.sigmoid(y),
    lambda x, y, weight: functional.silu(x),
)


def _kinds_of_blocks(kinds: str, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Residual blocks without module paths that begin and end alike, and differ by their kind in between."""
    draw = random.Random(seed)
    parts = ("begin", *sorted(set(kinds)), "end")
    drawn = {part: [draw.choice(_STEPS) for _ in range(draw.randrange(6, 13))] for part in parts}

    def run(x: Tensor, weight: Tensor) -> Tensor:
        for kind in kinds:
            y = x
            for step in (*drawn["begin"], *drawn[kind], *drawn["end"]):
                y = step(y, x, weight)
            x = x + y
        return x

    return run


@pytest.mark.parametrize("kinds", ["AABBAABB", "ABABABAB", "AAABBB", "AABAABAAB"])
@pytest.mark.parametrize("seed", range(3))
def test_groups_of_blocks_that_are_alike_in_part_share_no_node(kinds: str, seed: int) -> None:
    program = trace_function(_kinds_of_blocks(kinds, seed), {"x": torch.zeros(1, 3, 8), "weight": torch.zeros(8, 8)})
    copies = [nodes for group in program.fact(Regions) for nodes in group.instances]
    assert copies and len(set().union(*copies)) == sum(map(len, copies))
