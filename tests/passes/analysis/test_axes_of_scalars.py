"""Tensors without axes: PyTorch takes them nearly everywhere, and no rule may name an axis that they lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from differential import trace_function
from torch import Tensor
from torch.nn import functional as F

from lightint_compile.passes.analysis.axes.movement import Movement, Ref
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.analysis.row_repeats.analysis import analyse
from lightint_compile.passes.analysis.row_repeats.picks import every
from lightint_compile.passes.ir.op_arguments import pick_of, sizes_of

X, ROW = torch.tensor(3.0, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
ONE, NUMBER = torch.zeros(1, dtype=torch.int64), torch.tensor(0)

SCALARS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Any]] = {
    "index_select of a scalar": lambda x, row, one, number: torch.index_select(x, 0, one),
    "index_select with a scalar": lambda x, row, one, number: torch.index_select(row, 0, number),
    "index_select, both": lambda x, row, one, number: torch.index_select(x, 0, number),
    "gather": lambda x, row, one, number: torch.gather(x, 0, number),
    "index_fill": lambda x, row, one, number: torch.index_fill(x, 0, number, 2.0),
    "index_copy": lambda x, row, one, number: torch.index_copy(x, 0, one, row[:1]),
    "index_add": lambda x, row, one, number: torch.index_add(x, 0, one, row[0]),
    "scatter": lambda x, row, one, number: torch.scatter(x, 0, number, 2.0),
    "cumsum": lambda x, row, one, number: x.cumsum(0),
    "softmax": lambda x, row, one, number: x.softmax(0),
    "sum": lambda x, row, one, number: x.sum(0),
    "mean kept": lambda x, row, one, number: x.mean(0, keepdim=True),
    "amax": lambda x, row, one, number: x.amax(0),
    "sort": lambda x, row, one, number: x.sort(0)[0],
    "topk": lambda x, row, one, number: x.topk(1, 0)[0],
    "flip": lambda x, row, one, number: x.flip(0),
    "roll": lambda x, row, one, number: x.roll(1),
    "squeeze": lambda x, row, one, number: x.squeeze(0),
    "unsqueeze": lambda x, row, one, number: x.unsqueeze(0),
    "transpose": lambda x, row, one, number: x.transpose(0, -1),
    "expand": lambda x, row, one, number: x.expand(3, 4),
    "repeat": lambda x, row, one, number: x.repeat(3),
    "repeat_interleave": lambda x, row, one, number: x.repeat_interleave(3),
    "permute": lambda x, row, one, number: x.permute(()),
    "swapaxes": lambda x, row, one, number: x.swapaxes(0, 0),
    "mT of rows": lambda x, row, one, number: (x * row.unsqueeze(0)).mT,
    "logsumexp": lambda x, row, one, number: x.logsumexp(0),
    "cumprod": lambda x, row, one, number: x.cumprod(-1),
    "select of a row": lambda x, row, one, number: row.select(0, 2),
    "unbind of a row": lambda x, row, one, number: row.unbind(0)[1],
    "difference": lambda x, row, one, number: row[0] - x,
    "cat of rows": lambda x, row, one, number: torch.cat([x.reshape(1), row]),
    "flatten": lambda x, row, one, number: x.flatten(),
    "norm": lambda x, row, one, number: x.norm(dim=0),
    "softplus": lambda x, row, one, number: F.softplus(x),
    "diagonal": lambda x, row, one, number: x.reshape(1, 1).diagonal(),
    "reshape": lambda x, row, one, number: x.reshape(1, 1),
    "stack": lambda x, row, one, number: torch.stack([x, x]),
    "unfold": lambda x, row, one, number: x.unfold(0, 1, 1),
    "tile": lambda x, row, one, number: x.tile(2, 2),
    "embedding": lambda x, row, one, number: F.embedding(number, row.unsqueeze(1)),
    "one_hot": lambda x, row, one, number: F.one_hot(number, 3),
    "where": lambda x, row, one, number: torch.where(x > 2, row, x),
    "outer sum": lambda x, row, one, number: x + row.unsqueeze(1),
}


@pytest.mark.parametrize("name", SCALARS)
def test_no_rule_names_an_axis_that_a_scalar_lacks(name: str) -> None:
    operands = (X, ROW, ONE, NUMBER)
    named = dict(zip(("x", "row", "one", "number"), operands, strict=True))
    graph = trace_function(SCALARS[name], named).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert calls
    for node in calls:
        movement = movement_of(node)
        for ref in [] if movement is None else _refs(movement):
            assert 0 <= ref.axis < len(sizes_of(ref.node)), (node, ref)
        pick = pick_of(node)
        assert pick is None or 0 <= pick.axis < len(sizes_of(pick.source))
    analyse(graph, picks=every)


def _refs(movement: Movement) -> list[Ref]:
    entries = [entry for ways in movement.outputs for way in ways for entry in (way, *way)]
    found = [ref for entry in entries for ref in (entry if isinstance(entry, tuple) else ()) if isinstance(ref, Ref)]
    return [*found, *(ref for read in movement.reads for ref in read.refs)]


@torch.no_grad()
@pytest.mark.parametrize("name", SCALARS)
def test_a_graph_of_scalars_gives_what_eager_gives(name: str) -> None:
    torch._dynamo.reset()
    options = {"preset": "exact", "delegate": "eager", "strict": True}
    compiled = torch.compile(lambda *given: SCALARS[name](*given) + 1, backend="lightint", options=options)
    operands = (X, ROW, ONE, NUMBER)
    torch.testing.assert_close(compiled(*operands), SCALARS[name](*operands) + 1)
