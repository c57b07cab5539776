"""The measurements ``lightint bench ...`` and their options; each hands over to the module that measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lightint_compile.bench.decode_choices import Backend, Order
from lightint_compile.bench.parts.listed import part_names
from lightint_compile.cli.failing import check_folder, check_writable
from lightint_compile.errors import OptionError
from lightint_compile.models import registry
from lightint_compile.models.registry import DEMO, LARGE, TINY


class Benchmarks(TyperGroup):
    """The benchmarks; the name of a model is short for a rollout of it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """``FAMILY[:SIZE] ...`` as ``rollout --model FAMILY:SIZE ...``; the largest size unless one is named."""
        name, _, size = args[0].partition(":")
        if args[0] not in self.commands and registry.is_family(name):
            size = size or list(registry.family(name).sizes)[-1]
            args = ["rollout", "--model", f"{name}:{size}", *args[1:]]
        return super().resolve_command(ctx, args)


bench = typer.Typer(cls=Benchmarks, help="Measurements.", no_args_is_help=True)


class Table(StrEnum):
    """The tables of ``bench kernels``."""

    SITES = "sites"
    SWEEP = "sweep"
    GRAPHS = "graphs"
    HOST = "host"


Model = Annotated[str, typer.Option(help="FAMILY:SIZE")]
Trajectory = Annotated[
    str | None,
    typer.Option(
        help="camera path as a pose string", show_default="a turn to the left and back, some 64 latent frames"
    ),
]
Device = Annotated[str | None, typer.Option(help="cuda or cpu", show_default="cuda where there is one")]
Width = Annotated[int, typer.Option(min=40, help="columns of the printed tables")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="also write every figure to this file")]


@bench.command()
def kernels(
    device: Device = None,
    table: Annotated[
        list[Table] | None, typer.Option(help="what to measure; repeat for several", show_default="all")
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(min=512, help="tokens of the sweep, a power of two; repeat", show_default="512 to 65536"),
    ] = None,
    density: Annotated[
        list[float] | None,
        typer.Option(min=0.01, max=1.0, help="density of the sweep; repeat", show_default="0.05 to 1"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="time spent on one figure")] = 0.2,
    flex: Annotated[
        bool, typer.Option("--flex", help="also FlexAttention with the same block mask (compiles)")
    ] = False,
    width: Width = 100,
    json_file: JsonFile = None,
) -> None:
    """Time the attention operators against dense attention."""
    from lightint_compile.bench.kernels import DENSITIES, Settings, run

    check_writable("--json", json_file)
    tables, lengths, densities = tuple(map(str, table or Table)), tuple(length or ()), tuple(density or DENSITIES)
    run(Settings(device, tables, lengths, densities, seconds, flex, width, json_file))


@bench.command()
def rollout(
    model: Model = LARGE,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="eager, inductor, or PRESET[+PASS...][:OPTION=VALUE,...]; @SIZE behind it: of this size; repeat",
            show_default="a row of each kind, and all in 8 bit",
        ),
    ] = None,
    depth: Annotated[
        list[int] | None, typer.Option(min=1, help="blocks that are measured; repeat", show_default="2, 6")
    ] = None,
    inductor_depth: Annotated[
        list[int] | None,
        typer.Option(min=1, help="the same for Inductor, which unrolls every block", show_default="1, 2; or 2, 4"),
    ] = None,
    trajectory: Trajectory = None,
    chunks: Annotated[
        int | None,
        typer.Option(min=1, help="chunks of the turn, without --trajectory", show_default="some 64 latent frames"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="rollouts of each variant; the median counts")] = 3,
    at_once: Annotated[
        int | None,
        typer.Option(min=1, help="variants that compile and hold weights at once", show_default="all; end to end: 1"),
    ] = None,
    patience: Annotated[float, typer.Option(min=0.0, help="seconds after which a variant counts as failed")] = 3600.0,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="also decode every chunk and copy its frames to the host")
    ] = False,
    decode: Annotated[
        Order | None,
        typer.Option(
            help="end to end: decode in line, or beside the next chunk's denoising", show_default="overlap on a GPU"
        ),
    ] = None,
    decode_device: Annotated[
        str | None, typer.Option(help="end to end: where to decode, such as cuda:1", show_default="the model's")
    ] = None,
    decode_backend: Annotated[
        Backend | None,
        typer.Option(
            help="end to end: what compiles the decoder", show_default="lightint (exact) under presets, else eager"
        ),
    ] = None,
    decoder: Annotated[
        str | None, typer.Option(help="end to end: which of the model's decoders", show_default="its release's")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="end to end: encode the prompt as well")] = False,
    timeline: Annotated[
        Path | None, typer.Option(help="end to end: write a PNG of all chunks along time", show_default="none")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Roll a model out in eager, Inductor and lightint's presets; in short, bench FAMILY:SIZE (FAMILY: the largest)."""
    check_writable("--json", json_file)
    check_writable("--timeline", timeline)
    common: dict[str, Any] = {
        "model": model,
        "variants": variant or (),
        "trajectory": trajectory,
        "chunks": chunks,
        "repeats": repeats,
        "at_once": at_once,
        "patience": patience,
        "json_file": json_file,
    }
    decoding: dict[str, object] = {"decode": decode, "decode-device": decode_device, "decode-backend": decode_backend}
    decoding |= {"decoder": decoder, "text": text or None}
    if end_to_end:
        _refuse({"inductor-depth": inductor_depth}, "is no option of --end-to-end", "leave it out")
        from lightint_compile.bench.end_to_end import Asked
        from lightint_compile.bench.end_to_end import run as run_end_to_end

        asked = Asked(decode, decode_device, decode_backend, decoder, text)
        run_end_to_end(**common, depth=_one_depth(depth), asked=asked, timeline=timeline)
        return
    _refuse({**decoding, "timeline": timeline}, "needs --end-to-end", "add --end-to-end")
    from lightint_compile.bench.rollout import run

    run(**common, depths=depth or (), inductor_depths=inductor_depth or ())


def _refuse(options: Mapping[str, object], what: str, fix: str) -> None:
    """Raise OptionError for the first option that was given."""
    for name, value in options.items():
        if value is not None:
            raise OptionError(f"--{name} {what}", where=f"--{name}", fix=fix)


def _one_depth(depths: Sequence[int] | None) -> int | None:
    if depths and len(depths) > 1:
        why = f"{len(depths)} depths are given, and nothing is extrapolated"
        raise OptionError("--end-to-end measures one depth", where="--depth", why=why, fix="give one --depth, or none")
    return depths[0] if depths else None


@bench.command()
def ranks(
    model: Model = TINY,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="eager, or PRESET[+PASS...][:OPTION=VALUE,...]; repeat",
            show_default="eager, exact, all, all:drift=1e9",
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="blocks", show_default="all")] = None,
    trajectory: Trajectory = None,
    chunks: Annotated[int, typer.Option(min=4, help="chunks of the turn, without --trajectory")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="rollouts of each variant; the median counts")] = 3,
    json_file: JsonFile = None,
) -> None:
    """Roll a model out on one rank and on all that torchrun started: milliseconds, and the share of collectives."""
    from lightint_compile.bench.ranks import run

    check_writable("--json", json_file)
    run(
        model=model,
        variants=variant or (),
        depth=depth,
        trajectory=trajectory,
        chunks=chunks,
        repeats=repeats,
        json_file=json_file,
    )


