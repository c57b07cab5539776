"""Run as a program under a memory checker: one small pass of every portable kernel on the GPU."""

from __future__ import annotations

import torch
from attention_cases import SITES

from lightint_compile import kernels

if __name__ == "__main__":
    for name in ("ragged", "odd-tile", "prefill"):
        site = SITES[name]
        with kernels.using("portable"):
            result = kernels.sparse_attention(*site.tensors(torch.bfloat16, "cuda"), coverage=0.9, **site.grids)
        assert result.isfinite().all()
    torch.cuda.synchronize()
