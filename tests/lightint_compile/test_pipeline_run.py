"""The rewrite step: requirements, warnings, the log line and the artifacts for tlparse."""

from __future__ import annotations

import logging

import pytest
import torch

from lightint_compile import LightintOptions, capture
from lightint_compile.errors import PassError
from lightint_compile.passes.ir.program import Program
from lightint_compile.pipeline_run import rewrite, work_of


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.nn.functional.gelu(self.linear(self.norm(x)))


def stack(depth: int = 4) -> torch.nn.Module:
    return torch.nn.Sequential(*(Block() for _ in range(depth)))


def program(module: torch.nn.Module | None = None) -> Program:
    return capture.trace(module or stack(), (torch.randn(2, 8),))


PLAIN = LightintOptions(passes="outline-regions")


def test_the_original_is_kept_and_the_program_is_rewritten() -> None:
    rewritten = rewrite(program(), PLAIN)
    assert rewritten.applied() > 0
    assert len(rewritten.original.graph.nodes) > len(rewritten.program.graph.nodes)
    assert rewritten.pipeline == "outline-regions"


def test_work_is_counted_through_regions() -> None:
    rewritten = rewrite(program(), PLAIN)
    assert rewritten.flops == (4 * 2 * 2 * 8 * 8,) * 2
    assert work_of(rewritten.program.graph_module) == rewritten.flops[0]


def test_roles_that_the_user_stated_reach_the_program() -> None:
    rewritten = rewrite(program(), LightintOptions(passes="", roles=(("input", "latent"),)))
    assert rewritten.program.roles == {"input": "latent"}


def test_one_line_a_graph_is_logged_and_a_preset_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightint_compile.pipeline_run"):
        rewrite(program(torch.nn.Linear(8, 8)), LightintOptions())
    lines = [record.message for record in caplog.records if record.name == "lightint_compile.pipeline_run"]
    assert len(lines) == 1 and lines[0].startswith("Linear: ") and lines[0].endswith("(preset=all)")
    assert all(record.levelno < logging.WARNING for record in caplog.records)


def test_a_pass_that_fails_is_undone_and_told_or_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightint_compile.passes.outline_regions import OutlineRegions

    def broken(self: OutlineRegions, program: Program) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(OutlineRegions, "run", broken)
    rewritten = rewrite(program(), PLAIN)
    assert "ZeroDivisionError: boom" in rewritten.remarks[0].message
    with pytest.raises(PassError, match="outline-regions failed"):
        rewrite(program(), LightintOptions(passes="outline-regions", strict=True))


def test_artifacts_are_written_for_tlparse(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, str] = {}

    def record(kind: str, *, metadata_fn: object, payload_fn: object) -> None:
        written[metadata_fn()["name"]] = payload_fn()  # type: ignore[operator]

    monkeypatch.setattr("lightint_compile.pipeline_run.trace_structured", record)
    rewrite(program(), PLAIN)
    assert set(written) == {"lightint_report", "lightint_graph_before", "lightint_graph_after"}
    assert '"schema": 1' in written["lightint_report"]
    assert "linear" in written["lightint_graph_before"]
