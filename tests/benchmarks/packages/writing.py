"""Writes the package of one cell."""

from __future__ import annotations

import argparse
import json
import sys
import time

import minimal
import subjects

import lightint_compile


def write(given: argparse.Namespace, cell: str) -> None:
    """Export and check; the package is at :func:`subjects.package` afterwards."""
    path = subjects.package(given, cell)
    start, made = time.perf_counter(), subjects.subject(given, cell)
    checks = [] if made.longer is None else [((), made.longer)]
    with minimal.chosen(given.attention):
        written = lightint_compile.export(
            made.module,
            (),
            path,
            kwargs=made.inputs,
            options=made.options,
            dynamic=made.dynamic,
            checks=checks,
            progress=lambda line: _say(start, line),
        )
    subjects.meanings(path).write_text(json.dumps(dict(written.inputs)))
    _say(start, str(written).replace("\n", " ·"))


def _say(start: float, line: str) -> None:
    sys.stdout.write(f"{line} (after {time.perf_counter() - start:.0f} s)\n")
    sys.stdout.flush()
