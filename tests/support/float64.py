"""What a model computes when all of it is in float64, casts to float32 that its authors wrote included.

``model.double()`` alone is no such reference: rotary tables and timestep embeddings are made in float32 by many models,
whose rounding the reference then shares with eager and with nobody else. One unit in the last place of a frequency
times a timestep of 500 is a hundred times the rounding of everything behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


class _Widened(TorchFunctionMode):
    """Every floating-point dtype that a call names is float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(_wide_dtype, (args, kwargs or {}))
        return (Tensor.double if func in _CASTS else func)(*args, **kwargs)


def _wide_dtype(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def doubled(value: Any) -> Any:
    """Floating-point tensors in float64, anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def widened() -> Iterator[None]:
    """Everything inside is computed in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widened():
            yield
    finally:
        torch.set_default_dtype(before)


def reference(module: nn.Module, kwargs: Mapping[str, Any]) -> Any:
    """The output of a copy of ``module`` in float64 throughout."""
    with torch.no_grad(), widened():
        return copy.deepcopy(module).double()(**pytree.tree_map(doubled, dict(kwargs)))


def partial_reference(module: nn.Module, kwargs: Mapping[str, Any]) -> Any | None:
    """The output of ``model.double()``, in which the model's own casts to float32 stay; ``None`` where those clash."""
    try:
        with torch.no_grad():
            return copy.deepcopy(module).double()(**pytree.tree_map(doubled, dict(kwargs)))
    except RuntimeError as error:
        assert "dtype" in str(error) or "double" in str(error).lower(), error
        return None


def largest_error(result: Tensor, truth: Tensor) -> float:
    """The largest difference to ``truth``."""
    return float((result.double() - truth).abs().max())