@bench.command("compile")
def compiling(
    model: Model = TINY,
    depth: Annotated[list[int] | None, typer.Option(min=1, help="blocks; repeat", show_default="4, 16")] = None,
    inductor_up_to: Annotated[
        int, typer.Option(min=0, help="blocks of the deepest stack that Inductor compiles as well")
    ] = 4,
    history: Annotated[int, typer.Option(min=1, help="latent frames before the chunk")] = 24,
    device: Annotated[str, typer.Option(help="cpu, or cuda with bfloat16")] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Time compiling a chunk: Inductor, lightint cold and warm, and with each distinct block traced once."""
    from lightint_compile.bench.compiling import run

    check_writable("--json", json_file)
    depths = depth or (4, 16)
    run(
        model=model,
        depths=depths,
        inductor_up_to=inductor_up_to,
        history=history,
        device=device,
        json_file=json_file,
    )


@bench.command()
def checks(
    model: Annotated[
        str | None, typer.Option(help="FAMILY:SIZE", show_default=f"{LARGE} with CUDA, else {DEMO}")
    ] = None,
    device: Device = None,
    chunk: Annotated[float, typer.Option(min=1e-3, help="milliseconds of a chunk, for the share")] = 600.0,
    seconds: Annotated[float, typer.Option(min=0.0, help="time spent on one figure of the device")] = 1.0,
    width: Width = 110,
    json_file: JsonFile = None,
) -> None:
    """Time the checks of what kept results come from, at full size."""
    from lightint_compile.bench.checks import run

    check_writable("--json", json_file)
    run(model=model, device=device, chunk=chunk, seconds=seconds, width=width, json_file=json_file)


@bench.command("flops")
def counting(
    model: Model = LARGE,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="off, exact, release, published, all, 'all, kept 4 chunks', ...; repeat", show_default="all rows"
        ),
    ] = None,
    trajectory: Trajectory = None,
    latents: Annotated[
        int | None, typer.Option(min=1, help="latent frames of the path that are counted", show_default="all")
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(min=1, help="blocks that are traced; a third one checks the line", show_default="2, 3; or 4, 6"),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Count the FLOPs of a rollout by stage and kind."""
    from lightint_compile.bench.flops import run

    check_writable("--json", json_file)
    run(
        model=model,
        variants=variant or (),
        trajectory=trajectory,
        latents=latents,
        depths=depth or (),
        json_file=json_file,
    )


@bench.command("all")
def every(
    out: Annotated[Path, typer.Option(help="folder for the page, and for figures and output of every part")] = Path(
        "out/bench"
    ),
    part: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(part_names())}; repeat", show_default="all")
    ] = None,
    device: Device = None,
    patience: Annotated[
        float | None,
        typer.Option(min=0.0, help="seconds after which a part is stopped", show_default="each part's own"),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="also run what was measured before")] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="on a GPU: full widths with few blocks, short rollouts; minutes, not hours")
    ] = False,
) -> None:
    """Run all measurements and write a page with pictures; small sizes on a CPU. Goes on where it was stopped."""
    check_folder("--out", out)
    from lightint_compile.bench.parts.job import Asked, run_all

    if not run_all(Asked(out, part or (), device, patience, again, brief)):
        raise typer.Exit(1)
