"""Attention with wide heads goes by products: which does, in which memory order, and with which result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_graphs import one_node, region, strides, targets
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile import capture
from lightint_compile.lowering import region as lowering
from lightint_compile.lowering import wide_heads
from lightint_compile.lowering.cuda_forms import spelled
from lightint_compile.lowering.region_sizes import fresh_inputs

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
OURS = torch.ops.lightint.wide_attention.default
WIDE = 272


@pytest.fixture(autouse=True, scope="module")
def few_scores_are_enough() -> Iterator[None]:
    """The rule holds for calls of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide_heads, "FEWEST", 0)
        yield


def operands(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype) for shape in shapes]


def alike(shape: tuple[int, ...] = (2, 3, 10, WIDE), dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return operands(shape, (*shape[:-2], 14, shape[-1]), (*shape[:-2], 14, shape[-1]), dtype=dtype)


def goes_by_products(function: Callable[..., Tensor], *given_here: Tensor) -> bool:
    """Whether the attention of a function goes by products, with the same result and memory order."""
    before = region(function, *given_here)
    after = spelled(before).graph_module
    assert (ATTENTION in targets(after)) is not (OURS in targets(after))
    expected, got = before(*given_here), after(*given_here)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
    assert strides(got) == strides(expected)
    return OURS in targets(after)


def test_wide_heads_of_16_bits_go_by_products() -> None:
    assert goes_by_products(F.scaled_dot_product_attention, *alike())
    assert goes_by_products(F.scaled_dot_product_attention, *alike(dtype=torch.float16))
    query, key, value = alike()
    assert goes_by_products(F.scaled_dot_product_attention, query, key, value[..., :40])


def test_masks_and_scales_go_with_them() -> None:
    added, seen = operands((3, 10, 14))[0], torch.ones(10, 14, dtype=torch.bool).tril(2)
    for mask in (added, seen):
        assert goes_by_products(
            lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.3), *alike(), mask
        )


@pytest.mark.parametrize(
    ("function", "given_here"),
    [
        (F.scaled_dot_product_attention, alike((2, 3, 10, 256))),
        (F.scaled_dot_product_attention, alike(dtype=torch.float32)),
        (F.scaled_dot_product_attention, alike((2, 10, WIDE))),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), alike()),
        (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            operands((2, 4, 10, WIDE), (2, 2, 14, WIDE), (2, 2, 14, WIDE)),
        ),
        (F.scaled_dot_product_attention, operands((2, 3, 10, WIDE), (1, 3, 14, WIDE), (1, 3, 14, WIDE))),
    ],
    ids=["flash takes it", "float32", "no heads", "causal", "shared key heads", "one sample of keys"],
)
def test_one_edit_away_it_stays(function: Callable[..., Tensor], given_here: list[Tensor]) -> None:
    assert not goes_by_products(function, *given_here)


def test_few_scores_stay_where_sizes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_heads, "FEWEST", 2 * 3 * 10 * 14)
    assert goes_by_products(F.scaled_dot_product_attention, *alike())
    monkeypatch.setattr(wide_heads, "FEWEST", 2 * 3 * 10 * 14 + 1)
    assert not goes_by_products(F.scaled_dot_product_attention, *alike())


def test_a_mask_of_another_dtype_stays() -> None:
    before = one_node(ATTENTION, lambda nodes: tuple(nodes), *alike(), torch.zeros(10, 14))
    assert ATTENTION in targets(spelled(before).graph_module)


def test_dropout_stays() -> None:
    before = one_node(ATTENTION, lambda nodes: (*nodes, None, 0.1), *alike())
    assert ATTENTION in targets(spelled(before).graph_module)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(4)), st.tuples(*(st.integers(1, 4),) * 3), st.sampled_from([WIDE, 300]))
def test_operands_in_any_memory_order(order: list[int], sizes: tuple[int, int, int], width: int) -> None:
    parts = operands(*((*sizes, width),) * 3)
    laid = [each.permute(order).contiguous().permute([order.index(axis) for axis in range(4)]) for each in parts]
    assert goes_by_products(F.scaled_dot_product_attention, *laid)


class Frames(nn.Module):
    """One head over a frame and its past, as a video decoder has it."""

    def forward(self, frame: Tensor, past: Tensor) -> Tensor:
        tokens, every = (each.flatten(2).transpose(1, 2).unsqueeze(1) for each in (frame, past))
        return F.scaled_dot_product_attention(tokens, every, every).squeeze(1).transpose(1, 2).unflatten(2, (3, -1))


def test_compiled_with_a_growing_past() -> None:
    def inputs(frames: int) -> tuple[Any, ...]:
        return tuple(operands((1, WIDE, 3, 5), (1, WIDE, frames, 3, 5)))

    with torch.no_grad():
        program = capture.trace(Frames(), inputs(4), dynamic={"past": 2})
        after = spelled(program.graph_module).graph_module
        assert OURS in targets(after)
        values = [node.meta["val"] for node in after.graph.find_nodes(op="placeholder")]
        variant = lowering.inductor_compiler({})(after, fresh_inputs(values))
        for frames in (4, 7):
            frame, past = inputs(frames)
            (got,) = variant((frame, frames, past))
            wanted = Frames()(frame.double(), past.double())
            assert (got.double() - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.gpu
def test_on_a_gpu_a_region_goes_by_products() -> None:
    frame, past = (each.cuda() for each in operands((1, 512, 3, 500), (1, 512, 24, 3, 500)))
    program = capture.trace(Frames(), (frame, past))
    variant = lowering.inductor_compiler({})(program.graph_module, fresh_inputs([frame, past]))
    with torch.no_grad(), torch.profiler.profile() as seen:
        (got,) = variant((frame, past))
    assert "row_weights_kernel" in {each.key for each in seen.key_averages()}
    wanted = Frames()(frame.double(), past.double())
    assert (got.double() - wanted).norm() < 1e-2 * wanted.norm()
