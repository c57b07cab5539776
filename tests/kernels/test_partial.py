"""``lightint::partial_attention`` and ``merge_attention`` against attention to all keys in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightint_compile.errors import InputError
from lightint_compile.kernels.partial import merge_attention, partial_attention

lightint = torch.ops.lightint

BOUNDS = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference of values that are around one."""
MASS_BOUNDS = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-4, torch.float16: 1e-4}


def operands(key_heads: int = 4, keys: int = 24, dtype: torch.dtype = torch.float64, size: float = 1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(keys + key_heads)
    shapes = (2, 4, 10, 16), (2, key_heads, keys, 16), (2, key_heads, keys, 16)
    query, key, value = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return [each.to(dtype) for each in (size * query, key, value)]


def mask_of(kind: str, keys: int = 24, dtype: torch.dtype = torch.float64) -> Tensor | None:
    draw = torch.Generator().manual_seed(1)
    if kind == "none":
        return None
    if kind == "added":
        return torch.randn(1, 4, 10, keys, generator=draw, dtype=torch.float64).to(dtype)
    if kind == "padding":
        return (torch.arange(keys) % 3 != 0)[None, None, None]
    seen = torch.rand(10, keys, generator=draw) > 0.3
    seen[3], seen[4, :8], seen[5, 8:] = False, False, False  # none at all, none in the first part, none in the others
    return seen if kind == "bool" else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -math.inf)


def expected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and log-sum-exp in float64; a query without a key has zeros."""
    groups = query.shape[1] // key.shape[1]
    scores = query.double() @ key.double().repeat_interleave(groups, 1).mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    return scores.softmax(-1).nan_to_num(0.0) @ value.double().repeat_interleave(groups, 1), scores.logsumexp(-1)


def in_parts(
    given: list[Tensor], mask: Tensor | None, scale: float | None, ends: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    query, key, value = given
    found = None
    for start, end in pairwise(ends):
        columns = mask if mask is None or mask.shape[-1] == 1 else mask[..., start:end]
        part = partial_attention(query, key[:, :, start:end], value[:, :, start:end], columns, scale)
        found = part if found is None else merge_attention(*found, *part)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("kind", ["none", "bool", "numbers", "added", "padding"])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_parts_give_what_all_keys_give(dtype: torch.dtype, kind: str, key_heads: int) -> None:
    given, mask = operands(key_heads, dtype=dtype), mask_of(kind, dtype=dtype)
    wanted, mass = expected(*given, mask, 0.3)
    for ends in ((0, 24), (0, 8, 24), (0, 8, 16, 20, 24)):
        out, found = in_parts(given, mask, 0.3, ends)
        assert (out - wanted).abs().max() < BOUNDS[dtype]
        assert torch.equal(found.isinf(), mass.isinf()) and not out.isnan().any()
        assert (found - mass)[mass.isfinite()].abs().max() < MASS_BOUNDS[dtype]


def test_merging_rounds_in_float32() -> None:
    """Sixteen parts of bfloat16 are no worse than one: only the parts themselves are rounded."""
    given = operands(keys=256, dtype=torch.bfloat16)
    wanted = expected(*given, None, 0.25)[0]
    one, many = (in_parts(given, None, None, ends)[0] for ends in ((0, 256), tuple(range(0, 257, 16))))
    assert many.dtype is torch.float32
    assert (many - wanted).abs().max() < (one.float() - wanted).abs().max() * 1.5


@pytest.mark.parametrize("size", [1e-3, 300.0, 1e4])
def test_scores_of_any_size_overflow_nothing(size: float) -> None:
    """Scores of thousands, whose exponentials no float32 holds, in parts that differ by as much."""
    given = operands(dtype=torch.float32, size=size)
    given[1][:, :, :8] *= 3
    wanted, mass = expected(*given, None, 0.25)
    for ends in ((0, 8, 24), (0, 4, 8, 12, 16, 20, 24)):
        out, found = in_parts(given, None, 0.25, ends)
        assert (out - wanted).abs().max() < 2e-6 * max(size, 1.0) and torch.isfinite(found).all()
        assert ((found - mass) / mass).abs().max() < 1e-5


def test_merging_takes_either_order_and_nothing_as_nothing() -> None:
    query, key, value = operands()
    none = partial_attention(query, key[:, :, :0], value[:, :, :0])
    assert torch.equal(none[0], torch.zeros_like(none[0])) and torch.equal(none[1], torch.full_like(none[1], -math.inf))
    part = partial_attention(query, key, value)
    for merged in (merge_attention(*part, *none), merge_attention(*none, *part)):
        assert all(map(torch.equal, merged, part))
    assert all(torch.equal(a, b) for a, b in zip(merge_attention(*none, *none), none, strict=True))


def test_values_may_be_wider_and_batches_shared() -> None:
    query, key, value = operands(key_heads=2)
    wide = torch.cat([value, 2 * value[..., :4]], -1)
    out, _ = in_parts([query, key[:1], wide[:1]], None, None, (0, 10, 24))
    wanted = F.scaled_dot_product_attention(
        query, key[:1].repeat_interleave(2, 1).expand(2, -1, -1, -1), wide[:1].repeat_interleave(2, 1)
    )
    assert (out - wanted).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_operator_contract(dtype: torch.dtype) -> None:
    query, key, value = operands(2, dtype=dtype)
    for mask in (None, mask_of("bool"), mask_of("added", dtype=dtype)):
        torch.library.opcheck(lightint.partial_attention.default, (query, key, value, mask, None))
    part, other = (partial_attention(query, each, value) for each in (key, 2 * key))
    torch.library.opcheck(lightint.merge_attention.default, (*part, *other))
    assert part[0].transpose(1, 2).is_contiguous() and part[0].dtype is dtype


def test_what_does_not_fit_is_said() -> None:
    query, key, value = operands()
    with pytest.raises(InputError, match="do not fit together"):
        partial_attention(query, key[..., :8], value)
    with pytest.raises(InputError, match=r"not \[batch, heads, tokens"):
        partial_attention(query, key, value[:, :, 1:])
    with pytest.raises(InputError, match="differ in dtype"):
        partial_attention(query, key.float(), value)
    with pytest.raises(InputError, match="more axes"):
        partial_attention(query, key, value, torch.ones(1, 1, 1, 1, 24, dtype=torch.bool))
    with pytest.raises(InputError, match="no gradient"):
        partial_attention(query.requires_grad_(), key, value)[0].sum().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["none", "bool", "numbers", "added", "padding"])
@pytest.mark.parametrize("key_heads", [4, 1])
def test_on_a_gpu(dtype: torch.dtype, kind: str, key_heads: int) -> None:
    given, mask = operands(key_heads, dtype=dtype), mask_of(kind, dtype=dtype)
    wanted, mass = expected(*given, mask, 0.3)
    there = [each.cuda() for each in given]
    for ends in ((0, 24), (0, 8, 19, 24)):
        out, found = (each.cpu() for each in in_parts(there, None if mask is None else mask.cuda(), 0.3, ends))
        assert (out - wanted).abs().max() < max(BOUNDS[dtype], 1e-3) and torch.equal(found.isinf(), mass.isinf())
