"""Run as a program: the test suite under every supported version of torch, each in an environment of its own.

``python torch_matrix.py [--into FOLDER] [VERSION ...] [-- PYTEST ARGUMENTS]`` makes what is missing (up to 6 GB each),
runs the suite on the CPU, and prints one line a version in Markdown; the exit code is 1 where a test failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VERSIONS = ("2.11.0", "2.13.0", "2.14.1")
"""The oldest, the middle and the newest: the last release of each."""

ROOT = Path(__file__).resolve().parents[2]
SUITE = ("-q", "-n", "2", "--dist", "worksteal", "-m", "not slow")


def installed(version: str, into: Path) -> Path:
    """The interpreter of an environment that holds one version of torch and this project."""
    python = into / f"torch-{version}" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet"]
        # torch itself pins the Triton that belongs to it
        subprocess.run([*command, f"torch=={version}", "--editable", f"{ROOT}[dev]"], check=True)
    return python


def tested(python: Path, arguments: Sequence[str]) -> tuple[str, bool]:
    """The last line of pytest, and whether everything passed; no GPU is seen."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), "-m", "pytest", *SUITE, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout[-20000:], file=sys.stderr)
    told = [line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    return (told[-1].strip("= ") if told else f"exit code {done.returncode}"), done.returncode == 0


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("build/torch"))
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    own, arguments = _split(sys.argv[1:])
    wanted = parser.parse_args(own)
    print("| torch | the suite on the CPU |\n|---|---|")
    passed = True
    for version in wanted.versions:
        told, fine = tested(installed(version, wanted.into.resolve()), arguments)
        print(f"| {version} | {told} |", flush=True)
        passed = passed and fine
    return int(not passed)


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


if __name__ == "__main__":
    sys.exit(main())
