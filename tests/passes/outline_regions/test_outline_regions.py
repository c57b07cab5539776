from __future__ import annotations

import dataclasses
import inspect
import operator
import time
from typing import Any

import pytest
import torch
import torch.fx as fx
from torch import Tensor, nn
from toyvideo import Block, First, ToyChunk, chain_of_blocks, shuffled, toy_inputs, traced, values_for, without_paths

from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs, fill_random
from lightint_compile.passes.analysis.regions import RegionGroup
from lightint_compile.passes.ir.memory_sharing import alias_source
from lightint_compile.passes.ir.node_data import Tokens
from lightint_compile.passes.ir.node_queries import Dependencies
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark
from lightint_compile.passes.outline_regions.pieces import cut
from lightint_compile.passes.pipeline import Pipeline

aten = torch.ops.aten


def outline(program: Program) -> tuple[Program, tuple[Remark, ...]]:
    """The program outlined, and what was said about it; the argument stays as it is."""
    result = program.snapshot()
    remarks = Pipeline.parse("outline-regions").run(result, strict=True).remarks
    return result, remarks


def calls(program: Program) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_module"]


def submodules(program: Program) -> dict[str, fx.GraphModule]:
    return {str(node.target): program.graph_module.get_submodule(str(node.target)) for node in calls(program)}


def assert_same_numbers(before: Program, after: Program, values: list[Any]) -> None:
    with torch.no_grad():
        expected, got = before.graph_module(*values), after.graph_module(*values)
    assert len(expected) == len(got)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(expected, got, strict=True))


@pytest.fixture(scope="module")
def module() -> ToyChunk:
    torch.manual_seed(0)
    return ToyChunk(depth=3, steps=4)


@pytest.fixture(scope="module")
def program(module: ToyChunk) -> Program:
    return traced(module, *toy_inputs())


@pytest.fixture(scope="module")
def outlined(program: Program) -> Program:
    return outline(program)[0]


def toy_values(program: Program, module: ToyChunk, history: int = 10) -> list[Any]:
    noise, past = toy_inputs(history)
    sizes = {entry.path: history for entry in program.inputs if entry.kind == "symbol"}
    return values_for(program, module, noise=noise, history=past, **sizes)


def test_the_numbers_stay_bit_for_bit(program: Program, outlined: Program, module: ToyChunk) -> None:
    assert_same_numbers(program, outlined, toy_values(program, module))


@pytest.mark.parametrize("change", ["shuffled", "dead code", "no paths"])
def test_neither_order_nor_dead_code_nor_lost_paths_change_the_cut(
    change: str, program: Program, outlined: Program, module: ToyChunk
) -> None:
    other = {"shuffled": shuffled, "dead code": with_dead_code, "no paths": without_paths}[change](program)
    result, _ = outline(other)
    assert_same_numbers(program, result, toy_values(program, module))
    assert _shapes(result) == _shapes(outlined)


def _shapes(program: Program) -> list[tuple[Any, ...]]:
    metas = [region.meta["lightint"] for region in submodules(program).values()]
    return sorted((meta["kind"], meta["calls"], meta["nodes"]) for meta in metas)


def with_dead_code(program: Program) -> Program:
    result = program.snapshot()
    for node in list(result.calls(aten.linear.default)):
        with result.graph.inserting_after(node):
            dead = result.graph.call_function(aten.sin.default, (node,))
        dead.meta = dict(node.meta)
    return result


def test_one_region_stands_for_all_blocks_of_all_steps(outlined: Program) -> None:
    metas = {name: region.meta["lightint"] for name, region in submodules(outlined).items()}
    most = max(metas.values(), key=lambda meta: meta["calls"])
    assert most["kind"] == "block" and most["calls"] == 12
    assert "blocks.1@2" in most["paths"]
    for name, meta in metas.items():
        assert sum(node.target == name for node in calls(outlined)) == meta["calls"]
        assert name.startswith(meta["kind"])


def test_the_number_of_regions_does_not_grow_with_blocks_and_steps(outlined: Program) -> None:
    deeper, _ = outline(traced(ToyChunk(depth=5, steps=3), *toy_inputs()))
    assert len(submodules(deeper)) == len(submodules(outlined)) <= 7


def test_the_final_layer_and_the_euler_step_are_called_every_step(outlined: Program) -> None:
    names = {node.name for node in calls(outlined)}
    for what in ("p_out_weight", "mul_by", "p_inp_weight"):
        each_step = [
            name
            for name, region in submodules(outlined).items()
            if what in region.code and region.meta["lightint"]["calls"] == 4
        ]
        assert len(each_step) == 1
        assert names >= {f"step_{step}_{each_step[0]}" for step in range(4)}


