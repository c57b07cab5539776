"""What benchmarks of several ways share: options of linears, lines of output, and medians of ways that take turns."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Way = Callable[..., Tensor]


def arguments(description: str | None, shapes: Sequence[str], rows: Sequence[int], repeats: int) -> argparse.Namespace:
    """The options of a benchmark, with these defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(shapes), help="features in and out, as 2048x8192")
    parser.add_argument("--rows", nargs="+", type=int, default=list(rows))
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser.parse_args()


def say(line: str) -> None:
    """Print a line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def medians(ways: Mapping[str, Way], operands: tuple[Tensor, ...], repeats: int) -> dict[str, float]:
    """Milliseconds of each way; every round calls all of them, so that a clock that drifts slows all alike."""
    for way in ways.values():
        for _ in range(3):
            way(*operands)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            spent[name].append(_milliseconds(way, operands))
    return {name: statistics.median(each) for name, each in spent.items()}


def _milliseconds(way: Way, operands: tuple[Tensor, ...]) -> float:
    if DEVICE == "cpu":
        start = time.perf_counter()
        way(*operands)
        return 1e3 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1_000_000)  # the host is ahead: what is timed is the device
    first.record()
    way(*operands)
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)
