"""Operations that a trace copies rather than traces again: the same graph, and nothing copied that must not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.capture import repeat_tracing as retracing
from lightint_compile.passes.ir.program import Program

aten = torch.ops.aten


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 8)).unbind(-2)
        q, rest = q.to(torch.float32).split([6, 2], -1)
        q = torch.cat([q * x.shape[1], rest[..., :1].expand(-1, -1, 2)], -1)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(0, 1).transpose(0, 1).contiguous()


class Layers(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _plainly(function: Callable[[], Program], monkeypatch: pytest.MonkeyPatch) -> Program:
    """What ``function`` captures when every operation is traced."""
    with monkeypatch.context() as patched:
        patched.setattr(
            retracing.RepeatingInterpreter, "_repeated", lambda self, t, args, kwargs, trace: trace(t, args, kwargs)
        )
        return function()


def _described(program: Program) -> list[Any]:
    place = {node: index for index, node in enumerate(program.graph.nodes)}
    return [
        (
            str(node.target),
            str(fx.map_arg((node.args, node.kwargs), place.__getitem__)),
            [(v.dtype, str(v.shape), str(v.stride())) if isinstance(v, Tensor) else str(v) for v in _values(node)],
            node.meta.get("nn_module_stack"),
            node.meta.get("stack_trace"),
        )
        for node in program.graph.nodes
    ]


def _values(node: fx.Node) -> list[Any]:
    return torch.utils._pytree.tree_leaves(node.meta.get("val"))


def _traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The targets that are traced rather than copied from now on."""
    traced: list[Any] = []
    kept = retracing.RepeatingInterpreter._kept

    def counted(self: Any, result: Any, leaves: Any, last: fx.Node, *more: Any) -> Any:
        traced.extend(node.target for node in retracing._after(last))
        return kept(self, result, leaves, last, *more)

    monkeypatch.setattr(retracing.RepeatingInterpreter, "_kept", counted)
    return traced


