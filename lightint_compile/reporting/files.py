"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lightint_compile.errors import InputError


def written(path: str | Path, text: str) -> Path:
    """Write a text file; where that fails no half of it is left.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        why = error.strerror or str(error)
        fix = "name a file in a folder of yours"
        raise InputError(f"{path} cannot be written", where="path", why=why, fix=fix) from error
    return path
