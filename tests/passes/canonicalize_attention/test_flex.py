"""``flex_attention`` that is nothing but attention becomes one; what does more stays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from differential import largest_difference, rewritten, run, trace
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention, noop_mask

from lightint_compile.capture import trace as captured

PASS = "canonicalize-attention"
SDPA = torch.ops.aten.scaled_dot_product_attention.default


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def operands(
    queries: int = 24, keys: int = 40, heads: int = 2, dtype: torch.dtype = torch.float64, batch: int = 1
) -> dict[str, Tensor]:
    sizes = {"query": (2, 2, queries, 16), "key": (batch, heads, keys, 16), "value": (batch, heads, keys, 16)}
    return {name: draw(*size, dtype=dtype, seed=seed) for seed, (name, size) in enumerate(sizes.items())}


def behind(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    made = flex_attention(query.sin(), key, value, **options)
    assert isinstance(made, Tensor)
    return made.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("scale", "heads", "dtype"),
    [
        (None, 2, torch.float64),
        (0.3, 1, torch.float64),
        (None, 1, torch.bfloat16),
        (0.3, 2, torch.bfloat16),
        pytest.param(None, 1, torch.float64, marks=pytest.mark.slow),
        pytest.param(0.3, 2, torch.float64, marks=pytest.mark.slow),
        pytest.param(None, 2, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(0.3, 1, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_without_a_mask_it_is_attention(dtype: torch.dtype, heads: int, scale: float | None) -> None:
    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return behind(query, key, value, enable_gqa=heads == 1, scale=scale)

    given = operands(heads=heads, dtype=dtype, batch=2)
    program = trace(call, given)
    copy, result = rewritten(program, PASS)
    (remark,) = result.remarks
    assert remark.rule == "flex-attention" and len(list(copy.calls(SDPA))) == 1
    assert not [node for node in copy.graph.nodes if "flex" in str(node.target)]
    most = 1e-12 if dtype == torch.float64 else 2e-2
    assert largest_difference(run(copy, given), run(program, given)) < most
    assert largest_difference(run(copy, given), [call(**given)]) < most


def test_sizes_may_be_symbols() -> None:
    program = captured(behind, (), operands(batch=2), dynamic={"query": 2, "key": 2, "value": 2})
    copy, _ = rewritten(program, PASS)
    assert len(list(copy.calls(SDPA))) == 1
    given = operands(17, 33, batch=2)
    assert largest_difference(run(copy, given), [behind(**given)]) < 1e-12


def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k


def blocks(count: int) -> BlockMask:
    """The first `count` blocks of keys for every block of queries, under a mask that is always true."""
    counts, places = torch.full((1, 1, 2), count, dtype=torch.int32), torch.arange(3, dtype=torch.int32)
    return BlockMask.from_kv_blocks(counts, places.expand(1, 1, 2, 3), BLOCK_SIZE=16, seq_lengths=(24, 40))


KEPT: dict[str, Callable[..., Any]] = {
    "scores changed": lambda **given: behind(**given, score_mod=lambda score, b, h, q, k: score + q),
    "log-sum-exp read": lambda **given: sum(each.sum() for each in flex_attention(**given, return_lse=True)),
    "a mask": lambda **given: behind(**given, block_mask=create_block_mask(causal, None, None, 24, 40, device="cpu")),
    "blocks without a mask": lambda **given: behind(**given, block_mask=blocks(1)),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_does_more_stays(name: str) -> None:
    given = operands(batch=2)
    program = trace(lambda query, key, value: KEPT[name](query=query, key=key, value=value), given)
    copy, result = rewritten(program, PASS)
    assert not result.remarks and not list(copy.calls(SDPA))


@pytest.mark.parametrize("batch", [2, 1])
def test_one_block_leaves_nothing_out_and_keys_of_one_batch_for_all_stay(batch: int) -> None:
    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return behind(query, key, value, block_mask=create_block_mask(noop_mask, 2, None, 24, 40, device="cpu"))

    given = operands(batch=batch)
    copy, _ = rewritten(trace(call, given), PASS)
    assert len(list(copy.calls(SDPA))) == batch - 1
    assert largest_difference(run(copy, given), [call(**given)]) < 1e-12
