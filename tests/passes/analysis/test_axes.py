"""The table of movements against what operators do, value by value; and an operator that is taught once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from differential import trace_function
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightint_compile.passes.analysis.axes.attention import DIALECTS, Dialect
from lightint_compile.passes.analysis.axes.factors import batch, place_of, plain
from lightint_compile.passes.analysis.axes.movement import (
    MOVEMENTS,
    Along,
    Joined,
    Movement,
    Padded,
    Picked,
    Range,
    Ref,
    Times,
    Way,
    Written,
    moves,
)
from lightint_compile.passes.analysis.axes.moving import kept, moved, operand
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.analysis.batch_elements.flow import Flow, Flows
from lightint_compile.passes.analysis.row_repeats.analysis import Analysis, analyse
from lightint_compile.passes.analysis.row_repeats.layout import kept_size
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.canonicalize_attention.axes import fresh_axes
from lightint_compile.passes.canonicalize_attention.layout import is_layout, transfer
from lightint_compile.passes.ir.op_arguments import einsum_of, sizes_of, tensors


def fixed(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


X, Y, W = fixed(2, 4, 6), fixed(2, 4, 6).cos(), fixed(6, 6)
V = fixed(1, 2, 3, 4, 4)
aten = torch.ops.aten


@torch.library.custom_op("axes_test::tokens_first", mutates_args=())
def tokens_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as packages of flash attention have it: [batch, tokens, heads, width]."""
    heads_first = [each.transpose(1, 2) for each in (q, k, v)]
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2).contiguous()


