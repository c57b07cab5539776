"""``python -m lightint_compile.testing calls --seeds 5000``: generated cases, one a seed; failures are shrunk.

``passes`` runs generated models, in every form of a chunk, through the exact passes and compares them with float64;
``calls`` plays an adversary: a drawn module, calls and writes between them, and everything that the caller can see
compared with eager.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightint_compile.testing import differential
from lightint_compile.testing.adversary import judge
from lightint_compile.testing.features import Features
from lightint_compile.testing.finding import Finding, save, shrunk
from lightint_compile.testing.scenario import Scenario

#: Seeds between two lines that say how far it got.
_EVERY = 100


@dataclass(frozen=True)
class Subject:
    """What is fuzzed: how a seed becomes a case, and what finds fault with a case."""

    drawn: Callable[[int], Any]
    check: Callable[[Any], Finding[Any] | None]


SUBJECTS = {
    "passes": Subject(lambda seed: Features.from_seed(seed), lambda case: differential.check_every_form(case)),
    "calls": Subject(lambda seed: Scenario.from_seed(seed), judge),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the seeds one after another; the exit status is 1 when one failed."""
    parser = argparse.ArgumentParser(
        prog="lightint_compile.testing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", nargs="?", choices=SUBJECTS, default="passes", help="what is tried")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to try")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--save", type=Path, help="a folder for the shrunk failures, one JSON file each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop before the seeds are through")
    parser.add_argument("--as-drawn", action="store_true", help="do not shrink: faster where many seeds fail")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    subject = SUBJECTS[options.subject]
    begin = time.perf_counter()
    tried = failures = 0
    while tried < options.seeds and time.perf_counter() - begin < 60 * options.minutes:
        found = _try(subject, options.start + tried, not options.as_drawn)
        tried += 1
        if found is not None:
            failures += 1
            if options.save is not None:
                save(found, options.save)
        if tried % _EVERY == 0:
            print(f"{tried} seeds, {failures} failures", flush=True)
    print(f"{tried} seeds, {failures} failures, {time.perf_counter() - begin:.0f} s")
    return 1 if failures else 0


def _try(subject: Subject, seed: int, shrinks: bool) -> Finding[Any] | None:
    found = subject.check(subject.drawn(seed))
    if found is None:
        return None
    kind = found.check

    def same_check(case: Any) -> Finding[Any] | None:
        again = subject.check(case)
        return again if again is not None and again.check == kind else None

    small = shrunk(found, same_check) if shrinks else found
    print(f"seed {seed}: {small}", flush=True)
    return small