def test_the_root_reads_as_the_loop(outlined: Program) -> None:
    names = [node.name for node in calls(outlined)]
    assert [f"step_{step}_block_{block}" for step in range(4) for block in range(3)] == [
        name for name in names if name.startswith("step") and "block" in name
    ]
    assert [name for name in names if name.startswith("prefill")] == ["prefill_block_0", "prefill_block_1"]
    assert all(f"{name} = self." in outlined.graph_module.code for name in names)


def test_the_root_computes_nothing(outlined: Program) -> None:
    for node in outlined.graph.nodes:
        scalar = node.target is aten.full.default and node.meta["val"].dim() == 0
        element = node.target is operator.getitem
        assert node.op != "call_function" or element or scalar or alias_source(node) is not None


def test_submodules_are_in_normal_form(outlined: Program) -> None:
    for name, region in submodules(outlined).items():
        region.graph.lint()
        assert all("val" in node.meta for node in region.graph.nodes if node.op != "output"), name
        (outputs,) = region.graph.output_node().args
        assert isinstance(outputs, tuple) and outputs
        assert all(node.op == "call_function" for node in outputs)
        assert len({_memory(node) for node in outputs}) == len(outputs)
        assert all(_memory(node).op != "placeholder" for node in outputs)


def _memory(node: fx.Node) -> fx.Node:
    source = alias_source(node)
    return node if source is None else _memory(source)


def test_a_second_run_changes_nothing(outlined: Program) -> None:
    assert not Pipeline.parse("outline-regions").run(outlined.snapshot(), strict=True).modified


def test_remarks_say_what_was_folded(program: Program) -> None:
    _, remarks = outline(program)
    assert remarks[0].args["nodes_before"] > 600
    assert remarks[0].args["regions"] == len(submodules(outline(program)[0]))
    messages = [remark.message for remark in remarks]
    assert any("3 blocks x 4 steps -> 1 region called 12 times" in message for message in messages)


def test_one_cut_serves_every_length_of_history(module: ToyChunk) -> None:
    program = traced(module, *toy_inputs(), dynamic={"history": 1})
    result, _ = outline(program)
    for history in (10, 7, 33):
        assert_same_numbers(program, result, toy_values(program, module, history))
    for node in calls(result):
        region = result.graph_module.get_submodule(str(node.target))
        for inner, outer in zip(region.graph.find_nodes(op="placeholder"), node.args, strict=True):
            assert str(inner.meta["val"]) == str(outer.meta["val"]) or node.name.startswith(("prefill", "step"))


class Memory(nn.Module):
    """Blocks that read text keys which a pass has marked as depending on the text alone."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(Block(16) for _ in range(2))

    def forward(self, x: Tensor, c: Tensor, words: Tensor) -> Tensor:
        key, value = self.text(words).unflatten(-1, (2, -1)).transpose(1, 2).chunk(2, dim=-1)
        text = (torch.cat([key, value], -1), torch.cat([value, key], -1))
        for block in self.blocks:
            x, _ = block(x, c, text)
        return x


def test_what_depends_on_the_text_alone_is_a_memo() -> None:
    module = Memory()
    arguments = {"x": torch.randn(1, 6, 16), "c": torch.randn(1, 16), "words": torch.randn(1, 5, 8)}
    program = traced(module, *arguments.values())
    from_text = {node for node in program.placeholders() if node.name == "words" or "text" in node.name}
    for node in program.calls():
        if set(node.all_input_nodes) <= from_text:
            from_text.add(node)
            node.meta["memo"] = "text"
    result, _ = outline(program)
    assert_same_numbers(program, result, values_for(program, module, **arguments))
    (memo,) = [node for node in calls(result) if node.meta.get("memo")]
    assert (memo.target, memo.meta["memo"]) == ("memo_0", "text")
    assert {node.name for node in memo.all_input_nodes} == {"words", "p_text_weight", "p_text_bias"}
    assert not any("p_text" in str(node.args) for node in calls(result) if node is not memo)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16) for _ in range(3))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x + torch.randn_like(x), c)
            c = c + torch.rand_like(c)
        return x


def test_random_numbers_are_drawn_in_the_same_order() -> None:
    module, arguments = Noisy(), {"x": torch.randn(1, 6, 16), "c": torch.randn(1, 16)}
    program = traced(module, *arguments.values())
    result, _ = outline(program)
    values = values_for(program, module, **arguments)
    torch.manual_seed(3)
    expected = program.graph_module(*values)
    torch.manual_seed(3)
    assert torch.equal(expected[0], result.graph_module(*values)[0])


class Views(nn.Module):
    """Returns an input, a view of one, a value, two views of that value, and a value that reads all of them."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = (x * 2).exp()
        first, second = y.chunk(2, dim=-1)
        return x, x.transpose(0, 1), y, first, second.view_as(first), first + second + x.transpose(0, 1).sum()


