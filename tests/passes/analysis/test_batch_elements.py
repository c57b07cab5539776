"""Rules of batch elements: a graph for one element gives that element's part, or the graph is refused."""

from __future__ import annotations

import pytest
import torch
from differential import trace_function
from torch.nn import functional as F

from lightint_compile.passes.analysis.axes.factors import batch, place_of, plain, shared
from lightint_compile.passes.analysis.batch_elements.flow import Flows
from lightint_compile.passes.analysis.batch_elements.rows import Refused, Rows, join, take
from lightint_compile.passes.analysis.batch_elements.rules import regroup

COUNT = 3
X = torch.randn(COUNT, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
W = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

KEPT = {
    "pointwise": lambda x: x.sin() * 2 + x,
    "linear": lambda x, w: F.linear(x, w),
    "norm": lambda x: F.layer_norm(x, [6]),
    "softmax": lambda x: x.softmax(-1) + x.cumsum(1),
    "reductions": lambda x: x.mean(-1, keepdim=True) + x.amax((1, 2), keepdim=True),
    "products": lambda x, w: x @ w + torch.bmm(x, x.transpose(1, 2) @ x),
    "einsum": lambda x, w: torch.einsum("bnc,cd->bdn", x, w),
    "attention": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None].cos(), x[:, None].sin())[:, 0],
    "flattened": lambda x, w: F.linear(x.reshape(-1, 6), w).reshape(COUNT, 4, 6),
    "heads": lambda x: x.reshape(COUNT, 4, 2, 3).transpose(1, 2).reshape(COUNT, 2, 12),
    "two branches": lambda x: torch.cat([x, x.exp()], 0).sin().chunk(2, 0)[1],
    "branches apart": lambda x: torch.cat([x, x.exp()], 0)[COUNT:] * torch.cat([x, x.exp()], 0).split(COUNT, 0)[0],
    "shared text": lambda x, w: torch.cat([w[None, :4].expand(COUNT, -1, -1), x], 1),
    "text of two branches": lambda x, w: torch.cat(
        [w[None].expand(COUNT, -1, -1).repeat(2, 1, 1), torch.cat([x, x])], 1
    )[COUNT:],
    "filled": lambda x: x * torch.full((COUNT, 4), 3.0, dtype=x.dtype)[..., None],
    "filled and flattened": lambda x: x.flatten(0, 1) * torch.full((COUNT, 4), 3.0, dtype=x.dtype).flatten()[:, None],
    "repeated": lambda x: x.repeat_interleave(5, 1) + x.repeat(1, 5, 1),
    "stacked": lambda x: torch.stack([x, -x], -1).flatten(-2),
    "selected": lambda x: x.index_select(1, torch.arange(2)) + x[:, 1:3] + x[:, 0, None],
    "unbound": lambda x: x.unbind(1)[2],
    "inside of a row": lambda x: x.transpose(0, 1).reshape(2, 36),
    "full slice": lambda x: x[0:COUNT] + 1,
    "added product": lambda x, w: torch.baddbmm(x, x, w[None].expand(COUNT, -1, -1)),
    "nothing repeated": lambda x: torch.cat([x, x[:, :0].repeat(1, 2, 1), x[:, :0].repeat_interleave(2, 1)], 1),
    "numbers": lambda x, w: x * w[0, 0].squeeze(0) + w[0, 0].sum(0).softmax(0),
}

