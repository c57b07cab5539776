"""`lightint play` and its options; what serves the page is `lightint_compile.play`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightint_compile.models.registry import TRUE
from lightint_compile.options import DEFAULT_PRESET
from lightint_compile.options.presets import PRESETS


def play(
    model: Annotated[str, typer.Option(help="FAMILY:SIZE of any registered world model")] = TRUE,
    preset: Annotated[str, typer.Option("--preset", "-p", help=f"one of {', '.join(PRESETS)}")] = DEFAULT_PRESET,
    device: Annotated[str | None, typer.Option(help="cuda or cpu", show_default="cuda where there is one")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="seed of the place, the weights and the noise")] = 0,
    weights: Annotated[Path | None, typer.Option(help="folder of trained weights, as training writes it")] = None,
    host: Annotated[str, typer.Option(help="address to serve at; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to serve at")] = 8000,
) -> None:
    """Walk through a world model in the browser, with acceleration on and off."""
    from lightint_compile.play import play

    play(model, host=host, port=port, preset=preset, device=device, seed=seed, weights=weights)
