"""The check of an exported file in the test's own process: a fresh one takes seconds to start."""

from __future__ import annotations

from pathlib import Path

import torch

from lightint_compile.exporting import check


def run_here(path: Path, call: tuple[object, object], folder: Path) -> list[object]:
    """What the fresh process does, in this one; in place of ``run_fresh``."""
    torch.save([call], folder / "call.pt")
    check.main(str(path), str(folder / "call.pt"), str(folder / "outputs.pt"))
    found: list[list[object]] = torch.load(folder / "outputs.pt")
    return found[0]
