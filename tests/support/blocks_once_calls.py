"""Calls of modules whose blocks are traced once, and what the reports say of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightint_compile
from lightint_compile.blocks_once import GIVEN, RULE
from lightint_compile.torch_frames import opens_frames
from lightint_compile.torch_regions import reuses_regions

once_only = pytest.mark.skipif(
    not (opens_frames() and reuses_regions()), reason="this torch traces a region in every call"
)


def compiled(module: nn.Module, **options: Any) -> Any:
    chosen = {"preset": "exact", "delegate": "eager", "trace_blocks_once": True, **options}
    return torch.compile(module, backend="lightint", options=chosen)


def called(function: Callable[..., Tensor], *args: Any) -> Tensor:
    with torch.no_grad():
        return function(*args)


def measured(function: Any) -> float:
    return sum(section.measurements.get(GIVEN, 0) for section in lightint_compile.report(function).sections)


def said(function: Any) -> list[str]:
    sections = lightint_compile.report(function).sections
    return [remark.message for section in sections for remark in section.remarks if remark.rule == RULE]
