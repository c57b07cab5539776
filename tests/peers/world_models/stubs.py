"""What upstream code imports and a CPU has not: flash_attn, tokenizers, launchers. No modelling code is touched.

Two lines are dropped from one file of the Wan family as it is imported: its attention asserts a CUDA device and a half
dtype. ``flash_attn`` is an operator with the name and schema of version 2.8, so that graphs look as they do on a GPU.
"""

from __future__ import annotations

import importlib.machinery
import linecache
import sys
import types
from pathlib import Path
from typing import Any

import torch
import varlen
from torch import Tensor


def flash_attn() -> None:
    """Install the package and its operator for the rest of the process."""
    _KEPT.append(varlen.registered())
    operation = _KEPT[-1].__enter__()

    def on_samples(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Any = None, cu_seqlens_k: Any = None,
        max_seqlen_q: Any = None, max_seqlen_k: Any = None, dropout_p: float = 0.0, softmax_scale: Any = None,
        causal: bool = False, **_: Any,
    ) -> Tensor:  # fmt: skip
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        given = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, scale, causal)
        result: Tensor = operation(q, k, v, *given)[0]
        return result

    def on_batches(
        q: Tensor, k: Tensor, v: Tensor, softmax_scale: Any = None, causal: bool = False, **_: Any
    ) -> Tensor:
        heads = [each.transpose(1, 2) for each in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*heads, scale=softmax_scale, is_causal=causal)
        return out.transpose(1, 2)

    for name in ("flash_attn", "flash_attn.flash_attn_interface"):
        made: Any = package(name)
        made.flash_attn_varlen_func, made.flash_attn_func, made.__version__ = on_samples, on_batches, "2.8.3"
        made._flash_attn_forward = None  # imported for several GPUs
    sys.modules["flash_attn"].flash_attn_interface = sys.modules["flash_attn.flash_attn_interface"]  # type: ignore[attr-defined]


class _RMSNorm:
    """Liger's kernel as the formula that it computes (the ``llama`` form)."""

    @staticmethod
    def apply(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, *_: Any) -> Tensor:
        exact = x.float()
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
        return normed.to(x.dtype) * (weight + offset)


def liger() -> None:
    """The functions of Liger that upstream imports; the rotary one is not used."""
    for name in ("rope", "rms_norm"):
        made: Any = package(f"liger_kernel.ops.{name}")
        made.LigerRopeFunction, made.LigerRMSNormFunction = None, _RMSNorm


_KEPT: list[Any] = []


def package(name: str, path: Path | None = None) -> types.ModuleType:
    """A package whose ``__init__`` (tokenizers, encoders, launchers) is not run."""
    made = types.ModuleType(name)
    made.__path__ = [] if path is None else [str(path)]
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = made
    return made


def wan_attention(name: str, file: Path) -> None:
    """The attention of the Wan family, for a CPU and float32."""
    lines = [line for line in file.read_text().split("\n") if "q.device.type ==" not in line]
    source = "\n".join(lines).replace(
        "(torch.float16, torch.bfloat16)", "(torch.float16, torch.bfloat16, torch.float32)"
    )
    made = types.ModuleType(name)
    made.__file__ = str(file)
    sys.modules[name] = made
    linecache.cache[str(file)] = (len(source), None, [line + "\n" for line in source.split("\n")], str(file))
    exec(compile(source, str(file), "exec"), made.__dict__)


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """The module for inference, what its authors initialise with zeros drawn at random."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return module.eval().requires_grad_(False)
