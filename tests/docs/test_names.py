"""The names in documentation and docstrings: every path exists, and so does every dotted name of the package."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import doc_pages
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("lightint_compile", "passes", "kernels", "models", "tests", "docs")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")])
SOURCES = sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))

WRITTEN = {
    "fuse_modulation.py",
    "test_fuse_modulation.py",
    "measurements.md",
    "evaluation.md",
    "out/bench/evaluation.md",
}
"""Files that a page has its reader write."""

ELSEWHERE = {"test/inductor/test_fused_attention.py", *WRITTEN}
"""These, and files of other projects that pages name."""

PATH = re.compile(
    r"(?<![\w./<-])(?:[\w*.-]+/)*[\w*-]+\.(?:py|md|sh|npz|toml|yml)\b|(?<![\w./-])(?:" + "|".join(TOPS) + r")/[\w./*-]*"
)
DOTTED = re.compile(r"(?<![\w.+/-])(?:lightint_compile|passes|kernels|models)(?:\.[A-Za-z_]\w*)+(?!\w*/)")


def prose_of(page: Path) -> str:
    """A page without what programs print (```` ```text ````) and without the files that links name."""
    text = re.sub(r"```text.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def docstrings_of(source: Path) -> str:
    tree = ast.parse(source.read_text())
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return "\n".join(
        value.value for value in strings if isinstance(value, ast.Constant) and isinstance(value.value, str)
    )


def paths_in(text: str) -> Iterator[str]:
    for found in PATH.findall(text):
        yield found.rstrip(".*")


@functools.cache
def files_by_name() -> dict[str, list[Path]]:
    known: dict[str, list[Path]] = {}
    for path in (*SOURCES, *PAGES, *ROOT.glob("*.*"), *(ROOT / "tests").rglob("*.*")):
        known.setdefault(path.name, []).append(path)
    return known


def exists(name: str, text: str, home: Path = ROOT) -> bool:
    """Whether a path from the root or from ``home`` exists, or a file name of a folder which ``text`` names."""
    if (home / name).exists():
        return True
    if "*" in name:
        return any(ROOT.glob(name))
    if "/" in name:
        return (ROOT / name).exists()
    folders = {str(path.parent.relative_to(ROOT)) for path in files_by_name().get(name, ())}
    return "." in folders or any(f"{folder}/" in text for folder in folders)


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = (name if name.startswith("lightint_compile") else f"lightint_compile.{name}").split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        return functools.reduce(lambda value, part: getattr(value, part, None), parts[length:], found) is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_pages_exist(page: Path) -> None:
    text = prose_of(page)
    assert [name for name in paths_in(text) if name not in ELSEWHERE and not exists(name, text, page.parent)] == []
    assert [name for name in DOTTED.findall(text) if not resolves(name)] == []


def test_names_in_docstrings_exist() -> None:
    texts = {path: docstrings_of(path) for path in SOURCES}
    paths = {(str(path), name) for path, text in texts.items() for name in paths_in(text) if "/" in name}
    assert {(path, name) for path, name in paths if name not in ELSEWHERE and not exists(name, "")} == set()
    names = {(str(path), name) for path, text in texts.items() for name in DOTTED.findall(text)}
    assert {(path, name) for path, name in names if not resolves(name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_pages_parses(page: Path) -> None:
    for block in doc_pages.blocks_of(page):
        ast.parse(block.code, filename=f"{page.name}:{block.line}")
