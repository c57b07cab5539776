"""dead-tail: how many rows are read may be a size that only a call knows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from differential import largest_difference, rewritten, run, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile.passes.ir.program import Program

PASS = "dead-tail"
ROWS = 20
LINEAR = torch.ops.aten.linear.default


def draw(rows: int, features: int = 4) -> Tensor:
    return torch.randn((rows, features), generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


class Padded(nn.Module):
    """Rows that are padded to :data:`ROWS`; ``body`` works on them, and gets how many are no padding."""

    def __init__(self, body: Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]) -> None:
        super().__init__()
        self.body, self.product = body, nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[0]
        rows = torch.cat([x, x.new_zeros(ROWS - length, 4)])
        return self.body(self.product, rows, length)


def turned(x: Tensor, count: int) -> Tensor:
    """The first rows changed, the rest behind them as it was."""
    return torch.cat([x[:count].sin(), x[count:]])


def computed(program: Program) -> list[str]:
    """Rows of every product."""
    return [str(node.meta["val"].shape[0]) for node in program.calls(LINEAR)]


def traced(module: nn.Module) -> tuple[Program, Program, list[str]]:
    """A program of any number of rows from two on, its rewritten form, and what is said of it."""
    program = trace(module, {"x": draw(8)}, dynamic={"x": [0]})
    copy, result = rewritten(program, PASS)
    for rows in (2, 8, 13, ROWS):
        feeds = {"x": draw(rows), **dict(module.named_parameters())}
        before, after = run(program, feeds), run(copy, feeds)
        assert [each.shape for each in after] == [each.shape for each in before]
        assert [each.stride() for each in after] == [each.stride() for each in before]
        assert largest_difference(after, before) < 1e-14
    return program, copy, [remark.message for remark in result.remarks]


NARROWED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]] = {
    "the front": lambda product, x, n: product(x)[:n],
    "two products": lambda product, x, n: product(product(x).tanh() + x)[:n],
    "a part is turned and joined again": lambda product, x, n: turned(product(x), n)[:n],
    "turned twice": lambda product, x, n: turned(product(turned(product(x), n)), n)[:n].cos(),
    "two readers": lambda product, x, n: (lambda y: y[:n] * y[:n].sin())(product(x)),
    "half of it": lambda product, x, n: (lambda y: y[:n] + y[: n - 1].sum())(product(x)),
    "features in heads": lambda product, x, n: product(x).view(ROWS, 2, 2)[:n].flatten(1),
    "behind a batch": lambda product, x, n: product(x[None].expand(1, ROWS, 4).clone())[0, :n],
    "a norm": lambda product, x, n: F.layer_norm(product(x), (4,))[:n],
}


@pytest.mark.parametrize("name", NARROWED)
def test_padding_behind_any_number_of_rows_is_not_computed(name: str) -> None:
    program, copy, told = traced(Padded(NARROWED[name]))
    assert len(computed(copy)) == len(computed(program))
    assert str(ROWS) not in computed(copy) or name == "behind a batch"
    assert told and all(f"of {ROWS} rows" in each for each in told)


WHOLE: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]] = {
    "all are summed": lambda product, x, n: (lambda y: y[:n] + y.sum())(product(x)),
    "their order cannot be told": lambda product, x, n: (lambda y: y[:n].sum() + y[: ROWS - n].sum() + y[:n])(
        product(x)
    ),
    "a quotient of rows": lambda product, x, n: product(x)[: n // 2],
    "no row may be left": lambda product, x, n: (lambda y: torch.cat([y[: n - 1], y[n - 1 :] * 3])[1:n])(product(x)),
    "not of rows": lambda product, x, n: product(x.cumsum(0)).softmax(0)[:n],
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_told_or_depends_on_all_stays(name: str) -> None:
    program, copy, told = traced(Padded(WHOLE[name]))
    assert computed(copy) == computed(program) and not told


STEPS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]] = {
    "product": lambda product, x, n: product(x),
    "turned": lambda product, x, n: turned(x, n),
    "joined whole": lambda product, x, n: torch.cat([x[:n], x[n:]]),
    "the other half": lambda product, x, n: torch.cat([x[:n], x[n:].cos()]),
    "elementwise": lambda product, x, n: x.tanh() * 2,
    "heads": lambda product, x, n: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1),
    "less": lambda product, x, n: torch.cat([x[: n - 1], x[n - 1 :] * 3]),
}


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=6))
def test_drawn_chains_keep_their_values_and_compute_nothing_twice(steps: list[str]) -> None:
    def body(product: Callable[[Tensor], Tensor], x: Tensor, n: int) -> Tensor:
        x = product(x)
        for name in steps:
            x = STEPS[name](product, x, n)
        return x[:n]

    program, copy, _ = traced(Padded(body))
    assert len(computed(copy)) == len(computed(program))
    assert str(ROWS) not in computed(copy)
