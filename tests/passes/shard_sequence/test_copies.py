"""Exchanges by copies in graphs: each starts as soon as it can and is waited for as late, in regions too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rank_cases
import rank_worlds
import torch
import torch.fx as fx
from differential import rewritten, trace, trace_function
from rank_cases import FRONT
from rank_pool import Failed, Pool, pools
from torch import Tensor
from toy_world import there_and_back

from lightint_compile.errors import OptionError
from lightint_compile.kernels.exchange import EXCHANGE
from lightint_compile.lowering.early_starts import settings_for
from lightint_compile.lowering.stretches import groups_in
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.transfers import exchanges_in, is_wait, spread
from lightint_compile.passes.shard_sequence import ShardSequence
from lightint_compile.testing.capturing import captured

aten = torch.ops.aten
OPS = torch.ops._c10d_functional
SHARD = "shard-sequence{gpus=2,exchanges=copies}"
EXACT = 1e-12


def order(graph: fx.Graph, *others: Any) -> str:
    """The starts, waits and calls of ``others`` of a graph, as text: numbers are those of the exchanges."""
    numbers = {exchange.sent: number for number, exchange in enumerate(exchanges_in(graph))}
    names = {target: str(target).split(".")[1] for target in others}
    found = []
    for node in graph.nodes:
        if node in numbers:
            found.append(f"start{numbers[node]}")
        elif is_wait(node) and node.args[0] in numbers:
            found.append(f"wait{numbers[node.args[0]]}")
        elif node.target in names:
            found.append(names[node.target])
    return " ".join(found)


def test_an_attention_waits_for_nothing_before_all_is_on_its_way() -> None:
    module = rank_worlds.World(depth=2).double().eval().requires_grad_(False)
    copy, result = rewritten(captured(module, rank_worlds.inputs(module))[0], f"{FRONT},{SHARD}")
    (remark,) = [r for r in result.remarks if r.pass_name == "shard-sequence"]
    assert remark.args["exchanges"] == len(list(copy.calls(EXCHANGE))) == 8
    assert not list(copy.calls(OPS.all_to_all_single.default))
    attention = "start0 start1 start2 wait0 wait1 wait2 sdpa start3 wait3 sdpa"
    following = "start4 start5 start6 wait4 wait5 wait6 sdpa start7 wait7 sdpa"
    found = order(copy.graph, aten.scaled_dot_product_attention.default)
    assert sorted_waits(found.replace("scaled_dot_product_attention", "sdpa")) == f"{attention} {following}"


def sorted_waits(text: str) -> str:
    """Waits that follow each other, in the order of their numbers: which is first is the order of the readers."""
    words, found = text.split(), list[str]()
    while words:
        count = next((place for place, word in enumerate(words) if not word.startswith("wait")), len(words))
        found += sorted(words[:count]) or [words[0]]
        words = words[max(count, 1) :]
    return " ".join(found)


def test_regions_keep_that_order_and_nothing_is_on_its_way_between_them() -> None:
    world, path = rank_worlds.Headed().double().eval().requires_grad_(False), there_and_back(12)
    latents = torch.randn(1, 4, 12, 4, 6).double()
    given = {"noise": latents[:, :, 8:], "history": latents[:, :, :8], "extrinsics": path.double()}
    program = trace(world, {name: value.contiguous() for name, value in given.items()})
    copy, _ = rewritten(program, f"{FRONT},{SHARD},outline-regions,step-cache")
    graphs = [each.graph for each in copy.graph_module.modules() if isinstance(each, fx.GraphModule)]
    starts = {graph: graph.find_nodes(op="call_function", target=EXCHANGE) for graph in graphs}
    assert sum(map(len, starts.values()))
    for graph, nodes in starts.items():
        assert all(is_wait(user) and len(node.users) == 1 for node in nodes for user in node.users)
        graph.lint()
    found = [sorted_waits(order(graph)) for graph, nodes in starts.items() if len(nodes) == 4]
    assert found and set(found) == {"start0 start1 start2 wait0 wait1 wait2 start3 wait3"}
    regions = [fx.GraphModule({}, graph) for graph, nodes in starts.items() if nodes]
    assert all(settings_for(region) for region in regions) and groups_in(regions) == {"0"}


# --- the order alone -------------------------------------------------------------------------------------------------


class Written:
    """A program that is written call by call, on two inputs of ``[ranks, 3, 4]``."""

    def __init__(self) -> None:
        inputs = {name: torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(7)) for name in "ab"}
        self.program: Program = trace_function(lambda a, b: (a, b), inputs)
        self.inputs = list(inputs.values())
        self.rewriter = Rewriter(self.program, "test")
        self.a, self.b = self.program.graph.find_nodes(op="placeholder")

    def call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        with self.rewriter.at(self.program.graph.output_node()):
            return self.rewriter.call(target, *args)

    def exchange(self, value: fx.Node) -> fx.Node:
        ready = self.call(aten.clone.default, value)
        arrived = self.call(OPS.wait_tensor.default, self.call(EXCHANGE, ready, "0"))
        return self.call(aten.permute.default, arrived, [1, 0, 2])

    def spread(self, *values: fx.Node) -> str:
        """The order afterwards, of a program that computes what it did."""
        graph = self.program.graph
        graph.output_node().args = (tuple(values),)
        before = self.run()
        spread(graph)
        graph.lint()
        assert all(torch.equal(new, old) for new, old in zip(self.run(), before, strict=True))
        return order(graph, aten.neg.default, aten.cos.default, aten.add_.Tensor)

    def run(self) -> list[Tensor]:
        return list(_Both(self.program.graph_module).run(*(value.clone() for value in self.inputs)))


class _Both(fx.Interpreter):
    """Stands in for two ranks: what comes from a rank is a function of what is sent to it, row by row."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is EXCHANGE:
            return args[0].roll(1, 0) * 2
        if target is OPS.wait_tensor.default:
            return args[0]
        return super().call_function(target, args, kwargs)


