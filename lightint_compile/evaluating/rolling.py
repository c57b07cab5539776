"""One free-running rollout, timed chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightint_compile.compiled import CompiledGraph, decisions
from lightint_compile.errors import StateError
from lightint_compile.lowering.driver import Driver
from lightint_compile.runtime import device_to_host

from .true_world import TrueWorld, Walk
from .variants import Opened


@dataclass(frozen=True)
class Rolled:
    """What a rollout gave.

    Attributes:
        latents: [1, C, F, h, w] float32 on the CPU, the given chunks in front.
        milliseconds: of every chunk that was not given.
        recompiles: graphs captured and regions compiled meanwhile.
        host_reads: times that the host waited for numbers from the device.
        computed_steps: denoising steps computed, of chunks that were not given.
        refused_steps: steps that could have been reused and that the drift check computed.
        peak_gigabytes: device memory allocated at most, 10^9 bytes; `None` without a GPU.
    """

    latents: Tensor
    milliseconds: tuple[float, ...]
    recompiles: int
    host_reads: int
    computed_steps: int
    refused_steps: int
    peak_gigabytes: float | None


class GivenChunks:
    """A model's module whose first chunks are given: the call answers with them, and runs the module afterwards."""

    def __init__(self, call: Callable[..., Tensor], given: Tensor) -> None:
        self._call, self._given, self._done = call, given, 0

    def __call__(self, noise: Tensor, *rest: Any) -> Tensor:
        """The next chunk [1, C, chunk, h, w]."""
        first = self._done
        if first >= self._given.shape[2]:
            return self._call(noise, *rest)
        self._done += noise.shape[2]
        return self._given[:, :, first : self._done].to(noise.device, noise.dtype)


def roll(
    opened: Opened,
    world: TrueWorld,
    walk: Walk,
    given: Tensor,
    seed: int,
    device: torch.device,
    *,
    chunks: int | None = None,
    after_chunk: Callable[[float], None] = lambda milliseconds: None,
) -> Rolled:
    """Roll out along a walk, behind the `given` latents [1, C, frames of whole chunks, h, w].

    `chunks` ends the rollout early; `after_chunk` hears the milliseconds of each chunk.
    """
    spec = opened.model.spec
    scene = world.scene(walk, device, opened.dtype)
    if opened.rule is not None:
        opened.rule.begin()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    compiled, reads = compilations(opened), device_to_host.reads()
    times: list[float] = []
    start = _now(device)
    for result in opened.model.rollout(GivenChunks(opened.call, given), scene, walk.path, seed=seed + opened.noise):
        end = _now(device)
        if spec.frames(result.index) >= given.shape[2]:
            times.append(1e3 * (end - start))
            after_chunk(times[-1])
        if chunks is not None and len(times) == chunks:
            break
        start = _now(device)
    waited = device_to_host.reads() - reads - 1
    computed, refused = _steps(opened, len(times))
    return Rolled(
        result.history.float().cpu(),
        tuple(times),
        compilations(opened) - compiled,
        waited,
        computed,
        refused,
        torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    )


def _steps(opened: Opened, chunks: int) -> tuple[int, int]:
    """Steps that were computed and refused in a rollout of so many chunks, by the peer's rule or the decisions."""
    if opened.rule is not None and opened.rule.computed is not None:
        return opened.rule.computed, 0
    made = decisions(opened.call) if _drivers(opened) else []
    refused = sum(len(each.refused_steps) for each in made)
    return opened.model.spec.denoising_steps * chunks - sum(len(each.reused_steps) for each in made) + refused, refused


def compilations(opened: Opened) -> int:
    """Graphs that Dynamo captured in this process, and regions compiled for this variant."""
    if not opened.compiles:
        return 0
    graphs = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return graphs + sum(driver.compilations for driver in _drivers(opened))


def _drivers(opened: Opened) -> list[Driver]:
    """None before the first call, and for other backends."""
    try:
        graphs = CompiledGraph.of(opened.module)
    except StateError:
        return []
    return [graph.driver for graph in graphs if graph.driver is not None]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
