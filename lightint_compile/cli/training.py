"""The command `lightint train`: the model whose world has a truth, as the registry names it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lightint_compile.models.registry import SCENES, TRUE

FAMILY = TRUE.partition(":")[0]

train = typer.Typer(help="Train a small world model whose world has a truth.", no_args_is_help=True)


@train.callback()
def _group() -> None:
    """Train a small world model whose world has a truth."""


@train.command(
    FAMILY,
    help=f"Train the world model of {SCENES}: codec, flow matching, distillation to four steps; then judge it and "
    f"write it.\n\nSeveral GPUs: torchrun --nproc-per-node 4 -m lightint_compile train {FAMILY}.",
)
def trained(
    config: Annotated[str, typer.Option(help=f"tiny, base or large; see lightint explain {TRUE}")] = "base",
    minutes: Annotated[float, typer.Option(min=0.05, help="of the whole training, over all sessions")] = 12.0,
    codec_minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="of them for the codec; by default 15 %, at most 2; none with --start"),
    ] = None,
    distil_share: Annotated[
        float, typer.Option(min=0.02, max=0.9, help="of the time after the codec, for distillation to four steps")
    ] = 0.25,
    seed: Annotated[int, typer.Option(min=0, help=f"seed of weights, {SCENES} and noise")] = 0,
    out: Annotated[Path, typer.Option(help="folder for checkpoint, log, pictures and weights")] = Path("out") / FAMILY,
    start: Annotated[
        Path | None,
        typer.Option(help="folder of trained weights to begin with, of any size with the same widths; no codec then"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint in --out")] = False,
    session_minutes: Annotated[
        float | None, typer.Option(min=0.05, help="stop after so long, to be resumed; judging comes on top")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="walks a step and process; by default the size's")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one")] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="compile the blocks; by default on cuda")
    ] = None,
) -> None:
    """One training or session, of the time that the options share out."""
    from lightint_compile.cli.failing import check_folder
    from lightint_compile.errors import InputError, OptionError, did_you_mean
    from lightint_compile.training import SIZES, Plan
    from lightint_compile.training import train as run

    if config not in SIZES:
        raise InputError(f"there is no size {config!r}", where="--config", fix=did_you_mean(config, SIZES))
    if start is not None and resume:
        why, fix = "the checkpoint has what the training began with", "leave one of them out"
        raise OptionError("--start and --resume exclude each other", where="--start", why=why, fix=fix)
    check_folder("--out", out)
    codec = codec_minutes or (0.0 if start is not None else min(0.15 * minutes, 2.0))
    distil = distil_share * max(minutes - codec, 0.0)
    size = SIZES[config]()
    plan = Plan.of(size, (codec, max(minutes - codec, 0.0) - distil, distil), seed, batch)
    begin: dict[str, Any] = {"start": start, "resume": resume, "session_minutes": session_minutes}
    run(size, plan, out, device=device, compiled=compiled, **begin)