def test_what_reads_the_first_goes_behind_the_start_of_the_second() -> None:
    written = Written()
    first = written.call(aten.neg.default, written.exchange(written.a))
    second = written.exchange(written.call(aten.cos.default, written.b))
    assert written.spread(first, written.call(aten.neg.default, second)) == "start0 cos start1 wait0 neg wait1 neg"


def test_the_second_waits_for_the_first_that_it_is_made_of() -> None:
    written = Written()
    first = written.call(aten.neg.default, written.call(aten.permute.default, written.exchange(written.a), [1, 0, 2]))
    assert written.spread(written.exchange(first)) == "start0 wait0 neg start1 wait1"


def test_a_write_between_keeps_its_place() -> None:
    written = Written()
    first = written.call(aten.neg.default, written.exchange(written.a))
    written.call(aten.add_.Tensor, written.b, written.b)
    second = written.call(aten.neg.default, written.exchange(written.b))
    assert written.spread(first, second) == "start0 wait0 neg add_ start1 wait1 neg"


def test_a_write_to_what_came_is_a_reader() -> None:
    written = Written()
    first = written.exchange(written.a)
    cosine = written.call(aten.cos.default, written.b)
    written.call(aten.add_.Tensor, first, first)
    assert written.spread(written.call(aten.neg.default, first), cosine) == "start0 cos wait0 add_ neg"


# --- options ---------------------------------------------------------------------------------------------------------


def test_the_option_reaches_the_pass() -> None:
    (step,) = [s for s in pipeline_of(LightintOptions(gpus=2, exchanges="copies")).passes if s.name == "shard-sequence"]
    assert isinstance(step, ShardSequence) and step.exchanges == "copies"
    assert LightintOptions.from_mapping(LightintOptions(gpus=2, exchanges="copies").to_dict()).exchanges == "copies"


def test_exchanges_that_there_are_not() -> None:
    with pytest.raises(OptionError, match="'copy' is no exchanges"):
        LightintOptions(gpus=2, exchanges="copy")
    with pytest.raises(OptionError, match="there are no exchanges by copy"):
        ShardSequence(gpus=2, exchanges="copy")
    with pytest.raises(OptionError, match="no pass of the pipeline takes the option 'exchanges'"):
        pipeline_of(LightintOptions(exchanges="copies"))


# --- on ranks, where there are no GPUs to copy between ---------------------------------------------------------------


Pools = Callable[[int], Pool]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pools]:
    yield from pools()


def difference(answers: list[Any]) -> float:
    failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
    assert failed is None, failed
    assert all(answer.applied and not answer.missed for answer in answers)
    return max(float(answer.difference) for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_give_what_one_gives(pool: Pools, ranks: int) -> None:
    case = {"model": {"steps": 2}, "given": {"past": 3}, "preset": "exact", "delegate": "eager"}
    assert difference(pool(ranks).run(rank_cases.compiled_world, exchanges="copies", **case)) < EXACT


def test_compiled_by_inductor(pool: Pools) -> None:
    case = {"model": {"steps": 1}, "given": {}, "preset": "exact", "dtype": torch.float32}
    assert difference(pool(2).run(rank_cases.compiled_world, exchanges="copies", **case)) < 1e-5


def test_recorded(pool: Pools) -> None:
    given = [{"past": past} for past in (3, 3, 4, 3, 4, 4)]
    answers = pool(2).run(rank_cases.recorded, which="sizes", given=given, delegate="eager", exchanges="copies")
    assert all(not isinstance(answer, Failed) for answer in answers), answers
    assert difference([seen for seen, _ in answers]) < EXACT and all(plays for _, plays in answers)


def test_ranks_that_exchange_in_different_ways_stop(pool: Pools) -> None:
    answers = pool(2).run(rank_cases.exchanging_differently, preset="exact", delegate="eager")
    assert all(isinstance(answer, Failed) and "did not compile the same graph" in answer for answer in answers)
