"""Released world models at real size on a GPU: ``python tests/benchmarks/upstream CHECKOUTS TABLE [--depth N] ...``.

Ways: ``eager``, ``flag`` (the release's own ``torch.compile``), ``release`` (Light Interaction's own ``all``, for the
table ``worldplay``), ``inductor`` (``accelerate`` with no pass of ours), or options of ``accelerate``, as ``all`` or
``sparse,density=0.3``. Differences are relative L2 to the first way.

``release`` runs a second checkout, ``HY-WorldPlay-Light-Interaction``: a copy of the first that was patched by the
script ``apply_patch.sh`` of the repository 2843721358l-del/Light-Interaction-Project.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch
import triton

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support")]

import turns  # noqa: E402
import ways  # noqa: E402

WAYS = {
    "calls": ("eager", "flag", "inductor", "exact", "all"),
    "worldplay": ("eager", "flag", "published", "all"),
    "causal-wan": ("eager", "inductor", "exact", "sparse"),
}


def main() -> None:
    """Measure and print."""
    given = _arguments()
    for folder in filter(None, (given.profiles, given.reports)):
        folder.mkdir(parents=True, exist_ok=True)
    make = functools.partial(ways.MAKERS[given.table], given)
    found: list[turns.Timed] = []
    for each in turns.in_turn(make, given.ways or WAYS[given.table], given.repeats, given.warm_ups, given.profiles):
        found.append(each)
        wanted = found[0].result
        if each.result is not None and wanted is not None:
            each.more["difference"] = f"{np.linalg.norm(each.result - wanted) / np.linalg.norm(wanted):.1e}"
        told = {name: value for name, value in vars(each).items() if name != "result"}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"\n{torch_line()}\n\n{_table(found)}\n")


def torch_line() -> str:
    """Device and versions."""
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}"


def _table(found: list[turns.Timed]) -> str:
    names = list(dict.fromkeys(name for each in found for name in each.milliseconds))
    more = list(dict.fromkeys(name for each in found for name, told in each.more.items() if not isinstance(told, list)))
    rows = [f"| way | {' | '.join([*names, 'warm, s', 'GB', *more])} |", "|---" * (len(names) + len(more) + 3) + "|"]
    for each in found:
        if each.error:
            rows.append(f"| {each.way} | failed: {each.error.splitlines()[-1]} |")
            continue
        times = [f"{each.milliseconds[name]:.1f}" for name in names]
        told = [str(each.more.get(name, "")) for name in more]
        rows.append(f"| {each.way} | {' | '.join([*times, f'{each.warm:.0f}', f'{each.gigabytes:.1f}', *told])} |")
    return "\n".join(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="upstream", description=__doc__)
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("table", choices=WAYS)
    parser.add_argument("--ways", nargs="*")
    parser.add_argument("--depth", type=int, help="blocks; those of the release unless told")
    parser.add_argument("--context", type=int, default=12, help="context frames of the calls")
    parser.add_argument("--path", default="left-31,right-32", help="the camera's path")
    parser.add_argument("--frames", type=int, default=21, help="latent frames of the causal model")
    parser.add_argument("--window", type=int, default=-1, help="latent frames that the causal model keeps; -1: all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warm-ups", type=int, default=2)
    parser.add_argument("--eager-warm-up", help="a shorter path that warms up the way eager, which compiles nothing")
    parser.add_argument("--profiles", type=Path, help="a folder for kernels and host calls of each call by time")
    parser.add_argument("--reports", type=Path, help="a folder for the reports of ours")
    return parser.parse_args()


if __name__ == "__main__":
    main()
