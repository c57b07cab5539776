"""One way of running the model along one path, timed chunk by chunk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import calculate_time_spent

from lightint_compile.exporting.check import relative_difference
from lightint_compile.models.world_model import CameraPath, WorldModel

WARM_UP = 2
"""Chunks that capture and compile: the first has no history, the second is the first with one."""


@dataclass(frozen=True)
class Run:
    """One variant along one path.

    Attributes:
        chunk_seconds: wall time of each chunk, compilation included where it happened.
        trace_seconds: Dynamo's share of compilation.
        compile_seconds: the backend's share: passes, code generation and the C++ compiler.
        video: all latents [1, C, frames, h, w].
    """

    variant: str
    path: str
    chunk_seconds: tuple[float, ...]
    trace_seconds: float
    compile_seconds: float
    video: Tensor

    @property
    def steady_seconds(self) -> float:
        """The median chunk after those that may compile."""
        return statistics.median(self.chunk_seconds[WARM_UP:] or self.chunk_seconds)

    def difference(self, other: Run) -> float:
        """Relative L2 difference of the videos; each rollout was fed its own frames."""
        return relative_difference(self.video, other.video)


def measure(
    variant: str,
    path: str,
    chunk: Callable[..., Tensor],
    model: WorldModel,
    scene: Any,
    camera_path: CameraPath,
    *,
    seed: int,
    after_chunk: Callable[[float], None],
) -> Run:
    """Roll ``chunk`` out along ``camera_path``; ``after_chunk`` hears the seconds of each chunk as it is done."""
    seconds: list[float] = []
    before, start = _compilation(), time.perf_counter()
    video = torch.empty(0)
    for result in model.rollout(chunk, scene, camera_path, seed=seed):
        seconds.append(time.perf_counter() - start)
        after_chunk(seconds[-1])
        video, start = result.history, time.perf_counter()
    traced, compiled = (now - then for now, then in zip(_compilation(), before, strict=True))
    return Run(variant, path, tuple(seconds), traced, compiled, video)


def _compilation() -> tuple[float, float]:
    """Seconds this process has spent tracing, and in backends."""
    spent = calculate_time_spent()
    backend = float(spent.get("backend_compile", 0.0))
    return float(spent.get("entire_frame_compile", 0.0)) - backend, backend
