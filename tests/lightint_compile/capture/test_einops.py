"""Patterns of einops: one node of Dynamo's graph each while a module is accelerated, and equal ones traced once."""

from __future__ import annotations

import einops
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.capture.memos import Memos
from lightint_compile.capture.tracing_help import allow_help, helped

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_dynamo")


class Attention(nn.Module):
    """As released models spell it: patterns around the projections, sizes given and found."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = einops.rearrange(self.qkv(x), "b n (k h d) -> k b h n d", k=3, h=4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = einops.einsum(attended, torch.ones(4, 4), "b h n d, h g -> b g n d")
        mean = einops.reduce(tokens, "b h n d -> b 1 (h d)", "mean")
        tokens = einops.rearrange(tokens, "b h n d -> b n (h d)")
        return self.out(tokens + einops.repeat(mean, "b 1 c -> b n c", n=x.shape[1]))


def functions_of(module: nn.Module, x: Tensor) -> list[str]:
    """Names of what Dynamo's graph of a call under our help calls."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph_module: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph_module)
        return graph_module.forward

    undo = allow_help()
    try:
        with helped(Memos()):
            torch.compile(module, backend=keep, fullgraph=True)(x)
    finally:
        undo()
    (graph,) = graphs
    return [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]


def test_a_pattern_is_one_node() -> None:
    names = functions_of(Attention(), torch.randn(2, 6, 16))
    assert [name for name in names if hasattr(einops, name)] == ["rearrange", "einsum", "reduce", "rearrange", "repeat"]


def test_dynamo_is_its_own_again_afterwards() -> None:
    before = torch._dynamo.variables.functions.UserFunctionVariable.call_function
    functions_of(Attention(), torch.randn(2, 6, 16))
    assert torch._dynamo.variables.functions.UserFunctionVariable.call_function is before


def test_results_are_eager_s_at_every_size() -> None:
    blocks = nn.Sequential(*(Attention() for _ in range(3)))
    inputs = [torch.randn(2, tokens, 16) for tokens in (6, 9, 12, 6)]
    wanted = [blocks(x) for x in inputs]
    handle = lightint_compile.accelerate(blocks, preset="exact", delegate="eager")
    for x, expected in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(blocks(x), expected)
    assert counters["stats"]["unique_graphs"] == 2  # of one size, then of any
    handle.undo()


def test_tensors_in_a_list() -> None:
    class Stacked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return einops.rearrange([x, x + 1], "k n c -> n (k c)")

    x = torch.randn(6, 16)
    assert "rearrange" in functions_of(Stacked(), x)
    handle = lightint_compile.accelerate(module := Stacked(), preset="exact", delegate="eager")
    assert torch.equal(module(x), Stacked()(x))
    handle.undo()


def test_a_pattern_that_does_not_fit_raises_as_in_eager() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return einops.rearrange(x, "b (n m) c -> b n (m c)", m=5)

    module, x = Wrong(), torch.randn(2, 6, 16)
    handle = lightint_compile.accelerate(module, preset="exact", delegate="eager")
    with pytest.raises(einops.EinopsError):
        module(x)
    handle.undo()
