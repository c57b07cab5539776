"""Exchanges that go together: which do, which must not, and that drawn programs compute what they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx as fx
from differential import trace_function
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.ranks import Ranks
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.shard_sequence.collectives import Collectives
from lightint_compile.passes.shard_sequence.teams import Team
from lightint_compile.passes.shard_sequence.together import Exchange, joined

aten = torch.ops.aten
OPS = torch.ops._c10d_functional
SIZES = (2, 3, 4)


class Written:
    """A program that is written call by call, on two inputs of ``[ranks, 3, 4]``."""

    def __init__(self) -> None:
        inputs = {name: torch.randn(SIZES, generator=torch.Generator().manual_seed(7)) for name in "ab"}
        self.program: Program = trace_function(_both, inputs)
        self.inputs = list(inputs.values())
        self.rewriter = Rewriter(self.program, "test")
        self.exchanges: list[Exchange] = []
        self._ops = Collectives(Team.of_all(Ranks(2)), self.call)
        self.a, self.b = self.program.graph.find_nodes(op="placeholder")

    def call(self, target: Callable[..., Any], *args: Any, **named: Any) -> fx.Node:
        with self.rewriter.at(self.program.graph.output_node()):
            return self.rewriter.call(target, *args, **named)

    def exchange(self, value: fx.Node) -> fx.Node:
        ready = self.call(aten.clone.default, value)
        sent = self.call(OPS.all_to_all_single.default, ready, [1, 1], [1, 1], "0")
        arrived = self.call(OPS.wait_tensor.default, sent)
        self.exchanges.append(Exchange(ready, sent, arrived))
        return arrived

    def results(self, *values: fx.Node) -> list[Tensor]:
        self.program.graph.output_node().args = (tuple(values),)
        return self.run()

    def run(self) -> list[Tensor]:
        self.program.graph.lint()
        return list(_Both(self.program.graph_module).run(*(value.clone() for value in self.inputs)))

    @property
    def transfers(self) -> int:
        return len(self.program.graph.find_nodes(op="call_function", target=OPS.all_to_all_single.default))


def _both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a, b


class _Both(fx.Interpreter):
    """Stands in for two ranks: what comes from a rank is a function of what is sent to it, row by row."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is OPS.all_to_all_single.default:
            return args[0].roll(1, 0) * 2
        if target is OPS.wait_tensor.default:
            return args[0]
        return super().call_function(target, args, kwargs)


def check(written: Written, values: list[fx.Node], transfers: int) -> None:
    before, had = written.results(*values), written.transfers
    saved = joined(written.exchanges, written.rewriter)
    assert written.transfers == transfers == had - saved
    assert all(torch.equal(new, old) for new, old in zip(written.run(), before, strict=True))


def test_neighbours_go_together_and_what_reads_them_waits() -> None:
    written = Written()
    first = written.exchange(written.a)
    read = written.call(aten.mul.Tensor, first, 3.0)  # between both exchanges, moved behind them
    check(written, [written.exchange(written.call(aten.add.Tensor, written.b, 1.0)), read], 1)


def test_the_fake_values_are_those_of_the_parts() -> None:
    written = Written()
    values = [written.exchange(written.a), written.exchange(written.b)]
    check(written, values, 1)
    parts = written.program.graph.find_nodes(op="call_function", target=aten.select.int)
    assert [tuple(part.meta["val"].shape) for part in parts] == [SIZES] * 2


@pytest.mark.parametrize("between", ["reads", "shape", "dtype", "write"])
def test_one_edit_away_each_goes_alone(between: str) -> None:
    written = Written()
    first = written.exchange(written.a)
    second = {
        "reads": lambda: written.call(aten.add.Tensor, written.b, written.call(aten.neg.default, first)),
        "shape": lambda: written.call(aten.slice.Tensor, written.b, 1, 0, 2),
        "dtype": lambda: written.call(aten._to_copy.default, written.b, dtype=torch.float64),
        "write": lambda: written.call(aten.add_.Tensor, written.b, first),
    }[between]()
    check(written, [first, written.exchange(second)], 2)


def test_the_third_starts_anew_where_it_reads_the_first() -> None:
    written = Written()
    first, second = written.exchange(written.a), written.exchange(written.b)
    third = written.exchange(written.call(aten.add.Tensor, first, second))
    check(written, [third, written.exchange(written.call(aten.neg.default, second))], 2)


def test_what_is_made_ready_early_does_not_hide_what_it_reads() -> None:
    written = Written()
    first = written.exchange(written.a)
    early = written.call(aten.clone.default, written.call(aten.neg.default, first))
    second = written.exchange(written.b)
    sent = written.call(OPS.all_to_all_single.default, early, [1, 1], [1, 1], "0")
    third = written.call(OPS.wait_tensor.default, sent)
    written.exchanges.append(Exchange(early, sent, third))
    check(written, [second, third], 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("eeap"), st.integers(0, 99), st.integers(0, 99)), min_size=2, max_size=14))
def test_drawn_programs_compute_what_they_did(steps: list[tuple[str, int, int]]) -> None:
    written = Written()
    values = [written.a, written.b]
    for kind, one, other in steps:
        first, second = values[one % len(values)], values[other % len(values)]
        if kind == "e":
            values.append(written.exchange(first))
        elif kind == "a":
            values.append(written.call(aten.add.Tensor, first, second))
        else:
            values.append(written.call(aten.mul.Tensor, first, 0.5))
    before, had = written.results(*values), written.transfers
    assert joined(written.exchanges, written.rewriter) == had - written.transfers
    assert all(torch.equal(new, old) for new, old in zip(written.run(), before, strict=True))
