"""Run as a program: write an AOTInductor archive of a module, load it and compare; a process of its own may crash.

``plain`` is dense attention alone and shows whether archives work on this machine; ``sparse`` is ours, decomposed.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from attention_cases import SITES
from torch import Tensor

from lightint_compile import kernels
from lightint_compile.kernels.decompositions import portable_table

SITE = SITES["prefill"]


class Plain(torch.nn.Module):
    """Ordinary attention."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)


class Sparse(torch.nn.Module):
    """Sparse attention at one site."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return kernels.sparse_attention(query, key, value, **SITE.grids)


if __name__ == "__main__":
    module = {"plain": Plain, "sparse": Sparse}[sys.argv[1]]()
    tensors = SITE.tensors(torch.bfloat16, "cuda")
    exported = torch.export.export(module, tensors, strict=False).run_decompositions(portable_table())
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(exported, package_path=f"{folder}/attention.pt2")
        loaded = torch._inductor.aoti_load_package(path)
        with kernels.using("portable"):
            torch.testing.assert_close(loaded(*tensors), module(*tensors))
    print("archive agrees")
