"""``lightint compile``: a target's programs, made ahead of time into a folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from lightint_compile.cli.failing import stages, user_call
from lightint_compile.cli.targets import parse_dynamic, parse_options, resolve
from lightint_compile.errors import DeviceError, OptionError
from lightint_compile.lowering.shipped_programs import keep_artifacts, kept
from lightint_compile.models import registry
from lightint_compile.models.devices import checked_device
from lightint_compile.models.world_model import WorldModel, turn_and_back
from lightint_compile.options import LightintOptions


def compile_ahead(
    target: str,
    out: Path,
    preset: str,
    pairs: Sequence[str],
    dynamic: Sequence[str],
    chunks: int | None,
    device: str | None,
) -> None:
    """Compile the calls of a target, and say what is in the folder then."""
    import torch

    options = parse_options(preset, pairs)
    for name in ("delegate", "artifacts"):
        if name in options:
            why = "programs are those of Inductor, and are made anew"
            raise OptionError(f"{name} cannot be set here", where="--option", why=why, fix="leave it out")
    LightintOptions.from_mapping(options)
    options.setdefault("traces", True)
    if registry.is_family(target.partition(":")[0]):
        if dynamic:
            why = f"{target} says itself what grows"
            raise OptionError("--dynamic is for factories", where="--dynamic", why=why, fix="leave it out")
        call = _rolled_out(registry.world_model(target), target, options, chunks, device)
    else:
        for option, value in {"--chunks": chunks, "--device": device}.items():
            if value is not None:
                why = "the factory says where its module is, and which call is made"
                raise OptionError(f"{option} is for a FAMILY:SIZE", where=option, why=why, fix="leave it out")
        call = _called(target, options, parse_dynamic(dynamic) or {})
    tell = stages()
    tell("compiling")
    with torch.no_grad(), keep_artifacts(out):
        call()
    typer.echo(str(kept(out)))
    typer.echo(
        f'use it: torch.compile(model, backend="lightint", options={{..., "artifacts": {str(out)!r}, "traces": True}})'
    )


def _rolled_out(
    model: WorldModel, target: str, options: Mapping[str, Any], chunks: int | None, device: str | None
) -> Callable[[], None]:
    """A rollout that fills the model's memory and goes on: every form of its calls occurs."""
    import torch

    chosen = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if model.needs_gpu and chosen.type == "cpu":
        fix = f"run it on a machine with one; {registry.TINY} runs anywhere"
        raise DeviceError(f"{target} needs a CUDA device", where="--device", fix=fix)
    spec, dtype = model.spec, torch.float32 if chosen.type == "cpu" else torch.bfloat16
    count = chunks or spec.chunks(spec.memory) + 2
    path = model.camera_path(turn_and_back(spec, spec.frames(count)))

    def call() -> None:
        compiled = torch.compile(model.module(chosen, dtype), backend="lightint", fullgraph=True, options=dict(options))
        deque(model.rollout(compiled, model.scene(chosen, dtype), path), maxlen=0)  # no chunk is kept

    return call


def _called(target: str, options: Mapping[str, Any], dynamic: Mapping[str, Any]) -> Callable[[], None]:
    import torch

    from lightint_compile.capture.dry_run import sizes_marked

    subject = resolve(target)

    def call() -> None:
        with user_call(target), sizes_marked(subject.module, subject.args, subject.kwargs, dynamic):
            compiled = torch.compile(subject.module, backend="lightint", options=dict(options))
            compiled(*subject.args, **subject.kwargs)

    return call
