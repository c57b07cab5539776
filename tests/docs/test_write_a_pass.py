"""The page on writing a pass: its files are a package that is installed, its tests pass, its model compiles with it."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from types import ModuleType

import doc_pages
import other_package
import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs/write-a-pass.md"
TITLED = re.compile(r'^```\w+ title="(?P<name>[^"]+)"\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE)
FILES = {match["name"]: match["text"] for match in TITLED.finditer(PAGE.read_text())}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    other_package.install(
        tmp_path, monkeypatch, project["name"], FILES, project["entry-points"], version=project["version"]
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def cases(module: ModuleType):
    """Every test function of a module with the arguments of each case."""
    for name, test in vars(module).items():
        if name.startswith("test_"):
            marks = getattr(test, "pytestmark", [])
            for values in marks[0].args[1] if marks else [()]:
                yield test, values


@pytest.mark.usefixtures("installed")
def test_the_tests_of_the_page_pass() -> None:
    found = list(cases(importlib.import_module("test_fuse_modulation")))
    assert len(found) >= 5
    for test, values in found:
        test(*values)


@pytest.mark.usefixtures("installed")
def test_the_model_of_the_page_compiles_with_it() -> None:
    doc_pages.run(PAGE)


def test_the_pass_is_short() -> None:
    assert len(FILES["fuse_modulation.py"].splitlines()) < 80
