"""The graph as text after every pass: for a diff, and for numbered files under ``TORCH_COMPILE_DEBUG=1``."""

from __future__ import annotations

import difflib
import itertools
import logging
import re
from pathlib import Path

from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.program import Program
from lightint_compile.reporting.readable import readable

log = logging.getLogger(__name__)

CONTEXT = 2
"""Unchanged lines around a change."""

_number = itertools.count()


class PassDiff:
    """An observer of a pipeline that keeps the graph before and after one pass.

    Attributes:
        seen: names of the passes that ran.
        texts: for every graph that the pass ran on, its name and the two texts.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[str] = []
        self.texts: list[tuple[str, str, str]] = []
        self._before = ""

    def begin(self, program: Program) -> None:
        """No pass has run on ``program`` yet."""
        self._before = readable(program.graph_module)

    def after(self, step: Pass, program: Program, result: PassResult) -> None:
        """One pass has run."""
        self.seen.append(step.name)
        text = readable(program.graph_module) if result.modified else self._before
        if step.name == self.name:
            self.texts.append((program.name, self._before, text))
        self._before = text

    def unified(self) -> str:
        """The changes of the pass as a unified diff; empty where it changed nothing."""
        return "".join(line for graph in self.texts for line in self._of(*graph))

    def _of(self, graph: str, before: str, after: str) -> list[str]:
        first, second = (text.splitlines(keepends=True) for text in (before, after))
        names = (f"{graph} before {self.name}", f"{graph} after {self.name}")
        return list(difflib.unified_diff(first, second, *names, n=CONTEXT))


class PassFiles:
    """An observer that writes the graph after every pass that changed it to a numbered file."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._graph, self._step = folder, next(_number), 0

    def begin(self, program: Program) -> None:
        """Write the captured graph."""
        self._write("captured", program)

    def after(self, step: Pass, program: Program, result: PassResult) -> None:
        """Write what a pass left, where it changed something."""
        self._step += 1
        if result.modified:
            self._write(step.name, program)

    def _write(self, stage: str, program: Program) -> None:
        """A file that cannot be written is left out: it is for a person who looks, not for the program."""
        name = re.sub(r"\W+", "_", program.name)
        path = self._folder / f"{name}.{self._graph}.{self._step:02}.{stage}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(readable(program.graph_module), encoding="utf-8")
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error)
