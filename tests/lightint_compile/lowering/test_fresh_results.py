"""What does nothing is still a new tensor: Inductor leaves it out and returns the argument itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from quick_variants import mostly_slow
from torch import Tensor, nn

from lightint_compile import capture, compilation
from lightint_compile.lowering.fresh_results import FreshResults, stated_memory, traced_memory

NOTHING_DONE = {
    "times one": lambda x: x * 1,
    "one times": lambda x: 1.0 * x,
    "plus zero": lambda x: x + 0,
    "zero plus": lambda x: 0 + x,
    "minus zero": lambda x: x - 0,
    "over one": lambda x: x / 1.0,
    "times a tensor": lambda x: x * torch.ones((), device=x.device),
    "plus a tensor": lambda x: torch.zeros_like(x) + x,
    "a view behind": lambda x: (x * 1).unsqueeze(0),
    "a view before": lambda x: x.flatten(1) + 0,
    "twice": lambda x: x * 1 / 1,
    "to the power of one": lambda x: x**1,
    "rounded twice": lambda x: (x + 0).clone(),
}


class Region(nn.Module):
    """Attention, which a pass rewrites, beside ``nothing`` done to an input and to what is computed."""

    def __init__(self, nothing) -> None:
        super().__init__()
        self.linear, self.nothing = nn.Linear(8, 8), nothing

    def forward(self, x, key, value):
        query = self.linear(x)
        return (query @ key.mT * 8**-0.5).softmax(-1) @ value, self.nothing(x), self.nothing(query), query.sin()


#: One whose compiled code gives its argument back for each of numbers, tensors, views and copies.
QUICK = {"times one", "plus a tensor", "a view behind", "rounded twice"}


@pytest.mark.parametrize("rewritten", [True, False], ids=["rewritten", "as it is"])
@pytest.mark.parametrize("name", mostly_slow(NOTHING_DONE, quick=QUICK))
@torch.no_grad()
def test_a_write_into_a_result_leaves_inputs_and_other_results_alone(name, rewritten, monkeypatch) -> None:
    monkeypatch.setattr(compilation, "_worth_it", lambda _: rewritten)
    torch._dynamo.reset()
    module = Region(NOTHING_DONE[name])
    function = torch.compile(module, backend="lightint", options={"preset": "exact", "strict": True})
    args = [torch.randn(2, 4, 8) for _ in range(3)]
    before, expected = [arg.clone() for arg in args], module(*args)
    for _ in range(2):
        results = function(*args)
        for number, result in enumerate(results):
            torch.testing.assert_close(result, expected[number])
            result.fill_(7)
            torch.testing.assert_close(args, before, rtol=0, atol=0)


LAID_OUT = {
    "a cat of one": lambda x: torch.cat([x.mT]),
    "of a convolution, joined": lambda x: torch.cat([F.conv1d(x, x.new_ones(4, 4, 3), padding=1).mT]),
}
SHOWN = {("a cat of one", True), ("of a convolution, joined", False)}
SLOWLY = {
    "a cat with nothing": lambda x: torch.cat([x.mT, x.new_empty(0)], 1),
    "a contiguous copy": lambda x: (x.mT + 1).contiguous(),
    "a clone in another order": lambda x: x.clone().permute(2, 0, 1).clone(),
    "a convolution seen from the side": lambda x: F.conv1d(x, x.new_ones(4, 4, 3), padding=1).mT,
    "stacked and opened": lambda x: torch.stack([x.mT, x.mT]).flatten(0, 1),
}


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        pytest.param(
            *(name, dynamic),
            marks=() if (name, dynamic) in SHOWN else pytest.mark.slow,
            id=f"{name}-{'dynamic' if dynamic else 'static'}",
        )
        for name in (*LAID_OUT, *SLOWLY)
        for dynamic in (False, True)
    ],
)
@torch.no_grad()
def test_a_region_lays_its_results_out_as_its_graph_says(name: str, dynamic: bool) -> None:
    """What reads them was compiled for that: Inductor's own choice is seen by nobody."""
    torch._dynamo.reset()
    module = Laid((LAID_OUT | SLOWLY)[name]).eval().requires_grad_(False)
    function = torch.compile(module, backend="lightint", dynamic=dynamic, options={"preset": "exact", "strict": True})
    for batch in (2, 3):
        x = torch.randn(batch, 4, 8)
        result, expected = function(x), module(x)
        torch.testing.assert_close(result, expected)
        assert result[0].stride() == expected[0].stride()


class Laid(nn.Module):
    """Blocks behind ``first``, so that its result goes from one piece of compiled code to another."""

    def __init__(self, first: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.weights = first, nn.ParameterList(torch.randn(8) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        laid = out = self.first(x)
        for weight in self.weights:
            scores = torch.tanh(out.unsqueeze(-1) * weight).softmax(-1)
            out = out + torch.sigmoid(scores.mean(-1)) * torch.relu(scores.amax(-1)) + torch.cos(out).exp()
        return laid, out


def test_what_a_graph_says_of_memory() -> None:
    def function(x, y):
        made = x.sin()
        return made, y.view(-1), made[0], y.cos(), made * 1

    graph = capture.trace(function, (torch.randn(2, 2), torch.randn(2, 2))).graph
    assert stated_memory(graph) == (0, -2, 0, 3, 4)


@torch.no_grad()
def test_what_dynamos_graph_says_of_memory_is_what_eager_does() -> None:
    found = []

    def backend(graph_module, inputs):
        found.append(traced_memory(graph_module.graph))
        return graph_module.forward

    def function(x, y):
        made = x.sin()
        y.add_(1)
        return made, y.view(-1), made[0], x.detach(), y, made * 1, torch.broadcast_tensors(x, made)[0]

    torch.compile(function, backend=backend)(torch.randn(2, 2), torch.randn(2, 2))
    assert found == [(0, -2, 0, -1, 4, -1)]


def test_only_what_is_not_stated_is_copied() -> None:
    x, made = torch.randn(4), torch.randn(4)
    results = FreshResults([-1, 1, 2, 1]).of([x], [x, x, made, made])
    assert results[0] is x and results[2] is made
    assert results[1].data_ptr() != x.data_ptr() and results[3].data_ptr() != made.data_ptr()
    torch.testing.assert_close(results, (x, x, made, made))
