"""Plain attention alone in an AOTInductor package, with nothing of ours: the minimal case."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
    "none": None,
}
"""Kernels of attention; ``none`` is a product of matrices and no attention at all."""

CASE = "scaled_dot_product_attention(q, k, v) of [1, 2, 64, 64] in bfloat16; none: q @ k.mT @ v"


class Attention(torch.nn.Module):
    """Ordinary attention."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Tokens [1, H, T, D]."""
        return F.scaled_dot_product_attention(query, key, value)


class Product(torch.nn.Module):
    """Two products."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Tokens [1, H, T, D]."""
        return query @ key.mT @ value


def chosen(names: Sequence[str]) -> AbstractContextManager[None]:
    """PyTorch may take these kernels alone, or any where one is the default."""
    kernels = [kernel for name in names if (kernel := KERNELS[name]) is not None]
    return contextlib.nullcontext() if len(kernels) < len(names) else sdpa_kernel(kernels)


def run(device: str, name: str) -> None:
    """Write, load and run it; each word is printed once it is done, so the last one tells where a process died."""
    module = Product() if name == "none" else Attention()
    tensors = tuple(torch.randn(1, 2, 64, 64, device=device, dtype=torch.bfloat16) for _ in range(3))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = module(*tensors)
        with chosen([name]):
            program = torch.export.export(module, tensors)
            _done("exported")
            path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/a.pt2")
        _done("compiled")
        loaded = torch._inductor.aoti_load_package(path)
        _done("loaded")
        found = loaded(*tensors)
        if device == "cuda":
            torch.cuda.synchronize()
        _done("ran")
        _done(f"largest difference {float((found - expected).abs().max()):.1e}")


def _done(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()
