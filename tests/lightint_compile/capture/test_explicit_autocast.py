"""Products of operands that the source brought to a lower precision in part: autocast brings the rest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BF16 = torch.bfloat16
WIDE = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))

PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: F.linear(x, w),
    "linear with a bias": lambda x, w: F.linear(x, w, w[0]),
    "matmul": lambda x, w: x @ w,
    "bmm": lambda x, w: torch.bmm(x, w.expand(2, 16, 16)),
    "addmm": lambda x, w: torch.addmm(w[0], x[0], w)[None],
    "baddbmm": lambda x, w: torch.baddbmm(w[:12].expand(2, 12, 16), x, w.expand(2, 16, 16)),
    "einsum": lambda x, w: torch.einsum("bij,jk->bik", x, w),
    "convolution": lambda x, w: F.conv1d(x.transpose(1, 2), w.unsqueeze(2)),
    "attention": lambda x, w: F.scaled_dot_product_attention(x, w.expand(2, 16, 16), w.expand(2, 16, 16)),
}


class Product(nn.Module):
    """A product whose operands have these dtypes, inside of autocast."""

    def __init__(self, name: str, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.product, self.dtypes = PRODUCTS[name], dtypes
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.dtypes
        with torch.autocast("cpu", BF16):
            made = self.product(x.to(left), self.weight.to(right))
        return F.scaled_dot_product_attention(made, made, made)  # what is rewritten: no graph goes on as it was


MIXED = (BF16, torch.float32)


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        pytest.param(
            *(name, left, right),
            id=f"{name}-{left}-{right}",
            marks=() if name == "linear" or (left, right) == MIXED else pytest.mark.slow,
        )
        for name, (left, right) in product(PRODUCTS, product(MIXED, repeat=2))
    ],
)
def test_products_of_whatever_dtypes_are_captured_as_they_run(name: str, left: torch.dtype, right: torch.dtype):
    module = Product(name, left, right).eval().requires_grad_(False)
    same_as_eager(module, WIDE)


class Beside(nn.Module):
    """Operators that take operands of several dtypes by themselves, outside of the autocast of the same graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 16, bias=False), nn.LayerNorm(16)
        nn.init.normal_(self.norm.weight, 1, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            made = self.linear(x.bfloat16())
        normed = self.norm(made)  # bfloat16 with weights in float32
        mask = self.linear.weight[:12, :12] / 3  # float32
        return F.scaled_dot_product_attention(made, normed, normed, attn_mask=mask) + normed


def test_what_takes_several_dtypes_by_itself_is_left_as_it_is():
    same_as_eager(Beside().eval().requires_grad_(False), WIDE)


def same_as_eager(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        wanted = module(x)
        torch._dynamo.reset()
        options = {"preset": "exact", "strict": True, "delegate": "eager"}
        found = torch.compile(module, backend="lightint", fullgraph=True, options=options)(x)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
