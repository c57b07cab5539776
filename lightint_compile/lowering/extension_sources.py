"""The sources of passes of other packages: a changed pass must never load a program that was kept for the old one."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lightint_compile.entry_points import extension
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import asked_passes, pipeline_of
from lightint_compile.passes.base import Pass
from lightint_compile.passes.registry import GROUP, PASSES

SUFFIXES = (".py", ".so", ".pyd")
"""Files that hold code; what Python keeps of them in compiled form follows from them."""

OWN = ("lightint_compile", "builtins", "abc", "typing")
"""Top-level packages of a pass's base classes that are part of the key by other lines of it."""


class UnknownSourceError(Exception):
    """A pass whose code is in no file that can be read."""


def extension_lines(options: LightintOptions) -> Iterator[str]:
    """The pipeline, which a preset of another package may spell, and a line for each foreign pass that it runs.

    Raises:
        UnknownSourceError: the code of one of them is in no file.
    """
    pipeline = pipeline_of(options)
    yield f"pipeline: {pipeline}, asked for: {asked_passes(options)}"
    for step in pipeline.passes:
        if step.name not in PASSES:
            found = extension(GROUP, step.name, PASSES)
            yield f"{step.name} of {found.origin if found else 'no package'}: {_content(type(step))}"


@functools.cache
def _content(kind: type[Pass]) -> str:
    """A hash over the code of the packages that define a pass and its base classes."""
    digest = hashlib.sha256()
    packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
    for package in sorted(packages.difference(OWN)):
        files = sorted(_files(sys.modules[package]))
        if not files:
            raise UnknownSourceError(f"the code of {package}, which {kind.name} is made of, is in no file")
        for path in files:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(module: ModuleType) -> Iterator[Path]:
    for folder in getattr(module, "__path__", ()):
        yield from (path for path in Path(folder).rglob("*") if path.suffix in SUFFIXES)
    alone = Path(getattr(module, "__file__", None) or "")
    if not hasattr(module, "__path__") and alone.is_file():
        yield alone
