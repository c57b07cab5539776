"""What a root graph runs, as lines: phases in order, branches in brackets, regions with their calls."""

from __future__ import annotations

import json

import pytest
import torch
from toy_world import ToyWorld, there_and_back

import lightint_compile
from lightint_compile.reporting import Report
from lightint_compile.reporting.rundown import _joined

INPUTS = (torch.randn(1, 4, 4, 4, 6), torch.randn(1, 4, 12, 4, 6), there_and_back(16))
DYNAMIC = {"history": 2, "extrinsics": 1}


def explained(module, *inputs, **more):
    with torch.no_grad():
        return lightint_compile.explain(module, *inputs, **more)


def test_a_chunk_is_told_phase_by_phase() -> None:
    report = explained(ToyWorld(depth=4).eval(), *INPUTS, dynamic=DYNAMIC, options={"preset": "all"})
    (section,) = report.sections
    phases = [phase for phase, _ in section.runs if not phase.startswith(("glue", "block", "memo", "extrapolate"))]
    assert phases[0] == "decide" and [p for p in phases if p.startswith("step")] == [f"step {k}" for k in range(4)]
    said = dict(section.runs)
    assert (
        said["decide"] == "context frames and reuse of steps 1, 2, by the adaptive rules, from extrinsics and history"
    )
    for step in ("step 1", "step 2"):
        assert "[if reused and the first block drifted by at most 0.25: " in said[step] and "; else: 3 x " in said[step]
    assert "[" not in said["step 0"] + said["step 3"] and "4 x block" in said["step 0"]
    called = " ".join(text for phase, text in section.runs if phase in phases)
    assert all(phase in called for phase, _ in section.runs if phase not in phases)
    assert "  what runs\n    decide       context frames and reuse of steps 1, 2" in str(report)


def test_the_lines_survive_as_data_and_older_reports_have_none() -> None:
    report = explained(ToyWorld().eval(), *INPUTS, dynamic=DYNAMIC, options={"preset": "published"})
    data = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(data).sections[0].runs == report.sections[0].runs
    assert "[if reused: an earlier prediction; else:" in str(report).replace("\n", " ").replace(" " * 18, " ")
    del data["graphs"][0]["runs"]
    assert Report.from_dict(data).sections[0].runs == ()


def test_a_graph_in_one_piece_has_nothing_to_tell() -> None:
    (section,) = explained(torch.nn.Linear(4, 4), torch.randn(2, 4)).sections
    assert section.runs == ()


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        (["a"], "a"),
        (["a", "", "a", "a", "b"], "3 x a, b"),
        (["first", *["memo", "block"] * 53, "last"], "first, 53 x (memo, block), last"),
        (["recall", "recall", "block", "keep", "keep"] * 2, "2 x (recall, recall, block, keep, keep)"),
        (["a", "b", "c"], "a, b, c"),
    ],
)
def test_cycles_of_calls_are_told_once(calls: list[str], told: str) -> None:
    assert _joined(calls) == told
