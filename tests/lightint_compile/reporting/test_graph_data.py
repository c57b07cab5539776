"""What the page draws: outcomes of captured operations, what stands for them, phases, near misses in the graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import toy_report

import lightint_compile
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.reporting import Section
from lightint_compile.reporting.page.first_screen import first_screen
from lightint_compile.reporting.page.graph_data import graph_data
from lightint_compile.reporting.page.links import SETTLED
from lightint_compile.reporting.page.savings import best_change, bytes_moved, work

STEPS = 4


@pytest.fixture(scope="module")
def section() -> Section:
    return toy_report.explained()[0].sections[0]


@pytest.fixture(scope="module")
def data(section: Section) -> dict[str, Any]:
    assert section.graphs is not None
    return graph_data(section.graphs, section.remarks)


def column(data: dict[str, Any], row: list[Any], name: str) -> str:
    return data["texts"][row[data["columns"].index(name)]]


def captured(data: dict[str, Any], outcome: str) -> list[list[Any]]:
    return [row for row, own in zip(data["before"]["rows"], data["before"]["outcomes"], strict=True) if own == outcome]


def test_what_dead_tail_removed_and_what_is_computed_once_are_told_apart(data: dict[str, Any]) -> None:
    removed = {column(data, row, "target") for row in captured(data, "removed")}
    assert {"aten.scaled_dot_product_attention.default", "aten.gelu.default"} <= removed
    once = captured(data, "computed once")
    pose = [row for row in once if column(data, row, "target") == "aten.linear.default"]
    assert len(pose) == STEPS - 1 and {column(data, row, "source").split(":")[0][-12:] for row in pose} == {
        "toy_world.py"
    }


def test_the_selection_of_context_lives_on_as_the_decision(data: dict[str, Any]) -> None:
    root = data["after"][""]
    plan = next(place for place, row in enumerate(root["rows"]) if column(data, row, "kind") == "decision")
    where = root["origins"][plan]
    assert column(data, data["before"]["rows"][where], "target") == "aten.where.self"
    replaced = [place for place, through in enumerate(data["before"]["stands"]) if through == where]
    assert len(replaced) > 10 and {data["before"]["outcomes"][place] for place in replaced} == {"rewritten"}


def test_every_call_of_a_region_stands_for_operations_of_its_own(data: dict[str, Any]) -> None:
    calls = [
        (origins, graph["regions"][place])
        for graph in data["after"].values()
        for place, origins in graph["calls"].items()
    ]
    by_region = Counter(region for _, region in calls)
    region, count = by_region.most_common(1)[0]
    assert count == STEPS * 2
    taken = [origin for origins, name in calls if name == region for origin in origins]
    assert -1 not in taken and len(set(taken)) == len(taken)
    rows = data["after"][region]["rows"]
    for origins, name in calls:
        for row, origin in zip(rows, origins if name == region else (), strict=False):
            if origin >= 0:
                assert column(data, row, "target") == column(data, data["before"]["rows"][origin], "target")


def test_captured_operations_are_in_the_phase_that_they_run_in(data: dict[str, Any]) -> None:
    counts = Counter(column(data, row, "phase") for row in data["before"]["rows"])
    assert {f"step {step}" for step in range(STEPS)} <= set(counts)
    attentions = [row for row in data["before"]["rows"] if "scaled_dot" in column(data, row, "target")]
    assert Counter(column(data, row, "phase") for row in attentions)["step 2"] == 2


def test_branches_name_their_sides_and_near_misses_their_rows(data: dict[str, Any], section: Section) -> None:
    sides = [side for graph in data["after"].values() for pair in graph["branches"].values() for side in pair]
    assert [said for said, _ in sides] == ["if reused", "else"] * 2 and all(name in data["after"] for _, name in sides)
    misses = section.of_kind(RemarkKind.MISSED)
    assert len(data["misses"]) == len(misses) and all(miss["matched"] for miss in data["misses"])


def test_savings_compare_equal_sizes_and_settled_misses_are_no_advice(section: Section) -> None:
    before, after = work(section)
    assert after < before and section.graphs is not None
    first, last = bytes_moved(section.graphs)
    assert first > 0 and last > 0
    assert {remark.rule for remark in section.of_kind(RemarkKind.MISSED)} <= SETTLED
    assert best_change([section]) is None


def test_a_graph_break_is_the_first_thing_to_change() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.softmax(x @ x.mT, -1) @ x
            torch._dynamo.graph_break()
            return x.sin()

    report = lightint_compile.explain(Broken(), torch.randn(1, 8, 8))
    best = best_change(report.sections)
    assert best is not None and "no pass sees across it" in best.because


class Heated(torch.nn.Module):
    """Attention by hand whose scores are scaled by a tensor: a near miss."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.softmax(query @ key.transpose(-2, -1) * self.temperature, -1) @ value


def test_a_near_miss_shows_what_matched_where_it_stopped_and_the_change_that_helps_most() -> None:
    with torch.no_grad():
        report = lightint_compile.explain(Heated(), *torch.randn(3, 1, 2, 16, 8), options={"preset": "exact"})
    (section,) = report.sections
    assert section.graphs is not None
    data = graph_data(section.graphs, section.remarks)
    (miss,) = data["misses"]
    rows = data["before"]["rows"]
    assert column(data, rows[miss["stopped"]], "target") == "aten.mul.Tensor"
    assert "aten.softmax.int" in {column(data, rows[place], "target") for place in miss["matched"]}
    best = best_change(report.sections)
    assert best is not None and best.hint == "multiply the query by it before the product" and best.share > 0
    assert "Change this first:" in first_screen(report) and best.hint in first_screen(report)
