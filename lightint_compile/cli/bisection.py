"""``lightint bisect``: a line a run, then what makes the difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from lightint_compile.bisecting import Tolerance, Verdict, bisect
from lightint_compile.cli.failing import check_writable, user_call
from lightint_compile.cli.targets import parse_options, resolve, resolve_rollout
from lightint_compile.options import LightintOptions


def run_bisection(
    target: str,
    preset: str,
    pairs: Sequence[str],
    tolerance: float,
    verdict: str | None,
    repro: Path | None,
    chunks: int | None = None,
) -> None:
    """Bisect a target and print what is found."""
    check_writable("--repro", repro)
    options = LightintOptions.from_mapping(parse_options(preset, pairs))
    subject = resolve(target) if chunks is None else resolve_rollout(target, chunks)
    judge = Tolerance(tolerance) if verdict is None else Verdict(verdict)
    call = (subject.module, tuple(subject.args), dict(subject.kwargs))
    with user_call(target):
        found = bisect(call, options, judge, typer.echo, subject.rollout)
    typer.echo(str(found))
    if repro is not None and found.repro is not None:
        typer.echo(f"the region is written to {found.repro.write_repro(repro)}")
