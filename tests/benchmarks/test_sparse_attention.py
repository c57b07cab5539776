"""pytest-benchmark: sparse attention beside dense attention; ``pytest tests/benchmarks`` runs it.

``lightint bench kernels`` prints the full tables; these cases are small enough to compare two commits.
"""

from __future__ import annotations

import pytest
import torch

from lightint_compile.bench.kernels import whole_operator
from lightint_compile.bench.sites import Tensors, square

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = (torch.device("cuda"), torch.bfloat16) if CUDA else (torch.device("cpu"), torch.float32)
LENGTHS = (4096, 16384) if CUDA else (1024, 4096)
SHAPE = {"heads": 16, "head_dim": 128} if CUDA else {"heads": 2, "head_dim": 64}


def run(call):
    result = call()
    if CUDA:
        torch.cuda.synchronize()
    return result


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("density", [0.1, 0.3, 0.5])
def test_sparse(benchmark, length, density):
    site = square(length, density, **SHAPE)
    tensors = Tensors.random(site, DEVICE, DTYPE)
    run(lambda: whole_operator(site, tensors, None))
    out = benchmark.pedantic(run, args=(lambda: whole_operator(site, tensors, None),), rounds=5 if not CUDA else 30)
    assert out.isfinite().all()


@pytest.mark.parametrize("length", LENGTHS)
def test_dense(benchmark, length):
    site = square(length, 1.0, **SHAPE)
    tensors = Tensors.random(site, DEVICE, DTYPE)
    key, value = tensors.whole()

    def call():
        return torch.nn.functional.scaled_dot_product_attention(tensors.query, key, value)

    run(call)
    assert benchmark.pedantic(run, args=(call,), rounds=5 if not CUDA else 30).isfinite().all()
