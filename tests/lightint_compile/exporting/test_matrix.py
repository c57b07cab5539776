"""Every format of several models under presets that compute, skip and decide; all cells but a few are slow.

A cell is written and then compared in a fresh process: at the example, at a second length of the context, and with
every step reused where steps are decided.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from export_cases import MODELS, PRESETS, SLOW

import lightint_compile
from lightint_compile.passes.ir.remarks import RemarkKind

PAGE = Path(__file__).resolve().parents[3] / "docs/how-to/export.md"
FORMATS = {"pt2": "m.pt2", "aoti": "m.aoti.pt2", "onnx": "m.onnx"}
QUICK = {("vit", "pt2", "exact")}
SPARSE, DECIDES = {"wan22-ti2v", "worldplay", "matrix-game"}, {"worldplay", "matrix-game"}
"""Of which models attention becomes sparse, and steps may be reused."""


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
