"""Regions that work for one other alone are a part of it; whatever else reads them keeps them by themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.fx as fx

from lightint_compile.passes.analysis.regions.joining import joined
from lightint_compile.passes.ir.node_queries import Dependencies

Ends = Callable[[fx.Graph, list[fx.Node]], None]


def groups(read: Ends = lambda graph, nodes: None, swap: bool = False):
    """Three layers: two sines each, of their own angle, and what adds them, one on each side."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    sines, sums = [], []
    for layer in range(3):
        first, second = (graph.call_function(torch.sin, (x,)) for _ in range(2))
        halved = graph.call_function(torch.neg, (second if swap and layer == 1 else first,))
        x = graph.call_function(torch.add, (halved, first if swap and layer == 1 else second))
        sines += [(first,), (second,)]
        sums.append((halved, x))
    read(graph, [node for (node,) in sines])
    graph.output(tuple([x, *(node for node in graph.nodes if node.name.startswith("cos"))]))
    return graph, tuple(sines), tuple(sums)


def test_what_works_for_one_other_alone_is_a_part_of_it() -> None:
    graph, sines, sums = groups()
    (whole,) = joined([sines, sums], Dependencies(graph))
    assert whole == tuple(
        (*first, *second, *own) for first, second, own in zip(sines[::2], sines[1::2], sums, strict=True)
    )


def test_copies_are_aligned_by_what_they_feed() -> None:
    graph, sines, sums = groups(swap=True)
    (whole,) = joined([sines, sums], Dependencies(graph))
    assert whole[1] == (*sines[3], *sines[2], *sums[1])


def _read_outside(graph: fx.Graph, sines: list[fx.Node]) -> None:
    graph.call_function(torch.cos, (sines[2],))


def _one_more(graph: fx.Graph, sines: list[fx.Node]) -> None:
    """A fourth layer's pair that another region reads."""
    graph.call_function(torch.cos, (sines[5],))


@pytest.mark.parametrize("read", [_read_outside, _one_more])
def test_what_something_else_reads_as_well_stays_by_itself(read: Ends) -> None:
    graph, sines, sums = groups(read)
    assert joined([sines, sums], Dependencies(graph)) == [sines, sums]


def test_other_numbers_of_copies_stay_by_themselves() -> None:
    graph, sines, sums = groups()
    assert joined([sines[:4], sums], Dependencies(graph)) == [sines[:4], sums]
