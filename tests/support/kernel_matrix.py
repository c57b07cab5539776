"""Run as a program: every kernel compiled under every version of Triton, each in a folder of its own, as one table.

``python kernel_matrix.py [--into FOLDER] [VERSION ...]`` installs what is missing (0.6 to 1 GB each), compiles for
sm_80 and sm_90, and prints registers and spilled bytes in Markdown; the exit code is 1 where a kernel did not compile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VERSIONS = ("3.6.0", "3.7.1", "3.8.0", "3.9.0")
"""The last release of each supported minor version."""

CHIPS = (("hopper", 90), ("portable", 80), ("portable", 90))
SMALL = ("others:80", "others:90", "linears-portable:80", "linears-portable:90", "linears-hopper:90")
WANTED = (
    *(f"{name}:{chip}:{dim}" for name, chip in CHIPS for dim in (64, 96, 128)),
    *(f"{each}:128" for each in SMALL),
)
MISSING = "not compiled"
PROGRAM = Path(__file__).with_name("compiled_kernels.py")


def installed(version: str, into: Path) -> Path:
    """The folder that holds one version of Triton and nothing else."""
    folder = into / f"triton-{version}"
    if not (folder / "triton").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, f"triton=={version}"], check=True)
    return folder


def compiled(folder: Path, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """What the kernels take, under the Triton of a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, str(PROGRAM), *wanted], env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"{folder.name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Registers / spilled bytes, one line for each kernel, chip and head_dim, one column a version.

    A kernel that one call launches in several forms has several pairs.
    """
    cells: dict[tuple[str, int, int], dict[str, str]] = {}
    for version, found in rows.items():
        for row in found:
            place = cells.setdefault((row["kernel"], row["chip"], row["head_dim"]), {})
            told = f"{row['registers']} / {row['spilled_bytes']}"
            place[version] = f"{place[version]}, {told}" if version in place else told
    lines = ["| kernel | chip | head_dim | " + " | ".join(rows) + " |", "|---|---|---|" + "---|" * len(rows)]
    for (kernel, chip, head_dim), place in sorted(cells.items()):
        values = (place.get(version, MISSING) for version in rows)
        lines.append(f"| {kernel} | sm_{chip} | {head_dim} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("build/triton"))
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    arguments = parser.parse_args()
    rows = {version: compiled(installed(version, arguments.into), WANTED) for version in arguments.versions}
    told = table(rows)
    print(told)
    return int(MISSING in told or not all(rows.values()))


if __name__ == "__main__":
    sys.exit(main())
