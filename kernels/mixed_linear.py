"""``lightint::mixed_linear``: a linear in float32 over a weight in bfloat16, on tensor cores with all bits.

A float32 number has 24 significant bits and a bfloat16 number 8. So a float32 is the sum of three bfloat16 numbers, and
its product with a bfloat16 is the sum of three products that float32 holds without rounding. Three products of matrices
in bfloat16 are several times as fast as one in float32, whose multiplications no tensor core does. The splitting is
known from Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision
computations" (2019).

Tensor cores cut their sums off where float32 rounds, so that long sums drift toward zero (Ootomo and Yokota, 2022).
The kernels therefore sum up few products on the tensor cores, and add those sums outside of them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, autocast
from torch.library import Library
from torch.nn import functional as F

from lightint_compile.errors import InputError

from .checks import no_gradient
from .cost import capability_of, kind_of

log = logging.getLogger(__name__)

NARROW, WIDE = torch.bfloat16, torch.float32

PARTS = 3
"""Numbers of 8 significant bits that make up one of 24."""

HIGH_BITS = -0x10000
"""Of a float32: sign, exponent and the 7 stored bits that bfloat16 has."""

LEAST_CAPABILITY = (8, 0)
"""Ampere: the first tensor cores that multiply bfloat16."""

SCHEMAS = (
    "mixed_linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor",
    "linear_of_parts(Tensor[] parts, Tensor weight, Tensor? bias) -> Tensor",
)

_library = Library("lightint", "FRAGMENT")


def mixed_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear(input, weight.float(), bias)`` in float32.

    Args:
        input: ``[..., in_features]`` float32.
        weight: ``[out_features, in_features]`` bfloat16.
        bias: ``[out_features]`` float32, or none.

    Returns:
        ``[..., out_features]`` float32, contiguous.

    Raises:
        InputError: tensors that do not fit together, or a gradient that is asked for.
    """
    return torch.ops.lightint.mixed_linear(input, weight, bias)


def split(input: Tensor) -> list[Tensor]:
    """Three bfloat16 tensors whose sum is a float32 one, the largest first.

    Numbers are cut off and not rounded, so that none overflows. An infinite number is the first part alone, and a NaN
    is in one of them.
    """
    high = _cut(input)
    rest = torch.where(torch.isinf(input), 0.0, input - high)
    middle = _cut(rest)
    return [each.to(NARROW) for each in (high, middle, rest - middle)]


def _cut(numbers: Tensor) -> Tensor:
    return (numbers.view(torch.int32) & HIGH_BITS).view(WIDE)


