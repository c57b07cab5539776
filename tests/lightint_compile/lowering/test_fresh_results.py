"""What does nothing is still a new tensor: Inductor leaves it out and returns the argument itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("rewritten", [True, False], ids=["rewritten", "as it is"])
@pytest.mark.parametrize("name", NOTHING_DONE)
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
