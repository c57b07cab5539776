"""The report as a page: well formed, escaped, with nothing to load, and with the graphs where there are any."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from toy_world import there_and_back

from lightint_compile import LightintOptions, capture
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.registry import PASSES
from lightint_compile.pipeline_run import rewrite
from lightint_compile.reporting import Report
from lightint_compile.reporting.page import decided, words
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import AdaptiveRules
from lightint_compile.runtime.run_rows import as_rows

VOID = {"meta", "br", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects them and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert "src" not in dict(attrs) and dict(attrs).get("href", "#").startswith("#")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report() -> Report:
    blocks = [torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.GELU()) for _ in range(3)]
    program = capture.trace(torch.nn.Sequential(*blocks), (torch.randn(2, 8),))
    rewritten = rewrite(program, LightintOptions(passes="outline-regions"))
    miss = Remark(
        kind=RemarkKind.MISSED,
        pass_name="outline-regions",
        rule="<b>",
        message="a < b & c",
        source="model.py:3",
        hint="write <i>x</i>",
    )
    return Report.of(dataclasses.replace(rewritten, remarks=(*rewritten.remarks, miss)), measurements={"cache hits": 2})


def test_the_page_says_what_the_text_says_and_shows_both_graphs(report: Report, tmp_path: Path) -> None:
    path = report.to_html(tmp_path / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "link" not in page.tags and "default-src 'none'" in path.read_text(encoding="utf-8")
    for said in ("Sequential", "near misses (1)", "a < b & c", "write <i>x</i>", "model.py:3", "cache hits 2"):
        assert said in page.text
    assert "before" in page.text and "after" in page.text
    assert "aten.linear.default" in page.text and "region " in page.text
    assert "float32[2, 8]" in page.text


def test_a_report_read_from_data_has_a_page_without_graphs(report: Report, tmp_path: Path) -> None:
    path = Report.from_dict(report.to_dict()).to_html(tmp_path / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "near misses (1)" in page.text and '"graph":null' in page.text


def test_reports_without_rewrites_have_a_page_too(tmp_path: Path) -> None:
    from lightint_compile.reporting import Section

    for report, said in ((Report.of(), "no graph"), (Report.of(Section("M", untouched="it needs <grad>")), "<grad>")):
        assert said in Page(report.to_html(tmp_path / "r.html").read_text(encoding="utf-8")).text


def test_every_pass_is_explained_in_plain_words() -> None:
    assert set(words.PASSES) == set(PASSES)


def test_a_run_says_what_it_saved_and_why(report: Report, tmp_path: Path) -> None:
    rows = as_rows(plan(there_and_back(40, turn=3.0)[0], AdaptiveRules(steps=(1, 2))), 4, 0)
    seen = [row for row in rows if row["reused_steps"]]
    seen[-1]["refused_steps"] = [1, 2]
    phases = (("decide", "context frames, by the adaptive rules"), *((f"step {n}", "block_0") for n in range(4)))
    (section,) = report.sections
    told = dataclasses.replace(report, sections=(dataclasses.replace(section, runs=phases),), chunks=rows)
    text = Page(told.to_html(tmp_path / "report.html").read_text(encoding="utf-8")).text
    reused, left = sum(len(row["reused_steps"]) for row in seen) - 2, sum(row["saved_frames"] for row in rows)
    assert f"{reused} of {4 * len(rows)} denoising steps reused" in text and f"{left} of " in text
    for said in (decided.ADAPTIVE, "so steps may be reused", "so every step is computed", "had drifted too far"):
        assert said in text
    assert f"chunk {seen[-1]['chunk']}: a reuse was refused" in text
    assert "It takes " in text and "exact: the mathematics stays" in text
