"""The commands and their arguments; each hands over to the module that does the work."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lightint_compile import __version__
from lightint_compile.cli.bench import bench
from lightint_compile.cli.evaluating import budgets, evaluate
from lightint_compile.cli.playing import play
from lightint_compile.cli.training import train
from lightint_compile.models.registry import DEMO, LARGE, TINY, TRUE
from lightint_compile.options import DEFAULT_PRESET
from lightint_compile.options.presets import PRESETS

app = typer.Typer(
    name="lightint",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench.command()(budgets)
app.add_typer(bench, name="bench")
app.command()(evaluate)
app.command()(play)
app.add_typer(train, name="train")

Target = Annotated[
    str, typer.Argument(help=f"FAMILY:SIZE, such as {TINY}, {DEMO} and {LARGE}, or package.module:factory")
]
PresetName = Annotated[str, typer.Option("--preset", "-p", help=f"one of {', '.join(PRESETS)}")]
OptionPairs = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="further options as KEY=VALUE, VALUE plain or JSON; see lightint options"),
]
DynamicPairs = Annotated[
    list[str] | None, typer.Option("--dynamic", "-d", help="a symbolic size as ARGUMENT=DIMENSION[,DIMENSION]")
]


def main() -> None:
    """Run the command line; an error is one line on stderr and exit code 2."""
    from lightint_compile.cli.failing import run_app

    run_app(app)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lightint {__version__}")
        raise typer.Exit


@app.callback()
def _lightint(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="print the version and exit")
    ] = False,
) -> None:
    """A torch.compile backend and FX pass set for interactive video world models."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for film or picture, table and report")] = Path("out/demo"),
    chunks: Annotated[
        int | None, typer.Option(min=2, help="chunks of each rollout", show_default="12 beside the truth, else 8")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help=f"one of {', '.join(PRESETS)}", show_default="all beside the truth, else exact"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of PyTorch; 0 keeps its default")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="seed of the scene, or of weights and path, and of the noise")] = 0,
    model: Annotated[str, typer.Option(help="FAMILY:SIZE that a CPU can run")] = TRUE,
    weights: Annotated[Path | None, typer.Option(help="folder of trained weights, as training writes it")] = None,
) -> None:
    """Roll a small world model out on the CPU, eager beside lightint: a film with the truth where there is one."""
    from lightint_compile.cli.failing import check_folder
    from lightint_compile.demo import run_demo

    check_folder("--out", out)
    run_demo(out, chunks=chunks, preset=preset, threads=threads, seed=seed, model=model, weights=weights)


@app.command()
def explain(
    target: Target,
    preset: PresetName = DEFAULT_PRESET,
    option: OptionPairs = None,
    dynamic: DynamicPairs = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the report as JSON")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="also write it as a page, graphs included")] = None,
    explorer_file: Annotated[
        Path | None, typer.Option("--model-explorer", help="also write the graphs for Google's Model Explorer")
    ] = None,
    dot_file: Annotated[Path | None, typer.Option("--dot", help="also draw the root, as .dot or .svg")] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="decide and predict as on a device, such as h100, without having it"),
    ] = None,
    diff: Annotated[str | None, typer.Option("--diff", help="print what one pass changed instead")] = None,
) -> None:
    """Say what would be rewritten in TARGET, what not, and why; nothing is compiled."""
    from lightint_compile.cli.explaining import Wanted, diff_of, report_of, report_on

    wanted = Wanted({"--json": json_file, "--html": html_file, "--model-explorer": explorer_file, "--dot": dot_file})
    wanted.check()
    asked = target, preset, option or [], dynamic or []
    if diff is not None:
        typer.echo(diff_of(*asked, diff))
        return
    report = report_of(*asked) if device is None else report_on(device, *asked)
    report = dataclasses.replace(report, reproduce=" ".join(["lightint", *map(shlex.quote, sys.argv[1:])]))
    typer.echo(str(report))
    wanted.write(report)


@app.command()
def bisect(
    target: Target,
    preset: PresetName = DEFAULT_PRESET,
    option: OptionPairs = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="largest relative error of a good result, against eager")
    ] = 1e-3,
    verdict: Annotated[
        str | None,
        typer.Option(help="a command that judges instead, by 0 (good) or 1; LIGHTINT_OUTPUTS names the results"),
    ] = None,
    repro: Annotated[
        Path | None, typer.Option(help="write the region that is to blame to this script, with its inputs")
    ] = None,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="of a FAMILY:SIZE, a rollout of so many chunks; one call by default")
    ] = None,
) -> None:
    """Find which pass, then which site of it, makes the result of TARGET differ; or which region once compiled."""
    from lightint_compile.cli.bisection import run_bisection

    run_bisection(target, preset, option or [], tolerance, verdict, repro, chunks)


