"""``x.data = y``: an input is another tensor afterwards. The delegate gets such graphs, and exports refuse them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightint_compile
from lightint_compile.capture import from_exported
from lightint_compile.errors import CaptureError, LightintError

pytestmark = pytest.mark.usefixtures("one_thread")

Replace = Callable[[Tensor, Tensor], None]


def rolled(kept: Tensor, new: Tensor) -> None:
    kept.data = torch.cat([kept[:, new.shape[1] :], new], 1)


def grown(kept: Tensor, new: Tensor) -> None:
    kept.data = torch.cat([kept, new], 1)


def replaced_and_written(kept: Tensor, new: Tensor) -> None:
    kept.data = torch.cat([kept[:, new.shape[1] :], new], 1)
    kept[:, 0] = 7


def written_and_replaced(kept: Tensor, new: Tensor) -> None:
    kept[:, -new.shape[1] :] = new
    kept.data = kept * 2


def copied(kept: Tensor, new: Tensor) -> None:
    """One edit away: a write to all of it, which stays in its place."""
    kept.copy_(torch.cat([kept[:, new.shape[1] :], new], 1))


class Keeping(nn.Module):
    """Attention over tokens that a buffer keeps, or one that the caller hands over."""

    def __init__(self, replace: Replace, given: bool = False) -> None:
        super().__init__()
        self.replace, self.given = replace, given
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("kept", torch.zeros(1, 6, 8))

    def forward(self, x: Tensor, handed: Tensor) -> Tensor:
        kept = handed if self.given else self.kept
        self.replace(kept, self.key(x))
        return F.scaled_dot_product_attention(self.query(x), kept, kept)


def calls(model: Callable[..., Tensor]) -> tuple[list[Tensor], Tensor]:
    draw, handed = torch.Generator().manual_seed(0), torch.zeros(1, 6, 8)
    with torch.no_grad():
        return [model(torch.randn(1, 2, 8, generator=draw), handed).clone() for _ in range(3)], handed


REPLACES = (rolled, grown, replaced_and_written, written_and_replaced, copied)
QUICK = {(rolled, False), (written_and_replaced, True), (copied, True)}
"""What Inductor compiles by default; the eager delegate gets all."""
CASES = [(replace, delegate, given) for replace in REPLACES for delegate in ("eager", "inductor") for given in (0, 1)]


@pytest.mark.parametrize(
    ("replace", "delegate", "given"),
    [
        pytest.param(
            *(replace, delegate, bool(given)),
            id=f"{replace.__name__}-{delegate}-{'argument' if given else 'buffer'}",
            marks=() if delegate == "eager" or (replace, bool(given)) in QUICK else pytest.mark.slow,
        )
        for replace, delegate, given in CASES
    ],
)
def test_what_an_input_is_afterwards_is_kept(replace: Replace, delegate: str, given: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Keeping(replace, given).eval()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "delegate": delegate})
    if replace is grown and delegate == "inductor":
        try:
            calls(torch.compile(copy.deepcopy(model), backend="inductor"))
        except Exception:
            pytest.skip("Inductor itself fails on an input that grows, as in torch 2.11")
        torch._dynamo.reset()
    expected, got = calls(plain), calls(compiled)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(model.kept, plain.kept)
    (section, *_) = lightint_compile.report(compiled).sections
    assert bool(section.untouched) == (replace is not copied)
    if section.untouched:
        assert "another tensor is put in its place" in section.untouched


@pytest.mark.parametrize("replace", [rolled, written_and_replaced])
def test_exports_refuse_it(replace: Replace, tmp_path: Path) -> None:
    given = torch.randn(1, 2, 8), torch.zeros(1, 6, 8)
    model = Keeping(replace).eval().requires_grad_(False)
    with pytest.raises(LightintError, match="writes to its inputs"):
        lightint_compile.export(model, given, tmp_path / "model.pt2", options={"preset": "exact"})
    assert not (tmp_path / "model.pt2").exists()
    with pytest.raises(CaptureError, match="writes to its inputs"):
        from_exported(torch.export.export(copy.deepcopy(model), given))
