"""The dry run of a whole world-model chunk names what a person would look for; full widths need no weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import worldplay_tiny

import lightint_compile
from lightint_compile.explaining import _section
from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.reporting import Report

BLOCKS = worldplay_tiny.CONFIG.depth
STEPS = 4


@pytest.fixture(scope="module")
def report() -> Report:
    options = LightintOptions.from_mapping({"preset": "exact", "strict": True})
    return Report.of(_section(worldplay_tiny.program().snapshot(), options))


def _remarks(report: Report, pass_name: str) -> list[Remark]:
    return [remark for remark in report.sections[0].remarks if remark.pass_name == pass_name]


def test_the_denoising_steps_are_a_loop_with_a_carried_latent(report: Report) -> None:
    (loop,) = _remarks(report, "denoising-loop")
    assert loop.message.startswith("4 denoising steps, unrolled: the latent noise is carried")
    assert loop.message in " ".join(str(report).split())


def test_every_attention_has_its_grid_and_key_spans(report: Report) -> None:
    sites = _remarks(report, "attention-sites")
    assert sum(site.count for site in sites if site.rule == "denoise") == STEPS * BLOCKS
    assert sum(site.count for site in sites if site.rule == "prefill") == BLOCKS
    assert all(site.args["spans"] for site in sites)
    assert all(site.args["query_grid"] for site in sites if site.rule in ("denoise", "prefill"))
    text = " ".join(str(report).split())
    assert "denoise: queries 4x4x6 attend to" in text and "context" in text


def test_roles_rows_and_hoisted_values_are_named_with_their_flops(report: Report) -> None:
    roles = {remark.args["input"]: remark.args["role"] for remark in _remarks(report, "roles")}
    assert roles["extrinsics"] == "camera" and roles["history"] == "context" and roles["noise"] == "latent"
    rows = [remark for remark in _remarks(report, "sink-row-repeats") if remark.kind is RemarkKind.APPLIED]
    products = [remark for remark in rows if remark.flops_before]
    assert products and all(remark.flops_after < remark.flops_before for remark in products)
    assert all(remark.args["rows_after"] != remark.args["rows_before"] for remark in rows)
    hoisted = [remark for remark in _remarks(report, "hoist-invariants") if remark.kind is RemarkKind.APPLIED]
    assert {"memo"} < {remark.rule for remark in hoisted}
    text = str(report)
    assert "kept between calls" in text and "rows instead of" in text


def test_full_widths_are_counted_before_and_after_on_the_meta_device() -> None:
    config = dataclasses.replace(WorldPlayConfig.hy_8b_480p(), depth=1)
    with torch.device("meta"):
        chunk = WorldPlayChunk(config).to(torch.bfloat16).eval().requires_grad_(False)
    args, kwargs = example_inputs(config, 24, device="meta", dtype=torch.bfloat16, text_tokens=119)
    report = lightint_compile.explain(chunk, *args, **kwargs, options={"preset": "exact", "strict": True})
    before, after = report.sections[0].flops[0], report.sections[0].flops[-1]
    assert 1e13 < after < before
    assert "operations became" in str(report) and "TFLOP" in str(report)
