"""Every format of several models under presets that compute, skip and decide; all cells but a few are slow.

A cell is written and then compared in a fresh process: at the example, at a second length of the context, and with
every step reused where steps are decided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import lightint_compile
from lightint_compile.models import registry
from lightint_compile.passes.ir.remarks import RemarkKind

PAGE = Path(__file__).resolve().parents[3] / "docs/how-to/export.md"
FORMATS = {"pt2": "m.pt2", "aoti": "m.aoti.pt2", "onnx": "m.onnx"}
PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"preset": "exact"},
    "sparse": {"preset": "sparse", "min_tokens": 0},
    "all": {"preset": "all", "min_tokens": 0},
}
QUICK = {("vit", "pt2", "exact")}
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))  # a package of WorldPlay compiles for minutes
SPARSE, DECIDES = {"wan22-ti2v", "worldplay", "matrix-game"}, {"worldplay", "matrix-game"}
"""Of which models attention becomes sparse, and steps may be reused."""


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Vit(nn.Module):
    """A plain vision transformer that classifies, over patches and any number of further tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:
        tokens = torch.cat([prompt, self.patch(image).flatten(2).transpose(1, 2)], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


@dataclass(frozen=True)
class Case:
    """A model, a call of it, and the same call with a longer context where export finds none by itself."""

    module: nn.Module
    inputs: dict[str, Any]
    dynamic: dict[str, int]
    longer: dict[str, Any] | None = None


def vit() -> Case:
    inputs = {"image": torch.randn(1, 3, 16, 16), "prompt": torch.randn(1, 5, 32)}
    return Case(Vit().eval().requires_grad_(False), inputs, {"prompt": 1})


def wan22_ti2v() -> Case:
    """Noise level by token, and frames large enough that skipping tiles of them pays."""
    module, inputs = zoo.build("wan22_ti2v")
    latents, levels = torch.randn(1, 4, 8, 24, 24), torch.full((1, 8 * 12 * 12), 500.0)
    return Case(module, inputs | {"hidden_states": latents, "timestep": levels}, {"encoder_hidden_states": 1})


def world(name: str) -> Case:
    model = registry.world_model(name)
    first, more = model.example_history, model.spec.chunk
    inputs = [model.example_inputs(history) for history in (first, first + more)]
    return Case(model.module(), inputs[0], dict(model.frame_axes), inputs[1])


MODELS: dict[str, Callable[[], Case]] = {
    "vit": vit,
    "wan22-ti2v": wan22_ti2v,
    "worldplay": lambda: world("worldplay:tiny"),
    "matrix-game": lambda: world("matrix-game:tiny"),
}


@pytest.mark.parametrize(
    ("model", "kind", "preset"),
    [
        pytest.param(*cell, marks=() if cell in QUICK else SLOW, id="-".join(cell))
        for cell in ((model, kind, preset) for model in MODELS for kind in FORMATS for preset in PRESETS)
    ],
)
def test_a_cell(model: str, kind: str, preset: str, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    case, path = MODELS[model](), tmp_path / FORMATS[kind]
    checks = [] if case.longer is None else [((), case.longer)]
    written = lightint_compile.export(
        case.module, (), path, kwargs=case.inputs, options=PRESETS[preset], dynamic=case.dynamic, checks=checks
    )
    print(written)
    names = [check.name for check in written.checks]
    assert written.difference < 1e-4 and any(name == "check 1" or "more of every size" in name for name in names)
    applied = {each.pass_name for each in written.report.sections[0].remarks if each.kind is RemarkKind.APPLIED}
    assert ("sparse-attention" in applied) == (model in SPARSE and preset != "exact")
    decides = model in DECIDES and preset == "all"
    assert ("every step reused" in names) == any(name.startswith("reuse_") for name in written.inputs) == decides


def test_the_page_on_export_has_every_cell() -> None:
    """Each is the difference that was measured."""
    table = PAGE.read_text().partition("| model, at tiny size |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    assert [row[1] for row in rows] == [*PRESETS] * len(MODELS)
    assert all(len(row) == 2 + len(FORMATS) for row in rows)
    assert all(float(cell) < 1e-4 for row in rows for cell in row[2:])
