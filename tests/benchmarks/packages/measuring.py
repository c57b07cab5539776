"""Times the package of one cell and the compiled driver in one process, call by call in turn."""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import rolling
import subjects
import torch
from torch import Tensor

import lightint_compile
from lightint_compile import kernels
from lightint_compile.exporting.check import relative_difference

Way = Callable[[], Any]


def measure(given: argparse.Namespace, cell: str) -> None:
    """Print a line for each way: median, fastest, the ratio to the driver's median, the difference of results."""
    with torch.no_grad():
        ways = rolling.ways(given) if cell == "all" else call_ways(given, cell)
        results = warmed(ways)
        times = in_turn({name: ways[name] for name in results}, given)
    base = statistics.median(times.get("driver", [float("nan")]))
    for name, taken in times.items():
        told = [f"{statistics.median(taken):9.3f} ms", f"fastest {min(taken):9.3f}"]
        told += [f"{statistics.median(taken) / base - 1:+.1%} beside the driver"]
        if "driver" in results:
            told += [f"results differ by {relative_difference(results[name], results['driver']):.1e}"]
        _say(f"{name:28} {', '.join(told)}")


def call_ways(given: argparse.Namespace, cell: str) -> dict[str, Callable[[], Way]]:
    """What makes each way ready."""
    made, path = subjects.subject(given, cell), subjects.package(given, cell)
    ways = {
        "driver": lambda: driver(made),
        "package by lightint.load": lambda: called(lightint_compile.load(path), made.inputs),
        "package by torch's loader": lambda: called(torch._inductor.aoti_load_package(str(path)), made.inputs),
    }
    if cell == "sparse" and given.device == "cuda":
        ways["driver, portable kernels"] = lambda: portable(driver(made))
    return {name: functools.cache(make) for name, make in ways.items()}


def driver(made: subjects.Subject) -> Way:
    """The compiled module; the history's length is symbolic, as in the package."""
    compiled = torch.compile(made.module, backend="lightint", options=made.options)
    for name, axis in made.dynamic.items():
        torch._dynamo.mark_dynamic(made.inputs[name], axis)
    return lambda: compiled(**made.inputs)


def portable(way: Way) -> Way:
    """With the kernels that a package has."""

    def call() -> Any:
        with kernels.using("portable"):
            return way()

    return call


def called(module: Callable[..., Any], inputs: dict[str, Any]) -> Way:
    """A call of a package."""
    return lambda: module(**inputs)


def warmed(ways: dict[str, Callable[[], Way]]) -> dict[str, Tensor]:
    """Results of the ways that run, each called three times; of the others the error is a line."""
    results: dict[str, Tensor] = {}
    for name, make in ways.items():
        start = time.perf_counter()
        try:
            way = make()
            for _ in range(3):
                found = way()
            _wait()
            results[name] = found.detach().float().cpu()
            _say(f"{name} is warm after {time.perf_counter() - start:.1f} s")
        except Exception as error:
            _say(f"{name} failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
    return results


def in_turn(ways: dict[str, Callable[[], Way]], given: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of wall time of every call; another way begins each round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = [*ways]
    for number in range(given.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            way = ways[name]()
            _wait()
            start = time.perf_counter()
            way()
            _wait()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
