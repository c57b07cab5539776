"""The file formats there are, by suffix."""

from __future__ import annotations

from pathlib import Path

from lightint_compile.errors import ExportError

FORMATS = {".pt2": "torch.export archive: graph, weights and report in one file"}


def check_suffix(path: str | Path) -> str:
    """The format's suffix; an unknown one is an :class:`~lightint_compile.errors.ExportError` that lists the known."""
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        known = "; ".join(f"{name} ({text})" for name, text in FORMATS.items())
        what = f"there is no export format {suffix!r}" if suffix else "the path has no suffix"
        raise ExportError(what, where=str(path), why=f"known: {known}", fix=f"write {Path(path).stem}.pt2")
    return suffix
