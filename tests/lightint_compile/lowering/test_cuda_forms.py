"""Spellings for Inductor's CUDA code generation keep values and memory order."""

from __future__ import annotations

import pytest
import torch
from region_graphs import one_node, region, strides, targets
from torch import Tensor
from torch.nn import functional as F

from lightint_compile.lowering.cuda_forms import spelled, spelled_for_cuda

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("equation", "shapes", "small"),
    [
        ("bnij,bhngj->bhngi", ((1, 6, 4, 4), (1, 2, 6, 8, 4)), True),  # a camera matrix per token
        ("ij,nj->ni", ((4, 4), (50, 4)), True),
        ("nij,njk->nik", ((5, 4, 4), (5, 4, 4)), True),
        ("nj,njk->nk", ((5, 8), (5, 8, 3)), True),
        ("nij,njk->nik", ((5, 16, 4), (5, 4, 16)), False),  # both sides are long
        ("nij,njk->nik", ((5, 4, 64), (5, 64, 4)), False),  # the sum is long
        ("ij,ij->ij", ((4, 4), (4, 4)), False),  # no sum
        ("iij,j->i", ((4, 4, 3), (3,)), False),  # a diagonal
        ("nij,k->nk", ((5, 4, 3), (2,)), False),  # sums over one operand alone
    ],
)
def test_einsum_over_few_elements_becomes_multiply_and_sum(
    equation: str, shapes: tuple[tuple[int, ...], ...], small: bool
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    before = one_node(aten.einsum.default, lambda nodes: (equation, list(nodes)), *inputs)
    after = spelled(before).graph_module
    assert (aten.einsum.default not in targets(after)) is small
    (expected,), (got,) = before(*inputs), after(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert not small or strides(got) == strides(expected)


def test_small_matrix_products_become_multiply_and_sum() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.randn(5, 4, 4, dtype=torch.float64)
    before = one_node(aten.matmul.default, tuple, left, right)
    after = spelled(before).graph_module
    assert aten.matmul.default not in targets(after)
    torch.testing.assert_close(after(left, right)[0], before(left, right)[0], rtol=1e-12, atol=1e-12)
    long = one_node(aten.bmm.default, tuple, torch.randn(2, 64, 16), torch.randn(2, 16, 64))
    assert aten.bmm.default in targets(spelled(long).graph_module)


@pytest.mark.parametrize(
    ("approximate", "dtype", "fused"),
    [("tanh", torch.bfloat16, True), ("none", torch.bfloat16, False), ("tanh", torch.float32, False)],
)
def test_tanh_gelu_joins_the_linear_layer_in_front(approximate: str, dtype: torch.dtype, fused: bool) -> None:
    torch.manual_seed(0)

    def mlp(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.linear(tokens, weight, bias), approximate=approximate)

    inputs = torch.randn(2, 5, 16, dtype=dtype), torch.randn(32, 16, dtype=dtype), torch.randn(32, dtype=dtype)
    before = region(mlp, *inputs)
    after = spelled(before).graph_module
    assert (aten._addmm_activation.default in targets(after)) is fused
    got, expected = after(*inputs), mlp(*(value.double() for value in inputs))
    assert got.shape == (2, 5, 32)
    assert (got.double() - expected).norm() < 0.01 * expected.norm()


def test_a_linear_layer_that_something_else_reads_keeps_its_result() -> None:
    def twice(tokens: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.linear(tokens, weight, bias)
        return hidden, F.gelu(hidden, approximate="tanh")

    inputs = [torch.randn(shape, dtype=torch.bfloat16) for shape in ((2, 5, 16), (32, 16), (32,))]
    assert aten._addmm_activation.default not in targets(spelled(region(twice, *inputs)).graph_module)


def test_regions_without_cuda_tensors_stay_as_they_are() -> None:
    graph = one_node(aten.matmul.default, tuple, torch.randn(4, 4), torch.randn(4, 4))
    assert spelled_for_cuda(graph).graph_module is graph


def test_settings_come_with_products_that_were_written_out() -> None:
    small = one_node(aten.matmul.default, tuple, torch.randn(4, 4), torch.randn(4, 4))
    large = one_node(aten.matmul.default, tuple, torch.randn(64, 64), torch.randn(64, 64))
    assert spelled(small).config and not spelled(large).config
