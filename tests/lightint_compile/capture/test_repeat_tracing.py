"""Operations that a trace copies rather than traces again: the same graph, and nothing copied that must not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
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

    def counted(self: Any, result: Any, leaves: Any, last: fx.Node, tracer: Any) -> Any:
        traced.extend(node.target for node in retracing._after(last))
        return kept(self, result, leaves, last, tracer)

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


@pytest.mark.parametrize("noticed", [True, False])
def test_views_of_what_is_written_to_share_its_memory(noticed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not noticed:
        monkeypatch.setattr(capture, "writes", lambda graph_module: False)
    x = torch.randn(3, 4)
    program = capture.trace(_writes_through_views, (x,))
    for got, expected in zip(program.graph_module(x), _writes_through_views(x), strict=True):
        assert torch.equal(got, expected)


def test_statistics_that_a_norm_updates_count_as_a_write() -> None:
    from lightint_compile.errors import CaptureError

    norm = nn.BatchNorm1d(4).train().requires_grad_(False)
    with pytest.raises(CaptureError, match="writes to its inputs"):
        capture.trace(norm, (torch.randn(3, 4),))
