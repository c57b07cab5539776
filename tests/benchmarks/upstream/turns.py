"""Several ways of running one thing, each in a process of its own: all warm up at once, then are timed one by one."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as processes

from lightint_compile.bench.breakdown import busy_milliseconds


@dataclass
class Timed:
    """What one way took.

    Attributes:
        milliseconds: median of each call.
        spread: lowest and highest of each call.
        warm: seconds until the last warm-up call was made.
        gigabytes: most device memory allocated while it was timed, 10^9 bytes.
        more: what the way tells besides.
        result: what the last call gave, a numpy array.
    """

    way: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    warm: float = 0.0
    gigabytes: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    error: str = ""


class Made(NamedTuple):
    """Calls by name, what is told of them once they are timed, and what warms them up: themselves unless given."""

    calls: dict[str, Callable[[], Any]]
    told: Callable[[], dict[str, Any]]
    warming: dict[str, Callable[[], Any]] | None = None


def in_turn(
    make: Callable[[str], Made],
    ways: Sequence[str],
    repeats: int,
    warm_ups: int = 2,
    profiles: Path | None = None,
) -> Iterator[Timed]:
    """Time the calls that ``make`` gives for each way; it must be a function that another process can import.

    Where ``profiles`` names a folder, each call is made once more under the profiler, and its largest kernels written.
    """
    context = processes.get_context("spawn")
    pairs = [context.Pipe() for _ in ways]
    workers = [
        context.Process(target=_work, args=(make, way, repeats, warm_ups, profiles, ours), daemon=True)
        for way, (_, ours) in zip(ways, pairs, strict=True)
    ]
    for worker, (_, ours) in zip(workers, pairs, strict=True):
        worker.start()
        ours.close()  # the worker's own end alone keeps the pipe open, so that its death is seen
    try:
        ready = [_received(pipe, way) for way, (pipe, _) in zip(ways, pairs, strict=True)]
        for way, (pipe, _), state in zip(ways, pairs, ready, strict=True):
            yield state if isinstance(state, Timed) else _received(pipe, way, "go")
    finally:
        for worker in workers:
            worker.kill()


def _received(pipe: Any, way: str, *said: str) -> Any:
    """What a worker sends, once it was told to go on."""
    try:
        for word in said:
            pipe.send(word)
        return pipe.recv()
    except (EOFError, BrokenPipeError):
        return Timed(way, error="the process died")


def _work(make: Callable[[str], Made], way: str, repeats: int, warm_ups: int, profiles: Path | None, pipe: Any) -> None:
    timed, start = Timed(way), time.perf_counter()
    try:
        with torch.no_grad():
            calls, told, warming = make(way)
            for _ in range(warm_ups):
                for call in (warming or calls).values():
                    call()
            torch.cuda.synchronize()
            timed.warm = time.perf_counter() - start
            sys.stderr.write(f"{way} is warm after {timed.warm:.0f} s\n")
            pipe.send("warm")
            pipe.recv()
            torch.cuda.reset_peak_memory_stats()
            for name, call in calls.items():
                taken = [_milliseconds(call, timed) for _ in range(repeats)]
                timed.milliseconds[name] = statistics.median(taken)
                timed.spread[name] = (min(taken), max(taken))
            timed.gigabytes = torch.cuda.max_memory_allocated() / 1e9
            timed.more = told()
            for name, call in calls.items() if profiles is not None else ():
                timed.more[f"{name}, busy"] = _profiled(call, profiles / f"{way.replace(',', '-')}-{name}.txt")
            timed.result = timed.result.float().cpu().numpy()
    except Exception:
        timed.error, timed.result = traceback.format_exc()[-3000:], None
    pipe.send(timed)


def _milliseconds(call: Callable[[], Any], timed: Timed) -> float:
    """Wall time: what the host does in between counts. The result stays with ``timed``."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    timed.result = call()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _profiled(call: Callable[[], Any], file: Path) -> float:
    """Milliseconds in which the device ran something; kernels and host calls by time go to ``file``."""
    torch.cuda.synchronize()
    with torch.profiler.profile() as profile:
        call()
        torch.cuda.synchronize()
    averages, given = profile.key_averages(), {"row_limit": 30, "max_name_column_width": 90}
    tables = [averages.table(sort_by=by, **given) for by in ("self_cuda_time_total", "self_cpu_time_total")]
    file.write_text("\n".join(tables))
    return round(busy_milliseconds(profile), 1)
