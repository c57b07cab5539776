"""Which linears 8-bit products can take, and on which devices."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Self

import torch
import torch.fx as fx

from lightint_compile.kernels.cost import capability_of, kind_of
from lightint_compile.passes.ir.fake_values import hint_of
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.remarks import Miss

LINEAR = torch.ops.aten.linear.default

SHORT = (torch.bfloat16, torch.float16)
"""What inputs, weights and results are stored in."""

MULTIPLE = 16
"""Features of both sides are a multiple of this, so that rows start at addresses that tensor cores can read."""

LEAST_CAPABILITY = (8, 9)
"""Ada; Hopper is (9, 0)."""


@dataclass(frozen=True)
class Device:
    """What computes a linear; ``capability`` is ``None`` where there is no such CUDA device."""

    kind: str
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, node: fx.Node) -> Self:
        """The device of a node's value."""
        made = tensor_of(node)
        assert made is not None
        return cls(kind_of(made.device), capability_of(made.device))


def objection_of_device(device: Device, on_cpu: bool) -> tuple[str, str]:
    """Why a device does not run 8-bit products, and what would change that; both are empty where it does."""
    if device.kind == "cpu" and on_cpu:
        return "", ""
    if device.kind == "cpu":
        return "a CPU gains nothing by 8-bit products", "on-cpu=true computes them to see what they cost in quality"
    if device.kind != "cuda" or device.capability is None:
        return f"the device {device.kind} is not known to multiply in 8 bits", ""
    if device.capability < LEAST_CAPABILITY:
        major, minor = device.capability
        return f"the device has compute capability {major}.{minor}, and 8-bit products need 8.9", ""
    return "", ""


def misfit(node: fx.Node, parameters: Container[fx.Node], min_rows: int) -> Miss | None:
    """Why a linear cannot be an 8-bit product, or is not worth one; ``None`` where it is."""
    given, weight, result = (tensor_of(each) for each in (argument(node, "input"), argument(node, "weight"), node))
    assert given is not None and weight is not None and result is not None
    if any(each.dtype not in SHORT for each in (given, weight)):
        wide = next(each.dtype for each in (weight, given) if each.dtype not in SHORT)
        return Miss(node, f"it computes in {str(wide).removeprefix('torch.')}, and only 16 bits are changed")
    if result.requires_grad:
        return Miss(node, "gradients are needed, and a rounded product has none", "call it under torch.no_grad()")
    if argument(node, "weight") not in parameters:
        return Miss(node, "the weight is computed in the call, or written to by it: it is no parameter")
    if weight.dim() != 2 or given.dim() < 2:
        return Miss(node, "it has no rows of features on both sides")
    if any(not isinstance(size, int) or size % MULTIPLE for size in weight.shape):
        shown = " to ".join(str(size) for size in reversed(weight.shape))
        return Miss(node, f"it maps {shown} features, and both have to be multiples of {MULTIPLE}")
    rows = hint_of(result.numel() // result.shape[-1])
    if rows < min_rows:
        told = f"it has {rows} rows, fewer than {min_rows}: reading the weights takes the time"
        return Miss(node, told, f"min-rows={rows}" if rows else "")
    return None