def test_views_and_inputs_are_returned_by_the_root() -> None:
    module, x = Views(), torch.randn(3, 4)
    program = traced(module, x)
    result, _ = outline(program)
    assert_same_numbers(program, result, values_for(program, module, x=x))
    test_submodules_are_in_normal_form(result)


@pytest.mark.parametrize("width", [8, 16])
def test_a_graph_in_which_nothing_repeats_is_one_piece_of_glue(width: int) -> None:
    mlp = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))
    program = traced(mlp, torch.randn(2, 8))
    result, _ = outline(program)
    assert [node.target for node in calls(result)] == ["glue_0"]
    (tensor,) = [entry.path for entry in program.inputs if entry.kind == "tensor"]
    assert_same_numbers(program, result, values_for(program, mlp, **{tensor: torch.randn(2, 8)}))
    single, _ = outline(traced(First(Block(16)), torch.randn(1, 6, 16), torch.randn(1, 16)))
    assert len(calls(single)) == 1


def test_numbers_that_differ_between_steps_become_inputs_only_of_glue(outlined: Program) -> None:
    lifted = [node for node in calls(outlined) for arg in node.args if arg.target is aten.full.default]
    assert {str(node.target) for node in lifted} == {lifted[0].target}
    assert str(lifted[0].target).startswith("glue")
    sizes = [arg.args[1] for node in lifted for arg in node.args if arg.target is aten.full.default]
    assert sizes == pytest.approx([-0.1, -0.2, -0.3, -0.4])


@pytest.mark.parametrize("copies, seconds", [(220, 60), pytest.param(1100, 110, marks=pytest.mark.slow)])
def test_time_grows_with_the_number_of_nodes_alone(copies: int, seconds: float) -> None:
    program = chain_of_blocks(copies)
    assert len(program.graph.nodes) > 38 * copies
    start = time.process_time()
    result, _ = outline(program)
    assert time.process_time() - start < seconds
    assert [region.meta["lightint"]["calls"] for region in submodules(result).values()] == [copies]


@pytest.mark.parametrize("depth, steps", [(3, 2), pytest.param(16, 4, marks=pytest.mark.slow)])
def test_worldplay_has_at_most_fourteen_regions(depth: int, steps: int) -> None:
    config = dataclasses.replace(WorldPlayConfig.tiny(), depth=depth, steps=steps)
    module = fill_random(WorldPlayChunk(config))
    arguments, _ = example_inputs(config, 8)
    program = traced(module, *arguments)
    result, remarks = outline(program)
    metas = [region.meta["lightint"] for region in submodules(result).values()]
    assert len(metas) <= 14
    assert max(meta["calls"] for meta in metas) == depth * steps
    assert any(f"{depth} blocks x {steps} steps" in remark.message for remark in remarks)
    named = dict(zip(inspect.signature(module.forward).parameters, arguments, strict=True))
    assert_same_numbers(program, result, values_for(program, module, **named))


class Halves(nn.Module):
    """Two steps that read both halves of a split."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            first, second = torch.split(x, 4, -1)
            x = torch.cat([first.relu() * 2, second.tanh()], -1)
        return x


def test_no_tuple_crosses_the_border_of_a_trimmed_region() -> None:
    program = traced(Halves(), torch.randn(3, 8))
    splits = list(program.calls(aten.split.Tensor))
    # What trimming leaves when a path leads out of a region and back: elements without the tuple they are read from.
    copies = tuple((*split.users, *(user for element in split.users for user in element.users)) for split in splits)
    pieces = cut([RegionGroup(copies, ("", ""))], frozenset(), Dependencies(program.graph), Tokens())
    for piece in pieces:
        inside = set(piece.nodes)
        read = [node.args[0] for node in piece.nodes if node.target is operator.getitem]
        assert all(owner in inside for owner in read)
        assert all(set(node.users) <= inside for node in piece.nodes if node.target is aten.split.Tensor)
