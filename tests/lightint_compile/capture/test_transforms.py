"""``torch.func`` transforms inside and around a compiled function: as the stock backend."""

from __future__ import annotations

import itertools

import pytest
import torch

import lightint_compile
from lightint_compile.capture.transforms import levels_restored


def attention(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) / 4.0, -1) @ v


FUNCTIONS = {
    "vmap": lambda x: torch.vmap(lambda y: y.sin())(x),
    "vmap in vmap": lambda x: torch.vmap(torch.vmap(lambda y: y.sin()))(x),
    "vmap with a write": lambda x: torch.vmap(lambda y: y.clone().add_(1))(x),
    "vmap over attention": lambda x: torch.vmap(lambda y: attention(y, y + 1, y))(x.expand(2, 3, 4, 5)),
    "jvp": lambda x: torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1],
    "grad": lambda x: torch.func.grad(lambda y: y.sin().sum())(x),
    "vjp": lambda x: torch.func.vjp(torch.sin, x)[1](torch.ones_like(x))[0],
    "jacrev": lambda x: torch.func.jacrev(torch.sin)(x),
    "hessian": lambda x: torch.func.hessian(lambda y: (y**3).sum())(x[0]),
    "beside attention": lambda x: attention(x[None], x[None], x[None]) + torch.func.grad(lambda y: y.sin().sum())(x),
}

OPTIONS = {"preset": "exact", "delegate": "eager", "strict": True}


@pytest.mark.parametrize(("name", "dynamic"), [*((name, None) for name in FUNCTIONS), ("beside attention", True)])
@torch.no_grad()
def test_transforms_inside(name, dynamic) -> None:
    torch._dynamo.reset()
    x, function = torch.randn(4, 5), FUNCTIONS[name]
    made = torch.compile(function, backend="lightint", dynamic=dynamic, options=OPTIONS)
    torch.testing.assert_close(made(x), function(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_inside_where_the_caller_records_gradients(name) -> None:
    torch._dynamo.reset()
    x, function = torch.randn(4, 5), FUNCTIONS[name]
    made = torch.compile(function, backend="lightint", options=OPTIONS)
    torch.testing.assert_close(made(x), function(x))
    with torch.no_grad():
        torch.testing.assert_close(made(x), function(x))


@torch.no_grad()
def test_a_compiled_vmap() -> None:
    torch._dynamo.reset()
    function = torch.vmap(lambda a, b: (a * b).sin() + b.sum())
    args = torch.randn(3, 4, 5), torch.randn(3, 5)
    made = torch.compile(function, backend="lightint", options=OPTIONS)
    torch.testing.assert_close(made(*args), function(*args))


@torch.no_grad()
def test_attention_below_a_transform_is_rewritten() -> None:
    torch._dynamo.reset()
    made = torch.compile(FUNCTIONS["vmap over attention"], backend="lightint", options=OPTIONS)
    made(torch.randn(4, 5))
    passes = lightint_compile.report(made).to_dict()["graphs"][0]["passes"]
    assert {step["name"]: step["rewritten"] for step in passes}["canonicalize-attention"] == 1


@torch.no_grad()
def test_transforms_under_autocast_are_the_stock_backends() -> None:
    torch._dynamo.reset()
    function, x = FUNCTIONS["vmap over attention"], torch.randn(4, 5)
    made = torch.compile(function, backend="lightint", options=OPTIONS | {"strict": False})
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made(x), function(x))


ENTER = {
    "vmap": lambda: torch._C._functorch._vmap_increment_nesting(3, "error"),
    "grad": lambda: torch._C._functorch._grad_increment_nesting(),
    "jvp": lambda: torch._C._functorch._jvp_increment_nesting(),
    "functionalize": lambda: torch._C._functorch._func_increment_nesting(True),
}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_levels_are_restored_when_a_trace_raises(count) -> None:
    depth = torch._C._functorch.get_dynamic_layer_stack_depth
    for outer in (None, *ENTER):
        for names in itertools.product(ENTER, repeat=count):
            with levels_restored():
                if outer:
                    ENTER[outer]()
                before = depth()
                with pytest.raises(ValueError, match="between"), levels_restored():
                    for name in names:
                        ENTER[name]()
                    raise ValueError("between two switches")
                assert depth() == before
            assert depth() == 0
