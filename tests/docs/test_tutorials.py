"""The tutorials run as they stand, and print what they show."""

from __future__ import annotations

from pathlib import Path

import doc_pages
import pytest
import torch

TUTORIALS = sorted((Path(__file__).resolve().parents[2] / "docs/tutorials").glob("*.md"))


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


SLOWLY = {"error-budget"}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in SLOWLY else (), id=page.stem) for page in TUTORIALS],
)
def test_a_tutorial_runs_and_prints_what_it_shows(page: Path) -> None:
    blocks = doc_pages.blocks_of(page)
    assert sum(block.output is not None for block in blocks) >= 2, "nothing would be compared"
    doc_pages.run(page)


def test_numbers_may_differ_and_words_may_not() -> None:
    shown = "2 rewrites, 0.5 s\n...\nreused   steps"
    assert doc_pages.first_missing(shown, "3 rewrites, 1.25 s\nmore\nreused steps 1") is None
    assert doc_pages.first_missing(shown, "3 rewrites, 1.25 s\nmore") == "\nreused   steps"
    assert doc_pages.first_missing(shown, "reused steps\n3 rewrites, 1.25 s") == "\nreused   steps"
