"""A package of somebody else's, installed for one test: modules and metadata in a folder on the path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    folder: Path,
    patch: pytest.MonkeyPatch,
    name: str,
    files: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]],
    version: str = "0.1",
) -> None:
    """Install ``files`` (path to text) with entry points by group and name; the patch takes the path back."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
        patch.delitem(sys.modules, path.removesuffix(".py").partition("/")[0], raising=False)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in entry_points.items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    if str(folder) not in sys.path:
        patch.syspath_prepend(folder)
