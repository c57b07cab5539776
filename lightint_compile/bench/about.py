"""What figures were measured on, with which versions and by which command; and the form in which they are written."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

MACHINE = ("device", "cores", "threads", "system", "python", "torch", "triton", "lightint", "commit")
"""What figures depend on besides the command."""


def write(path: Path, figures: Mapping[str, Any], device: torch.device | str) -> None:
    """Write figures as JSON with ``about`` in front; a reader never sees half of a file."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps({"about": about(device), **figures}, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def about(device: torch.device | str) -> dict[str, Any]:
    """The command of this process, the date, and what :data:`MACHINE` names."""
    return {"command": command(), "date": now(), **machine(device)}


def machine(device: torch.device | str) -> dict[str, Any]:
    """What :data:`MACHINE` names; Triton and the commit are empty where there are none."""
    return {
        "device": device_name(torch.device(device)),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "lightint": _version("lightint"),
        "commit": commit(),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def command() -> str:
    """How this process was called, as a shell takes it."""
    program = Path(sys.argv[0])
    ours = program.name == "lightint" or program == Path(__file__).parents[1] / "__main__.py"
    return shlex.join(["lightint" if ours else program.name, *sys.argv[1:]])


def device_name(device: torch.device) -> str:
    """The model of a GPU or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


@functools.cache
def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def commit() -> str:
    """The commit of the source that runs, and a checksum of what is changed in it; empty where it is no checkout."""
    root = Path(__file__).parents[2]
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top) != root:
        return ""
    changed = _git(root, "diff", "HEAD")
    named = _git(root, "rev-parse", "--short=12", "HEAD")
    return f"{named} with changes {hashlib.sha256(changed.encode()).hexdigest()[:8]}" if changed else named


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; empty where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
