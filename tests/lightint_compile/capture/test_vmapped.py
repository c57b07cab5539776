"""Functions of positions under ``vmap`` beside layers: the layers stay whole, and the numbers are eager's."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from differential import trace
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_variants import mostly_slow
from torch import Tensor, nn

from lightint_compile.capture.vmapped import is_switch, stretches_of
from lightint_compile.passes.ir.program import Program

OPTIONS = {"preset": "exact", "delegate": "eager", "strict": True}
Positions = Callable[[Tensor, Tensor], Tensor]


def pairs(function: Positions, tokens: int) -> Tensor:
    places = torch.arange(tokens)
    return torch.vmap(torch.vmap(function, (None, 0)), (0, None))(places, places)


class Layers(nn.Module):
    """A patch embedding, a norm, attention under a mask, and a linear."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv3d(2, 8, (1, 2, 2), (1, 2, 2)), nn.LayerNorm(8)
        self.qkv, self.mask = nn.Linear(8, 24), mask

    def forward(self, latent: Tensor) -> Tensor:
        tokens = self.patch(latent).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(self.norm(tokens)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, self.mask(tokens))
        return tokens + mixed.transpose(1, 2).flatten(2)


def layers(mask: Callable[[Tensor], Tensor]) -> Layers:
    torch.manual_seed(0)
    return Layers(mask).eval().requires_grad_(False)


WHOLE = ("convolution", "conv3d", "layer_norm", "linear", "scaled_dot_product_attention")


def kept_whole(program: Program) -> Counter[str]:
    names = (str(getattr(node.target, "_schema", None) and node.target._schema.name) for node in program.graph.nodes)
    return Counter(name for name in names if name.removeprefix("aten::") in WHOLE)


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "causal": lambda tokens: pairs(lambda q, k: k <= q, tokens.shape[1]),
    "a window": lambda tokens: pairs(lambda q, k: (k <= q) & (k > q - 5), tokens.shape[1]),
    "of a constant": lambda tokens: pairs(lambda q, k: torch.tensor(3) * q >= k, tokens.shape[1]),
    "of data": lambda tokens: pairs(lambda q, k: tokens[0, q, 0] >= tokens[0, k, 0] - 1, tokens.shape[1]),
    "read twice": lambda tokens: (lambda mask: mask | mask.T)(pairs(lambda q, k: k <= q, tokens.shape[1])),
    "two of them": lambda tokens: (
        pairs(lambda q, k: k <= q, tokens.shape[1]) | pairs(lambda q, k: k > q, tokens.shape[1])
    ),
    "with a write": lambda tokens: pairs(lambda q, k: (q - k).clone().add_(3) > 0, tokens.shape[1]),
    "of one axis": lambda tokens: torch.vmap(lambda q: q > 3)(torch.arange(tokens.shape[1]))[None],
}


QUICK = {"causal", "of a constant", "of data", "with a write", "of one axis"}


@pytest.mark.parametrize("name", mostly_slow(MASKS, quick=QUICK))
def test_layers_beside_a_mask_stay_whole(name: str) -> None:
    module, latent = layers(MASKS[name]), torch.randn(1, 2, 3, 4, 8)
    plain = trace(layers(lambda tokens: torch.ones(1, tokens.shape[1], dtype=torch.bool)), {"latent": latent})
    program = trace(module, {"latent": latent})
    assert kept_whole(program) == kept_whole(plain) and sum(kept_whole(plain).values()) == 4
    assert not any("functorch" in str(node.target) for node in program.graph.nodes)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="lightint", options=OPTIONS)
    for _ in range(2):
        latent = torch.randn(1, 2, 3, 4, 8)
        torch.testing.assert_close(compiled(latent), module(latent))


@pytest.mark.parametrize("name", ["causal", "of data"])
def test_sizes_may_be_symbols(name: str) -> None:
    module = layers(MASKS[name])
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="lightint", dynamic=True, options=OPTIONS)
    for frames in (3, 5, 2):
        latent = torch.randn(1, 2, frames, 4, 8)
        torch.testing.assert_close(compiled(latent), module(latent))


def test_other_transforms_are_traced_with_the_whole_graph() -> None:
    def call(latent: Tensor) -> Tensor:
        return torch.func.grad(lambda x: x.sin().sum())(latent) + torch.vmap(torch.sin)(latent)

    caught: list[torch.fx.GraphModule] = []

    def catch(graph_module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        caught.append(graph_module)
        return graph_module.forward

    torch._dynamo.reset()
    torch.compile(call, backend=catch)(torch.randn(3, 4))
    (graph_module,) = caught
    assert any(map(is_switch, graph_module.graph.nodes)) and stretches_of(graph_module.graph) == []


def test_a_value_that_is_not_recorded_has_the_whole_graph_traced() -> None:
    def catch(graph_module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        assert stretches_of(graph_module.graph)
        for node in graph_module.graph.nodes:
            if node.op != "placeholder":
                node.meta.pop("example_value", None)
        assert stretches_of(graph_module.graph) == []
        return graph_module.forward

    torch._dynamo.reset()
    torch.compile(lambda x: torch.vmap(torch.sin)(x.cos()), backend=catch)(torch.randn(3, 4))


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "vmap": lambda x: torch.vmap(lambda row: row * 2 + row.sum())(x),
    "vmap of two": lambda x: x + torch.vmap(torch.vmap(torch.sub, (None, 0)), (0, None))(x[:, 0], x[:, 1]).mean(),
    "norm": lambda x: F.layer_norm(x, (4,)),
    "write": lambda x: x.clone().mul_(0.5),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
    "write to a part": lambda x: (lambda y: (y[:1].add_(1), y)[1])(x.clone()),
    "vmap that writes": lambda x: torch.vmap(lambda row: row.clone().add_(row[0]))(x),
    "vmap along the other axis": lambda x: torch.vmap(lambda column: column.cumsum(0), 1, 1)(x),
}


@settings(max_examples=6, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6))
def test_drawn_chains_are_eagers(names: list[str]) -> None:
    def call(x: Tensor) -> Tensor:
        return list(itertools.accumulate(names, lambda made, name: STEPS[name](made), initial=x))[-1]  # type: ignore[arg-type]

    torch._dynamo.reset()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(len(names)))
    compiled = torch.compile(call, backend="lightint", options=OPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x.clone()), call(x.clone()), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compiled(x + 1), call(x + 1), rtol=1e-4, atol=1e-4)
