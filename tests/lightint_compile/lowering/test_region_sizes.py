"""A region's sizes become polynomials in fresh symbols whose values its own arguments give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from lightint_compile.errors import CaptureError
from lightint_compile.lowering.region import Leaf, inductor_compiler
from lightint_compile.lowering.region_sizes import fresh_inputs


@pytest.fixture
def mode() -> FakeTensorMode:
    return FakeTensorMode(shape_env=ShapeEnv())


def _symbol(mode: FakeTensorMode, hint: int, name: str) -> Any:
    env, source = mode.shape_env, ConstantSource(name)
    symbol = env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC)
    return env.create_symintnode(symbol, hint=hint, source=source)


def test_sizes_of_one_origin_stay_related(mode: FakeTensorMode) -> None:
    count = torch.sym_min(_symbol(mode, 8, "frames"), 20)
    with mode:
        context, keys = torch.empty(2, 24 * count, 4), torch.empty(2, 24 * count + 96, 4)
    fresh = fresh_inputs([context, keys])
    (symbol,) = fresh.symbols
    assert [str(size).count("*") for size in (fresh.values[0].shape[1], symbol)] == [1, 0]
    assert int(fresh.values[1].shape[1]) == 24 * 8 + 96
    real = [torch.empty(2, 24 * 12, 4), torch.empty(2, 24 * 12 + 96, 4)]
    assert [bound.read(real) for bound in fresh.bindings] == [12]
    assert fresh.extra == (0,)


def test_a_size_that_is_an_argument_is_read_from_it(mode: FakeTensorMode) -> None:
    count = _symbol(mode, 8, "frames")
    with mode:
        tensor = torch.empty(count * 6, 4)
    fresh = fresh_inputs([tensor, count])
    assert [(bound.argument, bound.dim) for bound in fresh.bindings] == [(1, None)]
    assert fresh.extra == ()


def test_old_and_fresh_symbols_are_never_confused(mode: FakeTensorMode) -> None:
    first, second = _symbol(mode, 6, "a"), _symbol(mode, 10, "b")
    with mode:
        tensors = [torch.empty(second, 3), torch.empty(first, 3), torch.empty(first + second, 3)]
    fresh = fresh_inputs(tensors)
    assert [int(value.shape[0]) for value in fresh.values] == [10, 6, 16]
    assert [bound.read([torch.empty(n, 3) for n in (7, 9, 16)]) for bound in fresh.bindings] == [7, 9]


def test_a_view_is_told_by_its_stride(mode: FakeTensorMode) -> None:
    count = _symbol(mode, 12, "frames")
    with mode:
        view = torch.empty(2, count, 4)[:, -4:]
    fresh = fresh_inputs([view])
    assert [bound.read([torch.empty(2, 20, 4)[:, -4:]]) for bound in fresh.bindings] == [20]


def test_hints_of_a_call_replace_those_of_the_trace(mode: FakeTensorMode) -> None:
    with mode:
        tensor = torch.empty(_symbol(mode, 8, "frames"), 4)
    fresh = fresh_inputs([tensor], [torch.empty(30, 4)])
    assert int(fresh.values[0].shape[0]) == 30


def test_sizes_that_are_only_seen_as_their_sum_are_one_size(mode: FakeTensorMode) -> None:
    a, b = _symbol(mode, 6, "a"), _symbol(mode, 10, "b")
    with mode:
        tensors = [torch.empty(a + b, 3), torch.empty(2 * a + 2 * b + 5, 3)]
    fresh = fresh_inputs(tensors)
    assert [bound.read([torch.empty(9, 3), torch.empty(23, 3)]) for bound in fresh.bindings] == [9]
    assert [int(value.shape[0]) for value in fresh.values] == [16, 37]


def test_an_integer_may_be_negative_and_a_size_of_one_is_guarded(mode: FakeTensorMode) -> None:
    count = _symbol(mode, 8, "frames")
    with mode:
        tensor = torch.empty(count - 7, 3)
    fresh = fresh_inputs([tensor, 2 - count])
    assert [int(value) for value in (fresh.values[0].shape[0], fresh.values[1])] == [1, -6]
    with mode:
        tokens = torch.empty(torch.sym_min(count, 20), 3)
    alone = fresh_inputs([tokens], [torch.empty(1, 3)])
    assert not alone.symbols and alone.guard() == "(L['t0'] == 1)"
    assert [bound.read([torch.empty(5, 3)]) for bound in alone.guarded()] == [5]


def test_sizes_of_a_call_that_are_not_related_as_those_of_the_trace_are_refused(mode: FakeTensorMode) -> None:
    with mode:
        tensor = torch.empty(24 * torch.sym_min(_symbol(mode, 8, "frames"), 20), 4)
    with pytest.raises(CaptureError, match="not related"):
        fresh_inputs([tensor], [torch.empty(25, 4)])


def test_height_and_width_that_are_only_seen_as_tokens_are_one_size(mode: FakeTensorMode) -> None:
    height, width, frames = _symbol(mode, 6, "h"), _symbol(mode, 10, "w"), _symbol(mode, 4, "f")
    with mode:
        tensors = [torch.empty(frames, 3), torch.empty(frames * height * width + 5 * height * width, 4)]
        tokens = torch.empty(2 * height * width, 4)
    fresh = fresh_inputs([*tensors, tokens])
    real = [torch.empty(7, 3), torch.empty(12 * 8 * 9, 4), torch.empty(2 * 8 * 9, 4)]
    assert sorted(bound.read(real) for bound in fresh.bindings) == [7, 8 * 9]
    assert [int(value.shape[0]) for value in fresh.values] == [4, 9 * 60, 120]


def test_a_stride_that_addresses_nothing_is_kept(mode: FakeTensorMode) -> None:
    frames = _symbol(mode, 8, "frames")
    with mode:
        weight, last = torch.empty(6, 1, 4), torch.empty(3, frames, 4)[:1, 2:].transpose(1, 2)
    fresh = fresh_inputs([weight, last])
    assert fresh.values[0].stride() == (4, 4, 1)
    assert tuple(map(int, fresh.values[1].stride())) == (8 * 4, 1, 4)
    assert [bound.of_stride for bound in fresh.bindings] == [False]


def test_a_stride_that_addresses_nothing_and_that_nothing_gives_away_is_the_outermost(mode: FakeTensorMode) -> None:
    with mode:
        tokens = torch.empty(1, _symbol(mode, 12, "frames"), 4)[:, -3:]
    fresh = fresh_inputs([tokens, tokens.transpose(1, 2)])
    assert [value.stride() for value in fresh.values] == [(12, 4, 1), (12, 1, 4)]
    assert not fresh.symbols


def test_a_convolution_returns_the_memory_order_that_its_region_was_compiled_for(mode: FakeTensorMode) -> None:
    graph = fx.Graph()
    tokens, weight = (graph.placeholder(name) for name in ("tokens", "weight"))
    channels = graph.call_function(torch.ops.aten.transpose.int, (tokens, 1, 2))
    arguments = (channels, weight, None, [1], [3], [1], 8)
    graph.output((graph.call_function(torch.ops.aten.conv1d.default, arguments),))
    real = [torch.randn(2, 5, 8), torch.randn(8, 1, 4)]
    for node, value in zip((tokens, weight), real, strict=True):
        node.meta["val"] = mode.from_tensor(value)
    leaf = Leaf("filter", lambda: fx.GraphModule({}, graph), inductor_compiler({}))
    (result,) = leaf(*real)
    torch.testing.assert_close(result, F.conv1d(real[0].mT, real[1], padding=3, groups=8))


@pytest.mark.parametrize(
    ("lengths", "returned"),
    [
        ((50, 20, 4), False),  # conditions on the number of rows behind the context can be written down
        ((6, 20, 7), False),  # and are not lost: of six rows none is behind it, and that holds for six alone
        ((6, 20, 7), True),
    ],
)
def test_an_integer_that_a_size_of_one_fixes_is_a_constant_of_the_code(
    mode: FakeTensorMode, lengths: tuple[int, ...], returned: bool
) -> None:
    count, length = _symbol(mode, 5, "count"), _symbol(mode, 50, "length")
    with mode:
        values = [torch.empty(count, 3), torch.empty(length, 4), 6 * count]
    graph = fx.Graph()
    frames, tokens, context = (graph.placeholder(name) for name in ("frames", "tokens", "context"))
    for node, value in zip((frames, tokens, context), values, strict=True):
        node.meta["val"] = value
    behind = graph.call_function(torch.ops.aten.slice.Tensor, (tokens, 0, context, 2**63 - 1))
    rows = graph.call_function(torch.ops.aten.view.default, (behind, [1, -1, 4]))
    graph.output((rows, context) if returned else (rows,))
    leaf = Leaf("later", lambda: fx.GraphModule({}, graph), inductor_compiler({}), strict=True)
    for each in lengths:
        real = torch.randn(each, 4)
        result, *rest = leaf(torch.empty(1, 3), real, 6)
        torch.testing.assert_close(result, real[None, 6:])
        assert rest == ([6] if returned else [])
