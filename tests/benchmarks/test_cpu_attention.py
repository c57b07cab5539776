"""Block-sparse attention on the CPU beside dense SDPA: processor time, no assertion on it (the table is the result)."""

import time

import pytest
import torch
from attention_cases import Site

from lightint_compile import kernels

SITES = {
    "4k tokens, dim 64": Site((4, 32, 32), (4, 32, 32), (4, 8, 4), heads=4, key_heads=4, head_dim=64),
    "4k on 8k tokens, dim 64": Site((4, 32, 32), (8, 32, 32), (4, 4, 4), heads=4, key_heads=4, head_dim=64),
    "6k on 12k ragged tokens, dim 128": Site(
        (4, 30, 52), (8, 30, 52), (4, 8, 4), prefix=128, heads=4, key_heads=4, head_dim=128
    ),
}


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.3, 0.15])
def test_cpu_attention(benchmark, name, density):
    site = SITES[name]
    tensors = site.tensors(torch.float32)
    benchmark.group = name
    benchmark.extra_info["density"] = density
    with torch.inference_mode(), kernels.using("gather"):
        result = benchmark.pedantic(
            kernels.sparse_attention, tensors, {"density": density, **site.grids}, rounds=3, warmup_rounds=1
        )
    assert result.isfinite().all()
