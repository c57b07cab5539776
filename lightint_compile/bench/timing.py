"""Medians of repeated calls, on the device's own clock where there is one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]
_FLUSHED_BYTES = 256 << 20
"""Written before a timed call, more than any second-level cache holds."""


def milliseconds(call: Call, device: torch.device, budget: float = 0.2) -> float:
    """Median time of one call, after a warm-up, within about ``budget`` seconds.

    On CUDA each call is bracketed by events and the L2 cache is overwritten in between, so that no call finds its
    inputs where the last one left them.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        median = do_bench(call, warmup=int(budget * 250), rep=int(budget * 1000), return_mode="median")
        return float(median)
    call()
    return 1e3 * statistics.median(_wall_clock(call, budget))


def _wall_clock(call: Call, budget: float) -> list[float]:
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def paired(calls: Sequence[Call], device: torch.device, budget: float = 0.2) -> list[float]:
    """Medians, in milliseconds, of calls that take turns: a device that grows warm counts against all alike."""
    if device.type != "cuda":
        return [milliseconds(call, device, budget / len(calls)) for call in calls]
    flush = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)
    times: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in calls]
    for call in calls:  # compiles what has to be, outside of the budget
        for _ in range(3):
            call()
    torch.cuda.synchronize(device)
    spent, rounds = 0.0, 0
    while spent < budget or rounds < 5:
        begin = time.perf_counter()
        for call, seen in zip(calls, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            end.record()
            seen.append((start, end))
        torch.cuda.synchronize(device)
        spent, rounds = spent + time.perf_counter() - begin, rounds + 1
    return [statistics.median(start.elapsed_time(end) for start, end in seen[1:]) for seen in times]


def graphed(call: Call) -> Call:
    """The call as replays of a CUDA graph, so that the host takes next to no time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def host_microseconds(call: Call, device: torch.device, calls: int = 50) -> float:
    """Time that one call keeps the host busy: the fastest of a few rounds that start with an idle device.

    A round is short, because a host that is a thousand launches ahead of its device has to wait for it.
    """
    rounds = []
    for _ in range(3):
        call()
    for _ in range(10):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append(1e6 * (time.perf_counter() - start) / calls)
    torch.cuda.synchronize(device)
    return min(rounds)