@tokens_first.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@pytest.fixture(autouse=True)
def dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tokens_first`` is spelled as flash attention is."""
    monkeypatch.setitem(DIALECTS, "axes_test::tokens_first", Dialect("q", "k", "v", order=(0, 2, 1, 3)))


#: Functions of one operator each, with their operands.
CALLS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "pointwise": (lambda x, y: x * y, (X, Y[:, :1])),
    "permute": (lambda x: x.permute(2, 0, 1), (X,)),
    "movedim": (lambda x: aten.movedim.int(x, 0, 2), (X,)),
    "unsqueeze": (lambda x: x.unsqueeze(-2), (X,)),
    "squeeze": (lambda x: aten.squeeze.dim(x, 0), (X[:1],)),
    "expand": (lambda x: x.expand(3, 5, 4, 6), (X[:1],)),
    "repeat": (lambda x: x.repeat(2, 1, 3, 1), (X,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 1), (X,)),
    "select": (lambda x: x[:, 2], (X,)),
    "slice": (lambda x: x[:, 1:-1:2], (X,)),
    "narrow": (lambda x: aten.narrow.default(x, 2, 1, 3), (X,)),
    "split": (lambda x: x.split([1, 3], 1), (X,)),
    "unbind": (lambda x: x.unbind(1), (X,)),
    "cat": (lambda x, y: torch.cat([x, y, x], 1), (X, Y)),
    "stack": (lambda x, y: torch.stack([x, y], 1), (X, Y)),
    "index_select": (lambda x, i: x.index_select(1, i), (X, torch.tensor([3, 0, 0]))),
    "index": (lambda x, i: x[:, i], (X, torch.tensor([3, 1]))),
    "embedding": (lambda w, i: F.embedding(i, w), (W, torch.tensor([[3, 1, 0], [5, 5, 2]]))),
    "roll": (lambda x: x.roll(1, 1), (X,)),
    "flip": (lambda x: x.flip(2), (X,)),
    "pad": (lambda x: aten.constant_pad_nd.default(x, [0, 0, 1, 2]), (X,)),
    "slice_scatter": (lambda x, y: torch.slice_scatter(x, y[:, :2], 1, 1, 3), (X, Y)),
    "slice_scatter by steps": (lambda x, y: torch.slice_scatter(x, y[:, :2], 1, 0, 4, 2), (X, Y)),
    "select_scatter": (lambda x, y: torch.select_scatter(x, y[:, 0], 1, 2), (X, Y)),
    "tril": (lambda x: x.tril(), (X,)),
    "linear": (lambda x, w: F.linear(x, w), (X, W)),
    "layer_norm": (lambda x: F.layer_norm(x, [6]), (X,)),
    "group_norm": (lambda x: F.group_norm(x, 2), (X,)),
    "softmax": (lambda x: x.softmax(1), (X,)),
    "cumsum": (lambda x: x.cumsum(2), (X,)),
    "mean": (lambda x: x.mean((0, 2), keepdim=True), (X,)),
    "std": (lambda x: x.std(1), (X,)),
    "matmul": (lambda x, y: x @ y, (X[:, None], X[0, None].transpose(1, 2))),
    "matrix times vector": (lambda x, y: aten.matmul.default(x, y), (X, W[0])),
    "bmm": (lambda x, y: torch.bmm(x, y), (X, X.transpose(1, 2))),
    "baddbmm": (lambda a, x, y: torch.baddbmm(a, x, y), (fixed(1, 4), X, X.transpose(1, 2))),
    "einsum": (lambda x, y, w: torch.einsum("bnc,bmc,cd->dbnm", x, y, w), (X, Y, W)),
    "einsum with dots": (lambda x, w: torch.einsum("...c,cd->d...", x, w), (X, W)),
    "einsum without an arrow": (lambda x, w: torch.einsum("bnc,dc", x, w), (X, W)),
    "einsum of a diagonal": (lambda w: torch.einsum("ii->i", w), (W,)),
    "outer": (lambda x, y: aten.outer.default(x, y), (X[0, 0], X[0, :, 0])),
    "inverse": (lambda x: torch.linalg.inv(x), (fixed(2, 3, 4, 4),)),
    "diagonal": (lambda x: torch.diag_embed(x), (X,)),
    "convolution": (lambda v, w: F.conv3d(v, w), (V, fixed(3, 2, 1, 2, 2))),
    "pooling": (lambda v: F.avg_pool2d(v[0], 2), (V,)),
    "attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), (X[None], Y[None], X[None].sin())),
    "attention with a mask": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        (X[None], Y[None], X[None].sin(), fixed(2, 1, 4)),
    ),
    "causal attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (X[None], Y[None], X[None].sin()),
    ),
    "grouped attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        (fixed(1, 4, 3, 6), X[None], X[None].sin()),
    ),
    "math attention": (
        lambda q, k, v: aten._scaled_dot_product_attention_math.default(q, k, v)[0],
        (X[None], Y[None], X[None].sin()),
    ),
    "flash attention": (
        lambda q, k, v: aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v)[0],
        (X[None], Y[None], X[None].sin()),
    ),
    "attention of tokens before heads": (
        lambda q, k, v: torch.ops.axes_test.tokens_first(q, k, v),
        (fixed(1, 3, 2, 4), fixed(1, 5, 2, 4), fixed(1, 5, 2, 6)),
    ),
    "meshgrid": (lambda x, y: torch.meshgrid(x, y, indexing="xy"), (X[0, 0], X[0, :, 0])),
    "view_as_real": (lambda x: torch.view_as_real(x), (torch.complex(X, Y),)),
}


def moved_by(function: Callable[..., Any], operands: tuple[Tensor, ...]) -> tuple[Any, Movement]:
    """The last operator of a traced function, and its movement."""
    program = trace_function(function, dict(zip("abcd", operands, strict=False)))
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and "getitem" not in node.name]
    movement = movement_of(nodes[-1])
    assert movement is not None, nodes[-1].target
    return nodes[-1], movement


def called(node: Any, values: dict[Any, Tensor]) -> list[Tensor]:
    """The results of a call on other values."""
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
    result = node.target(*args, **kwargs)
    return [result] if isinstance(result, Tensor) else list(result)


def touched(node: Any, values: dict[Any, Tensor], ref: Ref, place: int, output: int, axis: int) -> set[int]:
    """The places along an axis of a result that change with one place along an axis of an operand."""
    before = called(node, values)[output]
    moved = values[ref.node].clone()
    moved.select(ref.axis, place).mul_(1.5).add_(0.25)
    after = called(node, values | {ref.node: moved})[output]
    changed = (before != after).movedim(axis, 0).reshape(before.shape[axis], -1).any(1)
    return set(changed.nonzero().flatten().tolist())


def expected(way: Way, ref: Ref, place: int, length: int, values: dict[Any, Tensor]) -> set[int] | None:
    """Where a value at ``place`` of ``ref`` is found along an axis of the result; ``None``: anywhere."""
    extent = values[ref.node].shape[ref.axis]
    match way:
        case Along(refs) if ref in refs:
            return set(range(length)) if extent == 1 else {place}
        case Range(own, start, step) if own == ref:
            return {(place - start) // step} if (place - start) % step == 0 and place - start >= 0 else set()
        case Joined(refs) if ref in refs:
            lengths = [values[each.node].shape[each.axis] for each in refs]
            starts = [sum(lengths[:number]) for number, each in enumerate(refs) if each == ref]
            return {start + place for start in starts}
        case Picked(own, numbers) if own == ref:
            return {at for at, number in enumerate(values[numbers.node].tolist()) if number == place}
        case Times(own, copies, outside) if own == ref:
            return {(copy * extent + place) if outside else (place * copies + copy) for copy in range(copies)}
        case Padded(own, before, _) if own == ref:
            return {place + before}
        case Written(_, source, start, step) if source == ref:
            return {place * step + start}
    return None


@pytest.mark.parametrize("name", CALLS)
def test_a_movement_says_where_every_value_goes(name: str) -> None:
    """One place along one axis of one operand is changed at a time: results change where the movement says."""
    function, operands = CALLS[name]
    node, movement = moved_by(function, operands)
    values = {source: torch.randn(sizes_of(source), dtype=torch.float64) for source in tensors(node)}
    values |= {source: source.meta["val"].new_zeros(()) for source in node.all_input_nodes if source not in values}
    for source, value in zip((n for n in node.graph.nodes if n.op == "placeholder"), operands, strict=True):
        if source in values:
            values[source] = value
    read = {ref for each in movement.reads for ref in each.refs}
    checked = 0
    for output, ways in enumerate(movement.outputs):
        result = called(node, values)[output]
        assert len(ways) == result.dim()
        for axis, way in enumerate(ways):
            for source in tensors(node):
                if not values[source].dtype.is_floating_point and not values[source].dtype.is_complex:
                    continue
                for ref in (Ref(source, number) for number in range(values[source].dim())):
                    for place in range(values[source].shape[ref.axis]):
                        wanted = expected(way, ref, place, result.shape[axis], values)
                        if wanted is not None:
                            limit = {at for at in wanted if at < result.shape[axis]}
                            assert touched(node, values, ref, place, output, axis) <= limit, (way, ref, place)
                            checked += 1
                    named = any(ref in _named(way) for way in movement.ways())
                    assert named or ref in read or values[source].shape[ref.axis] == 1, (ref, "is told nowhere")
    assert checked or read


@pytest.mark.parametrize("function", [lambda x: x[:, 2], lambda x: x[:, -1], lambda x: x.unbind(1)])
def test_a_choice_of_one_value_says_where_it_stands(function: Callable[..., Any]) -> None:
    node, movement = moved_by(function, (X,))
    (read,) = movement.reads
    (ref,) = read.refs
    assert len(movement.places) == len(movement.outputs)
    for result, place in zip(called(node, {ref.node: X}), movement.places, strict=True):
        assert torch.equal(result, X.select(ref.axis, int(place)))


def _named(way: Way) -> set[Ref]:
    found: set[Ref] = set()
    for entry in way:
        found |= {entry} if isinstance(entry, Ref) else set(entry) if isinstance(entry, tuple) else set()
    return found


@pytest.mark.parametrize("name", CALLS)
def test_values_along_an_axis_are_treated_alike(name: str) -> None:
    """Shuffling all axes that one axis of the result goes along shuffles the result, and nothing else."""
    function, operands = CALLS[name]
    node, movement = moved_by(function, operands)
    values = {source: torch.rand(sizes_of(source), dtype=torch.float64) + 0.5 for source in tensors(node)}
    for source, value in zip((n for n in node.graph.nodes if n.op == "placeholder"), operands, strict=True):
        if source in values and not value.dtype.is_floating_point:
            values[source] = value
    read = {ref for each in movement.reads for ref in each.refs}
    for output, ways in enumerate(movement.outputs):
        for axis, way in enumerate(ways):
            if not isinstance(way, Along) or read & set(way.refs):
                continue
            shuffled = dict(values)
            for ref in set(way.refs):
                shuffled[ref.node] = shuffled[ref.node].flip(ref.axis)
            before, after = called(node, values)[output], called(node, shuffled)[output]
            torch.testing.assert_close(after, before.flip(axis), rtol=1e-9, atol=1e-9, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_einsum_is_read_as_torch_reads_it(data: st.DataObject) -> None:
    """Dots are spelled out and a missing result is written, whatever the order of the letters."""
    letters = data.draw(st.permutations("abc"))
    dots = data.draw(st.integers(0, 2))
    left, right = "..." * bool(dots) + "".join(letters[:2]), "".join(letters[1:]) + "..." * bool(dots)
    arrow = data.draw(st.booleans())
    equation = f"{left},{right}" + (f"->{letters[0]}{'...' * bool(dots)}{letters[2]}" if arrow else "")
    sizes = {"a": 2, "b": 3, "c": 4}
    x = fixed(*[5, 6][2 - dots :], *[sizes[c] for c in letters[:2]])
    y = fixed(*[sizes[c] for c in letters[1:]], *[5, 6][2 - dots :])
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(name) for name in "xy"]
    for node, value in zip(nodes, (x, y), strict=True):
        node.meta["val"] = value
    found = einsum_of(graph.call_function(aten.einsum.default, (equation, nodes)))
    written = ",".join(labels for labels, _ in found.operands) + "->" + found.result
    assert "." not in written
    torch.testing.assert_close(torch.einsum(written, x, y), torch.einsum(equation, x, y))


# --- an operator from outside ----------------------------------------------------------------------------------------


@torch.library.custom_op("axes_test::heads_first", mutates_args=())
def heads_first(tokens: Tensor) -> Tensor:
    """[batch, tokens, heads, width] to [batch, heads, tokens, width]."""
    return tokens.transpose(1, 2).contiguous()


@heads_first.register_fake
def _(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).contiguous()


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """``heads_first`` in the table, for one test."""
    monkeypatch.setitem(MOVEMENTS, torch.ops.axes_test.heads_first.default, None)

    @moves(torch.ops.axes_test.heads_first.default)
    def rule(node: torch.fx.Node) -> Movement:
        batch, tokens, heads, width = kept(operand(node))
        return moved((batch, heads, tokens, width))


def grid_on(axis: int) -> str:
    def heads(video: Tensor, weight: Tensor) -> Tensor:
        tokens = F.conv3d(video, weight, stride=(1, 2, 2)).flatten(2).transpose(1, 2)
        return torch.ops.axes_test.heads_first(tokens.unflatten(2, (2, 8)))

    program = trace_function(heads, {"video": torch.zeros(1, 4, 4, 8, 8), "weight": torch.zeros(16, 4, 1, 2, 2)})
    return str(program.fact(TokenGrid).of(program.graph.output_node().args[0][0], axis))


def repeats_with() -> Analysis:
    def call(x: Tensor) -> Tensor:
        return torch.ops.axes_test.heads_first(x.repeat_interleave(5, 1)).exp()

    return analyse(trace_function(call, {"x": fixed(2, 3, 2, 4)}).graph)


def elements_with() -> Flow:
    root = trace_function(lambda x: torch.ops.axes_test.heads_first(x) * 2, {"x": fixed(3, 4, 2, 4)}).graph_module
    return Flows(root).of(root, [(batch(3), plain(4), plain(2), plain(4))])


def identity_through() -> tuple[bool, list[int]]:
    """Whether attention is followed through ``heads_first``, and which axis of its operand each axis is."""
    program = trace_function(lambda x: torch.ops.axes_test.heads_first(x) * 2, {"x": fixed(2, 3, 2, 4)})
    (node,) = program.calls(torch.ops.axes_test.heads_first.default)
    before = fresh_axes((2, 3, 2, 4))
    return is_layout(node), [before.index(axis) for axis in transfer(node, before)]


def test_an_operator_that_nobody_taught_ends_every_analysis() -> None:
    assert grid_on(2) != "4x4x4"
    assert [b.reason for b in repeats_with().blocked.values()] == ["no rule for axes_test.heads_first.default"]
    (mixed,) = elements_with().mixed.values()
    assert "no rule says" in mixed.reason
    assert identity_through() == (False, [0, 1, 2, 3])


def test_an_operator_is_taught_in_one_place_and_all_analyses_know_it(taught: None) -> None:
    analysis = repeats_with()
    (exp,) = [node for node in analysis.sunk if node.target is aten.exp.default]
    assert not analysis.blocked and kept_size(analysis.sunk[exp].plan.result[2]) == 3
    assert grid_on(2) == "4x4x4"
    flow = elements_with()
    assert not flow.mixed and place_of(flow.results[0]) == (0, 1, 1)
    assert identity_through() == (True, [0, 2, 1, 3])
