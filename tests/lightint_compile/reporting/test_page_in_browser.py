"""The page in a real browser: it loads without a network, folds, searches, is read by axe-core, and stays fluid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import torch
import torch.fx as fx
import toy_report
from toy_world import there_and_back

from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.reporting import Report, Section
from lightint_compile.reporting.graphs import Graphs
from lightint_compile.runtime.path_from_above import from_above
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import AdaptiveRules
from lightint_compile.runtime.run_rows import as_rows

LINKS = "lightint.drawing.cy.edges('[kind = \"link\"]')"
HOVERED = """lightint.drawing.cy.nodes().map((node) => lightint.items.get(node.id())).filter((item) => item.row)
    .map((item) => tooltip(lightint.items, item)).join()"""


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with browser.browser() as started:
        yield started


@pytest.fixture(scope="module")
def path(running: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cameras, (report, *_) = there_and_back(toy_report.FRAMES), toy_report.explained()
    rows = as_rows(plan(cameras[0], AdaptiveRules(steps=(1, 2))), 4, 0)
    assert any(row["reused_steps"] for row in rows)
    for row, measured in zip(rows, (0.0, 0.01, 0.08, "no number", 0.02, 0.03), strict=True):
        row["error"] = {"allowed": 0.05, "calibrated": 0.03, "measured": measured}
    report = dataclasses.replace(report, chunks=rows, path=from_above(cameras[0]))
    assert any(remark.kind is RemarkKind.MISSED for section in report.sections for remark in section.remarks)
    return report.to_html(tmp_path_factory.mktemp("page") / "report.html")


def labels(page: Any) -> list[str]:
    return page.locator("#outline [role=treeitem]").all_inner_texts()


def test_it_loads_alone_without_an_error_and_draws_both_sides(running: Any, path: Path) -> None:
    with browser.opened(running, path, offline=True) as (page, seen):
        drawn = page.evaluate("lightint.drawing.cy.nodes().map((node) => node.data('side'))")
        assert {"a", "b"} == set(drawn) and page.evaluate(f"{LINKS}.length") > 0
        assert {"before", "after", "step 0", "step 3"} <= set(labels(page))
        assert seen.problems == [] and seen.requests == [path.as_uri()]


def test_boxes_fold_and_unfold_by_keyboard_down_to_operators(running: Any, path: Path) -> None:
    with browser.opened(running, path) as (page, seen):
        folded = labels(page)
        page.locator("#outline [role=treeitem]", has_text="step 0").last.focus()
        page.keyboard.press("ArrowRight")
        calls = [text for text in labels(page) if text.startswith("step_0_block")]
        assert len(calls) == 2
        page.keyboard.press("ArrowDown")
        while not page.evaluate("document.activeElement.innerText").startswith("step_0_block"):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert "scaled_dot_product_attention" in " ".join(labels(page))
        assert "aten.linear.default" in page.evaluate(HOVERED) and "float32[1, " in page.evaluate(HOVERED)
        page.get_by_role("button", name="fold all").click()
        assert labels(page) == folded and seen.problems == []


def test_search_finds_an_operator_and_goes_to_it(running: Any, path: Path) -> None:
    with browser.opened(running, path) as (page, seen):
        page.keyboard.press("/")
        page.keyboard.type("blocks.1 gelu before step 1")
        assert "found" in page.locator("#search-status").inner_text()
        page.keyboard.press("Enter")
        said = page.locator("#details").inner_text()
        assert "gelu" in said and "blocks.1" in said and "toy_world.py" in said
        page.locator("#details button").first.click()
        assert "stands for" in page.locator("#details").inner_text() and seen.problems == []


def test_links_lead_from_what_was_replaced_to_what_replaced_it(running: Any, path: Path) -> None:
    with browser.opened(running, path) as (page, _):
        ends = page.evaluate(f"{LINKS}.map((edge) => [edge.source().data('side'), edge.target().data('side')])")
        assert {tuple(pair) for pair in ends} == {("b", "a")}
        page.select_option("#links", "none")
        assert page.evaluate(f"{LINKS}.length") == 0


def test_near_misses_are_shown_where_they_are(running: Any, path: Path) -> None:
    with browser.opened(running, path) as (page, seen):
        page.locator("#misses button").first.click()
        marked = page.evaluate("lightint.drawing.cy.nodes('.matched, .stopped').map((n) => n.data('label'))")
        assert any("scaled_dot_product" in label for label in marked)
        assert seen.problems == []


def test_a_chunk_shows_its_cameras_and_rows_are_walked_by_keyboard(running: Any, path: Path) -> None:
    with browser.opened(running, path) as (page, seen):
        rows = page.locator("#timeline tbody tr")
        assert rows.count() == 6
        rows.nth(0).focus()
        page.keyboard.press("ArrowDown")
        assert "chunk 1 from above: frames 4 to 7" in page.locator(".camera").inner_text()
        assert page.locator("#timeline circle.reused").count() > 0 and seen.problems == []


def test_errors_of_chunks_stand_beside_what_is_predicted_and_allowed(running: Any, path: Path) -> None:
    with browser.opened(running, path) as (page, seen):
        told = page.locator("#timeline tbody tr td:last-child").all_inner_texts()
        assert told[1].strip() == "measured 0.0100, predicted 0.0300, allowed 0.0500" and "no number" in told[3]
        assert page.locator("#timeline tr:has(rect.over) th").all_inner_texts() == ["2", "3"] and seen.problems == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_axe_finds_nothing_in_light_and_dark_and_nothing_is_wider_than_the_screen(
    running: Any, path: Path, scheme: str, width: int
) -> None:
    with browser.opened(running, path, color_scheme=scheme, viewport={"width": width, "height": 844}) as (page, _):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.violations(page) == []


def of_many_regions(count: int) -> Report:
    """A root that calls ``count`` regions, all different, made by hand: a model of that size takes minutes to trace."""
    before, root, regions = fx.Graph(), fx.Graph(), {}
    value, carried = before.placeholder("x"), root.placeholder("x")
    for number in range(count):
        value = before.call_function(torch.ops.aten.relu.default, (value,), name=f"relu_{number}")
        inner = fx.Graph()
        inner.output((inner.call_function(torch.ops.aten.relu.default, (inner.placeholder("x"),)),))
        regions[f"glue_{number}"] = fx.GraphModule({}, inner)
        carried = root.create_node("call_module", f"glue_{number}", (carried,), name=f"call_{number}")
        carried.meta["lightint"] = {"pass": "outline-regions", "origins": (f"relu_{number}",)}
    before.output((value,))
    root.output((carried,))
    graphs = Graphs(fx.GraphModule({}, before), fx.GraphModule(regions, root))
    return Report((Section("Many", source=lambda: graphs),))


def test_a_thousand_regions_are_folded_so_that_few_boxes_are_drawn_at_a_time(running: Any, tmp_path: Path) -> None:
    path = of_many_regions(1000).to_html(tmp_path / "many.html")
    with browser.opened(running, path) as (page, seen):
        drawn = "lightint.drawing.cy.nodes().length"
        assert page.evaluate(drawn) < 70
        page.fill("#search", "call_777")
        page.keyboard.press("Enter")
        assert "call_777" in page.locator("#details").inner_text() and page.evaluate(drawn) < 150
        assert page.evaluate("lightint.items.successors(778)") == ["a/778/0"] and seen.problems == []
