"""``python -m lightint_compile.fuzz --seeds 5000``: generated models through the exact passes; failures are shrunk."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lightint_compile.testing.differential import Finding, available, check, shrunk
from lightint_compile.testing.features import Features

#: Seeds between two lines that say how far it got.
_EVERY = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the seeds one after another; the exit status is 1 when one failed."""
    parser = argparse.ArgumentParser(prog="lightint_compile.fuzz", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to try")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--save", type=Path, help="a folder for the shrunk failures, one JSON file each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop before the seeds are through")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("passes:", ", ".join(step.name for step in available()))
    begin = time.perf_counter()
    tried = failures = 0
    while tried < options.seeds and time.perf_counter() - begin < 60 * options.minutes:
        found = _try(options.start + tried)
        tried += 1
        if found is not None:
            failures += 1
            if options.save is not None:
                save(found, options.save)
        if tried % _EVERY == 0:
            print(f"{tried} seeds, {failures} failures", flush=True)
    print(f"{tried} seeds, {failures} failures, {time.perf_counter() - begin:.0f} s")
    return 1 if failures else 0


def save(finding: Finding, folder: Path) -> Path:
    """Write a finding as a regression that the test suite replays; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.check.replace(' ', '-')}-{finding.features.seed}.json"
    path.write_text(json.dumps({"features": finding.features.to_dict(), "found": finding.detail}, indent=2) + "\n")
    return path


def _try(seed: int) -> Finding | None:
    found = check(Features.from_seed(seed))
    if found is None:
        return None
    small = shrunk(found)
    print(f"seed {seed}: {small}", flush=True)
    return small


if __name__ == "__main__":
    sys.exit(main())
