"""What a model would gain on a named device: decided and predicted by the rates shipped for it, without it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from typer.testing import CliRunner

import lightint_compile
from lightint_compile.cli.app import app
from lightint_compile.errors import OptionError
from lightint_compile.kernels import cost, dispatch
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.reporting import Report
from lightint_compile.reporting.page import render
from lightint_compile.reporting.prediction import predicted

HEADS, WIDTH = 8, 1024


class Video(nn.Module):
    """One attention over 8 x 32 x 32 patches of a video."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 16)

    def forward(self, latent: Tensor) -> Tensor:
        tokens = self.embed(latent).flatten(2).transpose(1, 2)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, -1))
        return self.head(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def factory() -> tuple[nn.Module, tuple[Tensor], dict[str, object]]:
    with torch.device("meta"):
        module = Video().bfloat16().eval().requires_grad_(False)
        return module, (torch.empty(1, 4, 8, 64, 64, dtype=torch.bfloat16),), {}


def explained(preset: str) -> Report:
    module, args, _ = factory()
    with cost.assuming("h100"), dispatch.using("hopper"):
        return predicted(lightint_compile.explain(module, *args, options={"preset": preset}), "H100")


def test_sparse_attention_is_predicted_by_the_cost_model_that_decides() -> None:
    (section,) = explained("sparse").sections
    rates = cost.KNOWN["H100", "hopper"]
    shape = (HEADS, WIDTH // HEADS, 8192, 8192)
    told = section.predicted
    assert told["H100 attention ms before"] == pytest.approx(cost.dense_time(rates, *shape) / 1e3, rel=1e-3)
    assert told["H100 attention ms after"] < cost.MARGIN * told["H100 attention ms before"]
    assert told["H100 other products ms after"] == told["H100 other products ms before"] > 0


def test_an_exact_preset_changes_no_attention_and_the_prediction_survives_as_data_text_and_page() -> None:
    report = explained("exact")
    told = report.sections[0].predicted
    assert told["H100 attention ms after"] == told["H100 attention ms before"]
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report and "predicted" in str(again) and "H100 attention ms" in str(again)
    assert "predicted, H100 attention ms" in render(report)
    assert "predicted" not in dataclasses.replace(report.sections[0], predicted={}).to_dict()


def test_a_device_without_rates_is_an_error_that_names_those_with() -> None:
    with pytest.raises(OptionError, match="did you mean 'h100'"), cost.assuming("a100"):
        pass
    result = CliRunner().invoke(app, ["explain", "worldplay:tiny", "--device", "a100"])
    assert isinstance(result.exception, OptionError)


def test_nothing_is_assumed_any_more_afterwards() -> None:
    with cost.assuming("H200") as name:
        assert name == "H200" and cost.origin_of(torch.device("cpu")) is cost.Origin.KNOWN
    assert cost.origin_of(torch.device("cpu")) is not cost.Origin.KNOWN


class Wide(nn.Module):
    """A projection in float32 over weights in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.project.weight.float(), self.project.bias.float())


def test_what_depends_on_tensor_cores_is_decided_for_the_device_that_is_named() -> None:
    with torch.device("meta"):
        module, x = Wide().bfloat16().requires_grad_(False), torch.empty(4096, WIDTH)
    without = lightint_compile.explain(module, x, options={"preset": "exact"})
    with cost.assuming("h100"), dispatch.using("hopper"):
        report = predicted(lightint_compile.explain(module, x, options={"preset": "exact"}), "H100")
    assert not [r for r in without.sections[0].remarks if r.pass_name == "split-linears"]
    (remark,) = [r for r in report.sections[0].remarks if r.pass_name == "split-linears"]
    assert remark.kind is RemarkKind.APPLIED
    told, flops = report.sections[0].predicted, 2 * 4096 * WIDTH * WIDTH / 1e9
    assert told["H100 other products ms before"] == pytest.approx(flops / cost.FLOAT32, abs=1e-4)
    assert told["H100 other products ms after"] == pytest.approx(flops / cost.PARTS, abs=1e-4)


def test_products_in_8_bits_are_decided_for_it_too() -> None:
    with torch.device("meta"):
        module, x = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3))).bfloat16(), torch.empty(8192, WIDTH)
        module, x = module.requires_grad_(False), x.bfloat16()
    options = {"preset": "exact", "also": "fp8-linear", "approximate": True}
    with cost.assuming("h100"):
        report = lightint_compile.explain(module, x, options=options)
    said = [r.message for r in report.sections[0].remarks if r.pass_name == "fp8-linear"]
    assert said and not [text for text in said if "not known to multiply" in text]
