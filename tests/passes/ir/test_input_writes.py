"""Writes in a graph: what they may not overtake, and the check that finds what a pass did all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightint_compile import capture
from lightint_compile.errors import PassError
from lightint_compile.passes.ir.input_writes import reads_before, stale_reads, version_of, written_buffers
from lightint_compile.passes.ir.memory_sharing import is_write, memory_of
from lightint_compile.passes.ir.node_queries import Dependencies
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.verify import verify

aten = torch.ops.aten


def twice(c: Tensor, x: Tensor) -> Tensor:
    before = c[:2] * 3
    c[:2] = x
    between = c[1:3].sin()
    c[2:] = x + 1
    return before + between + c[:2].cos()


@pytest.fixture
def program() -> Program:
    with torch.no_grad():
        return capture.trace(twice, (torch.randn(4, 3), torch.randn(2, 3)))


def test_a_value_shows_a_version_of_its_buffer(program: Program) -> None:
    (buffer,), (writes,) = written_buffers(program.graph), written_buffers(program.graph).values()
    slices = list(program.calls(aten.slice.Tensor))
    assert [version_of(node) for node in slices] == [buffer, *writes]
    assert {memory_of(node) for node in (*slices, *writes)} == {buffer}
    assert [[node.target for node in nodes] for nodes in reads_before(program.graph).values()] == [
        [aten.mul.Tensor],
        [aten.sin.default],
    ]


def test_what_computes_stays_between_the_writes_it_stands_between(program: Program) -> None:
    order = Dependencies(program.graph)
    first, second = (node for node in program.graph.nodes if is_write(node))
    (times,), (plus, *_) = program.calls(aten.mul.Tensor), program.calls(aten.add.Tensor)
    assert times in order.before(first) and first in order.after(times)
    assert first in order.before(plus) and plus in order.before(second)


def test_a_read_moved_behind_the_write_that_replaces_it_is_found(program: Program) -> None:
    before = program.snapshot()
    (times,) = program.calls(aten.mul.Tensor)
    first = next(node for node in program.graph.nodes if is_write(node))
    assert not list(stale_reads(program.graph))
    first.append(times)
    assert list(stale_reads(program.graph)) == [(times, first)]
    with pytest.raises(PassError, match="overwrites what it reads"):
        verify(program, before)
