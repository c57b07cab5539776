"""The report: its text, its data, and its graphs."""

from __future__ import annotations

import json

import pytest
import torch

from lightint_compile import LightintOptions, capture
from lightint_compile.errors import InputError, StateError
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind
from lightint_compile.passes.pipeline import PassTiming
from lightint_compile.pipeline_run import Rewritten, rewrite
from lightint_compile.reporting import Report, Section

MISS = Remark(
    kind=RemarkKind.MISSED,
    pass_name="canonicalize-attention",
    rule="permuted-key",
    message="matched 7 of 9 nodes; K permutes the batch axis, the rule needs (0, 1, 3, 2)",
    module_path="blocks.30.attn1",
    source="/home/someone/a/rather/long/way/down/to/the/folder/of/the/project/models/transformer.py:212",
    hint="if k is already (B, H, D, S), pass k.transpose(-2, -1) or write F.scaled_dot_product_attention",
)


def _applied(block: int) -> Remark:
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name="canonicalize-attention",
        rule="matmul-softmax-matmul",
        message="three nodes became one attention node",
        module_path=f"blocks.{block}.attn1",
        source="model.py:10",
        flops_before=2_000_000,
        flops_after=1_000_000,
        numerics=Numerics.REASSOCIATES,
    )


@pytest.fixture
def rewritten() -> Rewritten:
    program = capture.trace(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), (torch.randn(2, 4),))
    remarks = (*(_applied(block) for block in range(30)), MISS)
    timings = (PassTiming("canonicalize-attention", 0.012), PassTiming("outline-regions", 0.4))
    options = LightintOptions(passes="canonicalize-attention,outline-regions")
    flops = (60_000_000, 30_000_000, 30_000_000)
    return Rewritten(program, program.snapshot(), remarks, timings, str(options.passes), options, flops)


def test_text_fits_80_columns_and_folds_thirty_blocks_into_one_row(rewritten: Rewritten) -> None:
    text = str(Report.of(rewritten, measurements={"trace seconds": 1.25, "cache hits": 3}))
    assert max(map(len, text.splitlines())) <= 80
    assert "30 rewrites, 1 near miss · 412 ms of passes" in text
    assert "2 operations became 2; 60 MFLOP became 30 MFLOP (-50.0 %)" in text
    assert "30 x canonicalize-attention [matmul-softmax-matmul] blocks.0-29.attn1" in text
    assert text.count("three nodes became one attention node") == 1
    assert "(60 MFLOP became 30 MFLOP)" in text
    assert "measured   trace seconds 1.25, cache hits 3" in text


def test_the_table_has_a_row_a_pass(rewritten: Rewritten) -> None:
    lines = str(Report.of(rewritten)).splitlines()
    first = next(line for line in lines if line.startswith("  canonicalize-attention"))
    assert first.split() == ["canonicalize-attention", "31", "30", "1", "12", "-50.0", "%", "reorders"]
    second = next(line for line in lines if line.startswith("  outline-regions"))
    assert second.split() == ["outline-regions", "0", "0", "0", "400", "=", "exact"]


def test_a_miss_says_where_why_and_what_would_help(rewritten: Rewritten) -> None:
    text = str(Report.of(rewritten))
    flat = " ".join(text.split())
    assert "models/transformer.py:212" in flat and "…/" in flat
    assert "matched 7 of 9 nodes; K permutes the batch axis" in flat
    assert "→ if k is already (B, H, D, S), pass k.transpose(-2, -1)" in flat


def test_indices_with_gaps_are_listed_or_starred(rewritten: Rewritten) -> None:
    few = Section.of(_with(rewritten, [_applied(block) for block in (0, 2, 5)]))
    assert few.remarks[0].module_path == "blocks.0,2,5.attn1"
    many = Section.of(_with(rewritten, [_applied(block) for block in range(0, 40, 2)]))
    assert many.remarks[0].module_path == "blocks.*.attn1" and many.remarks[0].count == 20


def _with(rewritten: Rewritten, remarks: list[Remark]) -> Rewritten:
    import dataclasses

    return dataclasses.replace(rewritten, remarks=tuple(remarks))


def test_data_round_trips_through_json(rewritten: Rewritten) -> None:
    report = Report.of(rewritten, measurements={"trace seconds": 1.25})
    data = json.loads(json.dumps(report.to_dict()))
    assert data["schema"] == 1 and set(data) == {"schema", "versions", "reproduce", "graphs"}
    again = Report.from_dict(data)
    assert again == report
    assert str(again) == str(report)


@pytest.mark.parametrize("data", [{}, {"schema": 2}, {"schema": "1"}])
def test_another_schema_is_an_error(data: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not a report of this version"):
        Report.from_dict(data)


def test_graphs_are_at_hand_and_absent_from_data(rewritten: Rewritten) -> None:
    report = Report.of(rewritten)
    assert report.graph is rewritten.program.graph_module
    assert report.original is rewritten.original.graph_module
    with pytest.raises(StateError, match="carries no graph"):
        _ = Report.from_dict(report.to_dict()).graph
    with pytest.raises(StateError, match="has no graph"):
        _ = Report.of().graph


def test_when_nothing_applies_the_text_says_so_and_why() -> None:
    program = capture.trace(torch.nn.Linear(4, 4), (torch.randn(2, 4),))
    text = " ".join(
        str(Report.of(rewrite(program, LightintOptions(passes="canonicalize-attention,dead-tail")))).split()
    )
    assert "0 rewrites, 0 near misses" in text
    assert (
        "nothing applies: the graph has no place that looks like what canonicalize-attention, dead-tail rewrite" in text
    )


def test_an_untouched_graph_says_why() -> None:
    text = str(Report.of(Section("Model", untouched="it needs gradients")))
    assert "Model · not rewritten" in text and "left as it is: it needs gradients" in text


def test_several_graphs_are_numbered_sections(rewritten: Rewritten) -> None:
    report = Report.of(rewritten, Section("Model", untouched="it needs gradients"))
    assert "(graph 1 of 2)" in str(report) and "(graph 2 of 2)" in str(report)
    assert report.graph is rewritten.program.graph_module
    assert (report.rewritten, report.missed) == (30, 1)
