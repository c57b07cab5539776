"""The facts as a person reads them in ``explain``."""

from __future__ import annotations

import torch
import worldplay_tiny

from lightint_compile import capture
from lightint_compile.passes.analysis.summary import remarks
from lightint_compile.passes.ir.remarks import RemarkKind


def test_worldplay_is_named_part_by_part() -> None:
    said = remarks(worldplay_tiny.program())
    assert {remark.kind for remark in said} == {RemarkKind.ANALYSIS}
    (loop,) = [remark for remark in said if remark.pass_name == "denoising-loop"]
    assert loop.args["steps"] == 4
    assert loop.args["carried"][0] == "noise"
    sites = [remark for remark in said if remark.pass_name == "attention-sites"]
    denoise = [site for site in sites if site.rule == "denoise"]
    assert len(denoise) == 4 * worldplay_tiny.module().config.depth
    assert all(site.args["query_grid"] == "4x4x6" for site in denoise)
    assert all([span.split()[0] for span in site.args["spans"]][-2:] == ["context", "current"] for site in denoise)
    roles = {remark.args["input"]: remark.args["role"] for remark in said if remark.pass_name == "roles"}
    assert roles["noise"] == "latent"
    assert roles["history"] == "context"
    assert roles["extrinsics"] == "camera"
    assert roles["text"] == "text"


def test_a_model_without_any_of_it_says_why() -> None:
    said = remarks(capture.trace(torch.nn.Linear(4, 4), (torch.randn(2, 4),)))
    (loop,) = [remark for remark in said if remark.pass_name == "denoising-loop"]
    assert loop.message.startswith("no denoising loop: ")
    assert not [remark for remark in said if remark.pass_name == "attention-sites"]