@pytest.mark.parametrize("dynamic", [None, {"x": 1}])
def test_the_graph_is_the_one_that_tracing_everything_gives(dynamic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Layers().eval().requires_grad_(False), torch.randn(2, 5, 8)
    plain = _plainly(lambda: capture.trace(module, (x,), dynamic=dynamic), monkeypatch)
    traced = _traced(monkeypatch)
    program = capture.trace(module, (x,), dynamic=dynamic)
    assert _described(program) == _described(plain)
    assert traced.count(aten.layer_norm.default) == traced.count(aten.scaled_dot_product_attention.default) == 1
    assert len(list(program.calls(aten.layer_norm.default))) == 3


@pytest.mark.parametrize("written", [False, True])
def test_every_node_has_a_value_of_its_own(written: bool) -> None:
    """Values that nodes shared would count as one tensor later."""
    layers = Layers().eval().requires_grad_(False)

    def network(x: Tensor) -> Tensor:
        x = layers(x)
        shown = x[:, 1:]
        return shown.add_(1) if written else shown.sin()

    program = capture.trace(network, (torch.randn(2, 5, 8),))
    values = [value for node in program.graph.nodes for value in _values(node) if isinstance(value, Tensor)]
    assert len(set(map(id, values))) == len(values) > 40


def test_autocast_tells_calls_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            half = F.linear(x, w)
        return half, F.linear(x, w), F.linear(x, w)

    x, w = torch.randn(4, 8), torch.randn(8, 8)
    program = capture.trace(both, (x, w))
    assert [value.dtype for value in program.graph_module(x, w)] == [torch.bfloat16, torch.float32, torch.float32]


def test_the_same_operand_twice_is_another_call() -> None:
    def products(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x @ x, x @ y, y @ y, y @ x

    x, y = torch.randn(4, 4), torch.randn(4, 4)
    for got, expected in zip(capture.trace(products, (x, y)).graph_module(x, y), products(x, y), strict=True):
        assert torch.equal(got, expected)


def test_random_numbers_are_drawn_anew() -> None:
    program = capture.trace(lambda x: (torch.rand_like(x), torch.rand_like(x)), (torch.zeros(8),))
    first, second = program.graph_module(torch.zeros(8))
    assert not torch.equal(first, second)


def test_sizes_that_the_data_tell_stay_apart() -> None:
    def chosen(x: Tensor) -> Tensor:
        return x[x > 0].sum() + x[x > 0].sum() + x[x > 1].sum()

    x = torch.linspace(-1, 3, 9)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        program = capture.trace(chosen, (x,))
    assert torch.equal(program.graph_module(x)[0], chosen(x))


def _writes_through_views(x: Tensor) -> tuple[Tensor, ...]:
    base = x * 2
    first, second = base.view(-1), base.view(-1)
    third = base.view(-1)
    second.add_(1)
    third[::2] = 0
    return base, first, second + 1, x.view(-1)


def test_views_of_what_is_written_to_share_its_memory() -> None:
    x = torch.randn(3, 4)
    program = capture.trace(_writes_through_views, (x,))
    for got, expected in zip(program.graph_module(x), _writes_through_views(x), strict=True):
        assert torch.equal(got, expected)


def _turned_and_back(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    turned = x * 2
    turned.t_()
    first = turned + w
    turned.t_()
    second = turned + w.t()
    turned.mul_(2)
    return first, second, turned + w.t(), turned + w.t()


def test_a_tensor_that_changes_its_form_in_place_is_read_as_it_is() -> None:
    inputs = torch.randn(3, 4), torch.randn(4, 3)
    program = capture.trace(_turned_and_back, inputs)
    for got, expected in zip(program.graph_module(*inputs), _turned_and_back(*inputs), strict=True):
        assert torch.equal(got, expected)


def test_statistics_that_a_norm_updates_count_as_a_write() -> None:
    from lightint_compile.errors import CaptureError

    norm = nn.BatchNorm1d(4).train().requires_grad_(False)
    with pytest.raises(CaptureError, match="writes to its inputs"):
        capture.trace(norm, (torch.randn(3, 4),))


def _inverted(poses: Tensor) -> Tensor:
    """Matrices that are filled entry by entry, as camera code does."""
    inverse = torch.zeros_like(poses)
    inverse[..., :2, :2] = poses[..., :2, :2].transpose(-1, -2)
    inverse[..., 0, 2] = 1.0 / (1 + poses[..., 0, 2].abs())
    inverse[..., 2, 2] = 1.0
    return inverse


class Posed(nn.Module):
    def forward(self, x: Tensor, poses: Tensor) -> Tensor:
        for _ in range(4):
            x = (_inverted(poses) @ x).reshape(-1, 3).view(x.shape)
        return x


@pytest.mark.parametrize("dynamic", [None, {"poses": 0, "x": 0}])
def test_writes_to_memory_of_their_own_are_copied(dynamic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = Posed(), (torch.randn(2, 3, 3), torch.randn(2, 3, 3))
    plain = _plainly(lambda: capture.trace(module, inputs, dynamic=dynamic), monkeypatch)
    traced = _traced(monkeypatch)
    program = capture.trace(module, inputs, dynamic=dynamic)
    assert _described(program) == _described(plain)
    assert traced.count(aten.zeros_like.default) == traced.count(aten.copy.default) / 2 == 1
    named = {"x": inputs[0], "poses": inputs[1], "poses.size().0": 2, "x.size().0": 2}
    assert torch.equal(program.graph_module(*(named[entry.path] for entry in program.inputs))[0], module(*inputs))


_READS: dict[str, Callable[[Tensor], Tensor]] = {
    "fresh": lambda t: t * 2,
    "zeros": torch.zeros_like,
    "same": lambda t: t.contiguous(),
    "flat": lambda t: t.view(-1).view(3, 4),
    "back": lambda t: t.reshape(4, 3).reshape(3, 4),
    "row": lambda t: t[:1].expand(3, 4) + t,
    "part": lambda t: t[:, :2].repeat(1, 2),
    "halves": lambda t: torch.cat(t.chunk(2, -1)[::-1], -1),
    "turned": lambda t: t.transpose(0, 1).transpose(0, 1),
}


def _put(t: Tensor, other: Tensor) -> None:
    t[1:, ::2] = other[1:, ::2]


_PUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "number": lambda t, other: t.select(1, 0).fill_(3),
    "part": _put,
    "all": lambda t, other: t.copy_(other),
    "through a view": lambda t, other: t.view(-1)[2:5].mul_(2),
    "added": lambda t, other: t.add_(other),
    "chained": lambda t, other: t.mul_(0.5).sub_(1),
}
OPERATIONS = st.lists(st.tuples(st.sampled_from([*_READS, *_PUTS]), st.integers(0, 9), st.integers(0, 9)), max_size=7)


@given(operations=OPERATIONS, rounds=st.integers(2, 3))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_views_and_writes_in_any_order_are_eager_s(operations: list[tuple[str, int, int]], rounds: int) -> None:
    def program(x: Tensor) -> tuple[Tensor, ...]:
        tensors = [x + 1]
        for _ in range(rounds):
            for name, first, second in operations:
                one, other = (tensors[-1 - index % len(tensors)] for index in (first, second))
                if name in _READS:
                    tensors.append(_READS[name](one))
                else:
                    _PUTS[name](one, other.clone())
            tensors.append(tensors[-1] + 1)
        return tuple(tensors)

    x = torch.arange(12.0).view(3, 4)
    for got, expected in zip(capture.trace(program, (x,)).graph_module(x), program(x), strict=True):
        assert torch.equal(got, expected)