def linear_of_parts(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """The specification, in plain torch: :func:`mixed_linear` of the sum of ``parts``."""
    check_linear(parts[0], weight, bias, NARROW)
    total = parts[-1].to(WIDE)
    for part in reversed(parts[:-1]):
        total = total + part.to(WIDE)
    return F.linear(total, weight.to(WIDE), bias)


def widened(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The specification of :func:`mixed_linear`, in plain torch."""
    check_linear(input, weight, bias, WIDE)
    return F.linear(input, weight.to(WIDE), bias)


def _whole_of_any(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with autocast(weight.device.type, enabled=False):
        return widened(input, weight, bias)


def _parts_of_any(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    with autocast(weight.device.type, enabled=False):
        return linear_of_parts(parts, weight, bias)


def _whole_on_gpu(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check_linear(input, weight, bias, WIDE)
    if obstacle(input.device):
        return _whole_of_any(input, weight, bias)
    return _parts_on_gpu(split(input), weight, bias)


def _parts_on_gpu(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    check_linear(parts[0], weight, bias, NARROW)
    if obstacle(weight.device) or not parts[0].numel() or not weight.numel():
        return _parts_of_any(parts, weight, bias)
    rows = [_side_by_side(part.reshape(-1, part.shape[-1])) for part in parts]
    weight, bias = _side_by_side(weight), None if bias is None else bias.contiguous()
    out = weight.new_empty((rows[0].shape[0], weight.shape[0]), dtype=WIDE)
    with torch.cuda.device(weight.device):
        _fill(rows, weight, bias, out)
    return out.view((*parts[0].shape[:-1], weight.shape[0]))


def _side_by_side(matrix: Tensor) -> Tensor:
    """A matrix whose features lie side by side."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _fill(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill ``out`` by the kernel that takes such matrices; one that fails is not tried again on that device."""
    hopper = _hopper(weight.device)
    if hopper is not None and weight.device not in _failed and hopper.fits((*parts, weight)):
        try:
            hopper.linear_of_parts(parts, weight, bias, out)
            return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _failed.add(weight.device)
            _warn(error)
    from .portable.mixed_linear import linear_of_parts as portable

    portable(parts, weight, bias, out)


_failed: set[torch.device] = set()
"""Devices on which the sm_90 kernel could not be compiled or launched."""


def _warn(error: Exception) -> None:
    told = f"{type(error).__name__}: {error}"
    log.warning("float32 products on this sm_90 device run on the portable kernel, which is slower: %s", told)


@lru_cache(maxsize=16)
def _hopper(device: torch.device) -> Any:
    """The module of the sm_90 kernel; it is experimental in Triton, so any failure to load it only means portable."""
    from .triton_compat import gluon_obstacle

    if torch.cuda.get_device_capability(device) != (9, 0) or gluon_obstacle():
        return None
    try:
        return importlib.import_module("lightint_compile.kernels.hopper.mixed_linear")
    except Exception as error:
        _warn(error)
        return None


def obstacle(device: torch.device) -> str:
    """Why a device does not run the kernels; empty where it does, or where one that does is assumed."""
    if kind_of(device) != "cuda":
        return f"a device of the kind {device.type} gains nothing by it"
    return _obstacle_here(device) if device.type == "cuda" else _too_old(capability_of(device))


@lru_cache(maxsize=16)
def _obstacle_here(device: torch.device) -> str:
    if not torch.cuda.is_available() or torch.version.hip:
        return "there is no CUDA"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return _too_old(torch.cuda.get_device_capability(device))


def _too_old(capability: tuple[int, int] | None) -> str:
    if capability is None or capability >= LEAST_CAPABILITY:
        return ""
    told = ".".join(map(str, capability))
    return f"the device has compute capability {told}, and tensor cores multiply bfloat16 from 8.0 on"


def check_linear(input: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
    """Raise :class:`InputError` where operands do not fit together."""
    if weight.dim() != 2 or weight.dtype is not NARROW:
        why = f"its shape is {tuple(weight.shape)}, its dtype {weight.dtype}"
        raise InputError("the weight is no bfloat16 matrix", where="mixed_linear: weight", why=why)
    if input.dtype is not dtype or not input.dim() or input.shape[-1] != weight.shape[1]:
        why = f"its shape is {tuple(input.shape)}, its dtype {input.dtype}; the weight's shape {tuple(weight.shape)}"
        raise InputError(f"the input is not [..., features] in {dtype}", where="mixed_linear: input", why=why)
    if bias is not None and (bias.dtype is not WIDE or tuple(bias.shape) != (weight.shape[0],)):
        why = f"its shape is {tuple(bias.shape)}, its dtype {bias.dtype}; the weight's shape {tuple(weight.shape)}"
        raise InputError("the bias is not [out features] in float32", where="mixed_linear: bias", why=why)


def _fake_whole(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check_linear(input, weight, bias, WIDE)
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


def _fake_parts(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    check_linear(parts[0], weight, bias, NARROW)
    return parts[0].new_empty((*parts[0].shape[:-1], weight.shape[0]), dtype=WIDE)


for _schema, _plain, _gpu, _fake in (
    (SCHEMAS[0], _whole_of_any, _whole_on_gpu, _fake_whole),
    (SCHEMAS[1], _parts_of_any, _parts_on_gpu, _fake_parts),
):
    _name = _schema.partition("(")[0]
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _plain, "CompositeExplicitAutograd")
    _library.impl(_name, _gpu, "CUDA")
    torch.library.register_fake(f"lightint::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"lightint::{_name}", no_gradient, lib=_library)
