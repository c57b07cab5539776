"""The root of a rewritten program in Graphviz' language, its phases as clusters."""

from __future__ import annotations

import shutil
import subprocess
from itertools import groupby
from pathlib import Path

import torch.fx as fx

from lightint_compile.errors import InputError, StateError
from lightint_compile.reporting.page.graph_rows import COLUMNS, Rows, Texts
from lightint_compile.reporting.rundown import phases_of

SHAPES = {"region": "box", "branch": "diamond", "decision": "hexagon", "input": "ellipse", "operation": "plaintext"}


def drawn(root: fx.GraphModule, path: Path) -> str:
    """The root as text for a file: DOT, or SVG where the suffix says so.

    Raises:
        InputError: another suffix.
        StateError: SVG, and Graphviz is not installed or fails.
    """
    if path.suffix == ".dot":
        return dot(root)
    if path.suffix == ".svg":
        return _svg(dot(root))
    raise InputError(f"{path} has no known suffix", where="path", why="a root is drawn as .dot or .svg", fix="root.dot")


def dot(root: fx.GraphModule) -> str:
    """The root as a digraph."""
    texts = Texts()
    rows = Rows.of(root, texts, phases_of(root)).rows
    column = {name: place for place, name in enumerate(COLUMNS)}
    lines = ["digraph root {", "  rankdir=TB; node [fontname=sans, fontsize=10]; edge [arrowsize=0.6];"]
    numbered = list(enumerate(rows))
    for number, (phase, members) in enumerate(groupby(numbered, key=lambda pair: texts.all[pair[1][column["phase"]]])):
        inside = [_node(place, row, texts, column) for place, row in members]
        opening = f"  subgraph cluster_{number} {{ label={_quoted(phase)}; style=rounded; color=gray;"
        lines += [opening, *inside, "  }"] if phase else inside
    lines += [f"  n{source} -> n{place};" for place, row in numbered for source in row[column["inputs"]]]
    return "\n".join([*lines, "}", ""])


def _node(place: int, row: list[object], texts: Texts, column: dict[str, int]) -> str:
    kind, target, value = (texts.all[int(str(row[column[name]]))] for name in ("kind", "target", "value"))
    called = f"\n{target}" if kind == "region" else ""
    label = _quoted(f"{row[column['name']]}{called}")
    return f"    n{place} [label={label}, shape={SHAPES[kind]}, tooltip={_quoted(value or kind)}];"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _svg(text: str) -> str:
    program = shutil.which("dot")
    if program is None:
        raise StateError(
            "the root cannot be drawn as SVG", why="Graphviz' dot is not installed", fix="write a .dot file"
        )
    done = subprocess.run([program, "-Tsvg"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StateError("the root cannot be drawn as SVG", why=done.stderr.strip()[:200], fix="write a .dot file")
    return done.stdout
