"""Slices that begin at a symbolic place counted from the back: `y[:, -n:]`, where ``n`` is a size of another input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

ENDS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "to the end": lambda y, n: y[:, -n:],
    "to a number from the back": lambda y, n: y[:, -n:-1],
    "to a symbol from the back": lambda y, n: y[:, -2 * n : -n],
    "further than the axis": lambda y, n: y[:, -100 * n :],
    "narrow": lambda y, n: y.narrow(1, -n, 2),
    "one": lambda y, n: y[:, -n].unsqueeze(1),
    "from the front": lambda y, n: y[:, n:],
    "from the front to the back": lambda y, n: y[:, n:-n],
    "another size's": lambda y, n: y[:, y.shape[1] - n :],
    "every second": lambda y, n: y[:, -n::2],
    "split": lambda y, n: y.tensor_split([-n], 1)[1],
    "what was written": lambda y, n: written(y, n)[:, -n:],
    "beside what was written": lambda y, n: written(y, n)[:, : -n - 2],
    "head and tail of a join": lambda y, n: head_and_tail(torch.cat([y, y.cos()], 1), n),
    "written further than the axis": lambda y, n: written(y, 100 * n)[:, :3],
}


def written(y: Tensor, n: int) -> Tensor:
    held = y.clone()
    held[:, -n:] = y[:, -n:].sin()
    return held


def head_and_tail(y: Tensor, n: int) -> Tensor:
    return y[:, -n:].mean(1, keepdim=True) * y[:, :4].mean(1, keepdim=True)


class Tail(nn.Module):
    """Of all rows that are computed, some are read."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.end, self.wide, self.back = ENDS[end], nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        rows = self.end(self.back(torch.relu(self.wide(x))), other.shape[1])
        return rows.softmax(-1).sum(1)


@pytest.mark.parametrize("end", ENDS)
def test_the_rows_that_are_read_are_computed_at_every_length(end: str):
    torch._dynamo.reset()
    module = Tail(end).double().eval().requires_grad_(False)
    options = {"preset": "exact", "strict": True, "delegate": "eager"}
    compiled = torch.compile(module, backend="lightint", fullgraph=True, options=options)
    for length, count in ((24, 5), (32, 7), (40, 9), (21, 8)):
        x, other = torch.randn(2, length, 8, dtype=torch.float64), torch.randn(2, count, 8, dtype=torch.float64)
        torch.testing.assert_close(compiled(x, other), module(x, other), rtol=1e-12, atol=1e-12)
