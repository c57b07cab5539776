"""`lightint evaluate` and `lightint bench budgets`; what evaluates is `lightint_compile.evaluating`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lightint_compile.cli.failing import check_writable
from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.models.registry import SCENES, TRUE

_DTYPES = ("float32", "bfloat16", "float16")

_FAMILIES = "protocol,novel,recorded"


Model = Annotated[str, typer.Option(help="FAMILY:SIZE whose poses can be rendered")]
Families = Annotated[str, typer.Option(help="families of camera paths")]
Latents = Annotated[int, typer.Option(min=1, help="latent frames of a rollout, the given ones included")]
Given = Annotated[int, typer.Option(min=1, help="chunks of encoded truth that a rollout starts from")]
Seed = Annotated[int, typer.Option(min=0, max=255, help="which scenes, and the seed of the noise")]
Device = Annotated[str | None, typer.Option(help="cuda or cpu", show_default="cuda where there is one")]
Dtype = Annotated[str | None, typer.Option(help=", ".join(_DTYPES), show_default="bfloat16 on cuda, float32 on cpu")]
Weights = Annotated[
    Path | None, typer.Option(help="folder of trained weights, as training writes it", show_default="the package's")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="write the rows to this file; an interrupted evaluation goes on")
]


def evaluate(
    model: Model = TRUE,
    variants: Annotated[
        str,
        typer.Option(
            help="what is judged, with commas between; options behind a colon, as in teacache:threshold=0.1; peers and "
            "sweep stand for every peer's rule and for each at several settings"
        ),
    ] = "eager,no-memory,other-seed,other-dtype,published,all",
    families: Families = _FAMILIES,
    scenes: Annotated[int, typer.Option(f"--{SCENES}", min=1, help="scenes of each family")] = 16,
    latents: Latents = 64,
    given: Given = 1,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    json_file: JsonFile = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="draw quality against time into this .png")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="write table and picture as one page")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="write the table as Markdown")] = None,
) -> None:
    """Judge a world model's rollouts by rendered truth: quality, drift and time of every variant."""
    for option, path in {
        "--json": json_file,
        "--plot": plot_file,
        "--html": html_file,
        "--markdown": markdown_file,
    }.items():
        check_writable(option, path)
    from lightint_compile.evaluating import Plan, evaluate, print_table, write_outputs

    plan = Plan(
        model=model,
        variants=_listed(variants),
        families=_listed(families),
        scenes=scenes,
        latents=latents,
        given=given,
        seed=seed,
        weights=weights,
        **_placed(device, dtype),
    )
    found = evaluate(plan, json_file)
    print_table(found)
    write_outputs(found, plot=plot_file, html=html_file, markdown=markdown_file)


def budgets(
    model: Model = TRUE,
    preset: Annotated[str, typer.Option("--preset", "-p", help="whose settings a budget chooses from")] = "all",
    budget: Annotated[
        list[float] | None,
        typer.Option(help="largest relative error of a chunk; repeat", show_default="0.01 to 0.5"),
    ] = None,
    families: Families = _FAMILIES,
    scenes: Annotated[int, typer.Option(f"--{SCENES}", min=1, help="held-out scenes of each family")] = 16,
    calibrated: Annotated[int, typer.Option(min=1, help="other scenes of each family, which calibrations see")] = 1,
    latents: Latents = 64,
    given: Given = 1,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    json_file: JsonFile = None,
) -> None:
    """Calibrate error budgets on some scenes, and count on others how many chunks exceed them."""
    check_writable("--json", json_file)
    from lightint_compile.evaluating import BUDGETS, Plan, Sweep, judge_budgets, print_budgets

    plan = Plan(
        model=model,
        families=_listed(families),
        scenes=scenes,
        latents=latents,
        given=given,
        seed=seed,
        weights=weights,
        **_placed(device, dtype),
    )
    print_budgets(judge_budgets(plan, Sweep(preset, tuple(budget or BUDGETS), calibrated), json_file))


def _placed(device: str | None, dtype: str | None) -> dict[str, Any]:
    """Where a model is judged, and in which numbers."""
    if dtype is not None and dtype not in _DTYPES:
        raise OptionError(f"there is no dtype {dtype!r}", where="--dtype", fix=did_you_mean(dtype, _DTYPES))
    import torch

    from lightint_compile.models.devices import checked_device

    chosen = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return {"device": chosen, "dtype": dtype or ("float32" if chosen.type == "cpu" else "bfloat16")}


def _listed(text: str) -> tuple[str, ...]:
    """`a,b:x=1,y=2,c` as `a`, `b:x=1,y=2`, `c`: options and what is in braces belong to the name before."""
    from lightint_compile.bench.rollout_job import outside_braces

    names: list[str] = []
    for part in filter(None, map(str.strip, outside_braces(text))):
        name, equals, _ = part.partition("=")
        if names and equals and name.isidentifier():
            names[-1] += f",{part}"
        else:
            names.append(part)
    return tuple(names)