@app.command()
def export(
    target: Target,
    path: Annotated[Path, typer.Argument(help="where to write; the suffix names the format: .pt2, .aoti.pt2, .onnx")],
    preset: PresetName = "exact",
    option: OptionPairs = None,
    dynamic: DynamicPairs = None,
    kind: Annotated[str | None, typer.Option("--format", help="pt2, aoti or onnx, whatever the suffix")] = None,
) -> None:
    """Write the rewritten program of TARGET to PATH, and check it by running it in a fresh process."""
    from lightint_compile.cli.failing import check_writable, stages, user_call
    from lightint_compile.cli.targets import parse_dynamic, parse_options, resolve
    from lightint_compile.exporting import export as export_module
    from lightint_compile.exporting import format_of

    format_of(path, kind)
    check_writable("PATH", path)
    options, symbolic = parse_options(preset, option or []), parse_dynamic(dynamic or [])
    subject = resolve(target)
    with user_call(target):
        written = export_module(
            subject.module,
            subject.args,
            path,
            kwargs=subject.kwargs,
            options=options,
            dynamic=symbolic,
            format=kind,
            progress=stages(),
        )
    typer.echo(str(written))


@app.command("compile")
def compiling(
    target: Target,
    out: Annotated[Path, typer.Option(help="folder to write to; what it holds already stays")],
    preset: PresetName = DEFAULT_PRESET,
    option: OptionPairs = None,
    dynamic: DynamicPairs = None,
    chunks: Annotated[
        int | None,
        typer.Option(min=1, help="of a FAMILY:SIZE, chunks of the rollout", show_default="until its memory is full"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="of a FAMILY:SIZE, cuda or cpu", show_default="cuda where there is one")
    ] = None,
) -> None:
    """Compile TARGET ahead of time into a folder, which other machines of this kind start with."""
    from lightint_compile.cli.compiling import compile_ahead
    from lightint_compile.cli.failing import check_folder

    check_folder("--out", out)
    compile_ahead(target, out, preset, option or [], dynamic or [], chunks, device)


@app.command()
def decisions(
    trajectory: Annotated[str, typer.Option(help='camera path, for example "left-31,right-32"')],
    latents: Annotated[int | None, typer.Option(min=1, help="latent frames; all of the path by default")] = None,
    preset: PresetName = "all",
    memory: Annotated[
        int | None, typer.Option(min=1, help="context frames that the model gathers at most; its own number by default")
    ] = None,
    age: Annotated[int, typer.Option(min=0, help="chunks for which keys and values of context frames are kept")] = 0,
    kept_frames: Annotated[int, typer.Option(min=0, help="frames of which they are kept; at least --memory")] = 0,
    chunk_frames: Annotated[int | None, typer.Option(min=1, help="frames of a chunk; the model's by default")] = None,
    model: Annotated[str, typer.Option(help="FAMILY:SIZE whose cameras and world they are")] = LARGE,
    as_json: Annotated[bool, typer.Option("--json", help="print a list of chunks as JSON")] = False,
) -> None:
    """Say which context frames and denoising steps the rules of a preset choose along a camera path; no model runs."""
    from lightint_compile.models.registry import world_model
    from lightint_compile.path_decisions import decide, summary

    made = decide(trajectory, latents, preset, memory, age, kept_frames, chunk_frames, world_model(model))
    typer.echo(json.dumps([decision.to_dict() for decision in made], indent=1) if as_json else summary(made))


@app.command()
def passes() -> None:
    """List the passes, what they do to the numbers, and their options; and the presets made of them."""
    from lightint_compile.cli.listing import print_passes

    print_passes()


@app.command("options")
def list_options(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print the table of the how-to")] = False,
) -> None:
    """List the options that --option and options={...} take."""
    from lightint_compile.cli.option_list import print_options

    print_options(as_markdown)


@app.command()
def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Time attention on the device and keep the rates.")
    ] = False,
) -> None:
    """Check that PyTorch, a C++ compiler, Triton and the device are in working order."""
    from lightint_compile.cli import doctor as checks

    findings = [*checks.examine(), *([checks.measure()] if measure else [])]
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.broken for finding in findings):
        raise typer.Exit(1)