MIXED = {
    "mean": (lambda x: x - x.mean(0, keepdim=True), "reduces over the batch"),
    "mean of everything": (lambda x: x - x.mean(), ""),
    "flip": (lambda x: x.flip(0), "no rule"),
    "roll": (lambda x: x.roll(1, 0), "no rule"),
    "softmax": (lambda x: x.softmax(0), "runs along the batch"),
    "cumsum": (lambda x: x.cumsum(0), "runs along the batch"),
    "first": (lambda x: x + x[:1], "selects along the batch"),
    "one": (lambda x: x + x[1], "selects along the batch"),
    "index": (lambda x: x.index_select(0, torch.tensor([2, 0, 1])), "selects along the batch"),
    "unbind": (lambda x: x.unbind(0)[0] + x, "selects along the batch"),
    "pairs": (lambda x: (x[:, None] - x[None]).sum(1), "meet one another"),
    "product": (lambda x: torch.einsum("bnc,bnd->cd", x, x.cos()), "meet one another"),
    "contraction": (lambda x: x.permute(1, 2, 0) @ x.permute(1, 0, 2), "meet one another"),
    "transposed": (lambda x: x[:, :COUNT] + x[:, :COUNT].transpose(0, 1), "meet one another"),
    "table": (lambda x, w: x[..., :3] + w[:COUNT, :3, None].transpose(1, 2), "meet one another"),
    "interleaved": (lambda x: torch.cat([x[:, None], x[:, None]], 1).flatten(0, 1)[:COUNT], "selects along the batch"),
    "across": (lambda x: x.transpose(0, 1).reshape(8, 9), "cuts across the batch"),
    "attention": (
        lambda x: F.scaled_dot_product_attention(*[f(x.transpose(0, 1)) for f in (torch.sin, torch.cos, torch.exp)]),
        "",
    ),
    "joined": (lambda x, w: torch.cat([x, w[None, :4]], 0)[:COUNT], "meet one another"),
    "random": (lambda x: F.dropout(x, 0.5, True), "no rule"),
}


def row_graph(function, operands):
    """The traced function, its graph for one element, and where the elements are in its result."""
    program = trace_function(function, operands)
    root = program.graph_module
    elements = [torch.is_tensor(value) and value is not W for value in operands.values()]
    inputs = [
        (batch(COUNT), *map(plain, value.shape[1:])) if own else shared(value.shape)
        for own, value in zip(elements, operands.values(), strict=True)
    ]
    flows = Flows(root)
    flow = flows.of(root, inputs)
    return root, Rows(root, flows, COUNT).graph(root, flow), flow.results[0], elements


@pytest.mark.parametrize("name", KEPT)
def test_the_graph_of_one_element_gives_its_part(name) -> None:
    function = KEPT[name]
    operands = dict(zip("xw", (X, W), strict=True)) if function.__code__.co_argcount == 2 else {"x": X}
    root, one, layout, elements = row_graph(function, operands)
    (whole,), place = root(*operands.values()), place_of(layout)
    for element in range(COUNT):
        own = [
            value[element : element + 1] if each else value
            for each, value in zip(elements, operands.values(), strict=True)
        ]
        (row,) = one(*own)
        torch.testing.assert_close(row, take(whole, place.axis, place.outer, COUNT, element), rtol=1e-12, atol=1e-12)
        for node in one.graph.nodes:
            if node.op == "output":
                assert tuple(node.args[0][0].meta["val"].shape) == tuple(row.shape)


@pytest.mark.parametrize("name", MIXED)
def test_where_elements_meet_there_is_no_graph_of_one(name) -> None:
    function, why = MIXED[name]
    operands = dict(zip("xw", (X, W), strict=True)) if function.__code__.co_argcount == 2 else {"x": X}
    with pytest.raises(Refused) as refused:
        row_graph(function, operands)
    assert why in refused.value.reason


def test_a_row_inside_of_two_branches_is_a_view_and_rows_are_joined_in_their_memory_order() -> None:
    both = torch.cat([X, 10 * X])
    row = take(both, 0, 2, COUNT, 1)
    assert torch.equal(row, torch.stack([X[1], 10 * X[1]])) and row._base is both
    assert torch.equal(take(X.flatten(0, 1), 0, 1, COUNT, 2), X[2])
    turned = X.transpose(1, 2)
    rows = [take(turned, 0, 1, COUNT, element) for element in range(COUNT)]
    joined = join(rows, 0, (0, 2, 1))
    assert torch.equal(joined, turned) and joined.stride() == turned.stride()
    assert torch.equal(join(rows, 0, (0, 1, 2)), turned)


def test_views_follow_products_and_never_cut_the_batch() -> None:
    layout = (batch(3), plain(4), plain(6))
    assert regroup(layout, (12, 6)) == (batch(3, 1, 4), plain(6))
    assert regroup((batch(3, 1, 4), plain(6)), (3, 2, 2, 6)) == (batch(3), plain(2), plain(2), plain(6))
    assert regroup((batch(3, 2, 4),), (2, 12)) == (plain(2), batch(3, 1, 4))
    assert regroup((batch(4),), (2, 2)) is None
    assert regroup((plain(4), batch(3)), (3, 4)) is None
