"""The place that a file is written to: tried before anything is computed, and changed in one step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightint_compile.errors import ExportError, told


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A folder next to ``path`` that is removed afterwards, with all that is in it.

    Raises:
        ExportError: nothing can be written there.
    """
    missing = [each for each in (path.parent, *path.parent.parents) if not each.exists()]
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".lightint-")
    except OSError as error:
        _remove(missing)
        fix = "name a folder that can be written to"
        raise ExportError("the file cannot be written there", where=str(path), why=told(error), fix=fix) from error
    try:
        with folder as name:
            yield Path(name)
    finally:
        _remove(missing)


def put(written: Sequence[Path], path: Path) -> None:
    """Move files to the folder of ``path``; the first one is moved last, and takes the name of ``path``."""
    for each in written[1:]:
        os.replace(each, path.with_name(each.name))
    os.replace(written[0], path)


def _remove(folders: Sequence[Path]) -> None:
    """Folders that were made, as far as they are empty."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
