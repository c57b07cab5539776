"""Where gradients are recorded the delegate gets the graph as it is, also where only the graph records them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightint_compile
from lightint_compile.capture.gradients import records_gradients

pytestmark = pytest.mark.usefixtures("one_thread")


class Guided(nn.Module):
    """Moves its input along a gradient that it computes itself, in a mode of its own."""

    def __init__(self, mode: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.mode, self.qkv = mode, nn.Linear(8, 24)

    def energy(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)).square().sum()

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            at = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(at), at)
        return x - slope


class Recording(nn.Module):
    """Hands out a result that its caller may differentiate."""

    def __init__(self, mode: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.mode, self.qkv = mode, nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


def compiled(model: nn.Module, delegate: str) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="lightint", options={"preset": "exact", "delegate": delegate})


@pytest.mark.parametrize(("args", "asks"), [((), True), ((True,), True), ((False,), False)])
def test_a_graph_that_asks_for_gradients(args: tuple[bool, ...], asks: bool) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_method("requires_grad_", (x, *args)),))
    module = torch.fx.GraphModule({}, graph)
    assert records_gradients(module, [torch.ones(2)]) == asks
    with torch.no_grad():
        assert not records_gradients(module, [torch.ones(2)])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("delegate", ["eager", "inductor"])
def test_a_gradient_that_the_model_computes(delegate: str, frozen: bool) -> None:
    torch.manual_seed(0)
    model = Guided(torch.enable_grad).eval().requires_grad_(not frozen)
    call = compiled(model, delegate)
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(1, 5, 8)
            torch.testing.assert_close(call(x), model(x))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("outer", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_results_require_gradients_as_in_eager(mode: Any, outer: Any, frozen: bool) -> None:
    torch.manual_seed(0)
    model = Recording(mode).eval().requires_grad_(not frozen)
    call, x = compiled(model, "eager"), torch.randn(1, 5, 8)
    with outer():
        expected, got = model(x), call(x)
        torch.testing.assert_close(got, expected)
        assert got.requires_grad == expected.requires_grad
    recorded = not frozen and (mode is torch.enable_grad or outer is torch.enable_grad)
    (section,) = lightint_compile.report(call).sections
    assert ("it needs gradients" in section.untouched) == recorded, "frozen weights are rewritten in any mode"
