"""The drift of activations: the numbers of its definition, one a batch element, in few kernels."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightint_compile.runtime.drift import relative_change

aten = torch.ops.aten
TILE = 64


def by_definition(now: Tensor, before: Tensor) -> Tensor:
    """Tile by tile, as the docstring of ``relative_change`` has it: [1, tokens, channels] to a scalar."""

    def tiles(values: Tensor) -> Tensor:
        return torch.stack([tile.mean((1, 2)) for tile in values.split(TILE, dim=1)], 1)

    before, now = before.double(), now.double()
    change, size = tiles((now - before).abs()), tiles(before.abs())
    return (change / torch.maximum(size, 0.1 * before.abs().mean()).clamp_min(1e-12)).amax()


def pair(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Three elements that change by different amounts, with an empty corner in which noise decides nothing."""
    generator = torch.Generator().manual_seed(tokens)
    before, noise = (torch.randn(3, tokens, 48, generator=generator) for _ in range(2))
    before[:, : tokens // 3] *= 1e-4
    return (before + noise * torch.tensor([0.02, 0.3, 4.0])[:, None, None]).to(dtype), before.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200, 1560])
def test_numbers_are_those_of_the_definition_element_by_element(tokens, dtype) -> None:
    now, before = pair(tokens, dtype)
    kept = before.clone()
    found = relative_change(now, before)
    expected = torch.stack([by_definition(now[place : place + 1], before[place : place + 1]) for place in range(3)])
    assert found.dtype is torch.float32 and found.shape == (3,)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)
    assert torch.equal(before, kept)


def test_frames_and_tokens_may_be_axes_of_their_own_and_lie_anyhow() -> None:
    now, before = pair(200, torch.bfloat16)
    split = relative_change(now.unflatten(1, (4, 50)), before.unflatten(1, (4, 50)))
    turned = relative_change(now.mT.contiguous().mT, before.mT.contiguous().mT)
    assert torch.equal(split, relative_change(now, before))
    torch.testing.assert_close(turned, split)


def test_nothing_and_what_is_no_number() -> None:
    nothing, ones = torch.zeros(2, 70, 8), torch.ones(2, 70, 8)
    assert relative_change(nothing, nothing).tolist() == [0, 0]
    assert (relative_change(ones, nothing) > 1e9).all()
    now = ones.clone()
    now[1, 69, 7] = torch.nan
    found = relative_change(now, ones)
    assert found[0] == 0 and not found[1] <= 1e9


class _Launches(TorchDispatchMode):
    """Operators that are no views, and the float32 elements they made."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.largest = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and isinstance(result, Tensor):
            self.count += 1
            if result.dtype is torch.float32 and result.numel() >= 64 * 1560:
                self.largest.append(result.untyped_storage().data_ptr())
        return result


def test_kernels_do_not_grow_with_tokens_and_one_wide_copy_is_made() -> None:
    counts = set()
    for tokens in (1560, 6240):
        now, before = (torch.randn(1, tokens, 64).bfloat16() for _ in range(2))
        with _Launches() as launches:
            relative_change(now, before)
        counts.add(launches.count)
        assert len(set(launches.largest)) == 1, "of the change, and written in place"
    assert len(counts) == 1 and counts.pop() <= 14
