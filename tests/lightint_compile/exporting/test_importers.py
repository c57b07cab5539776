"""What another runtime, which knows neither functions nor our domain, makes of a written ONNX model: OpenVINO's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import MODELS, PRESETS, SLOW

import lightint_compile

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
inliner = pytest.importorskip("onnx.inliner", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

DECIDED: dict[str, Any] = {"largest_drift": np.array(0.1, np.float32)}
"""What the caller of a model that decides gives besides; further names are steps, none of which is reused."""


def arguments(session: Any, given: dict[str, Any]) -> dict[str, Any]:
    frames = np.arange(given["history"].shape[2]) if "history" in given else None
    known = DECIDED | {"context_frames": frames} | {name: np.asarray(value) for name, value in given.items()}
    return {each.name: known.get(each.name, np.array(False)) for each in session.get_inputs()}


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("vit", "exact"),
        *(
            pytest.param(*cell, marks=SLOW)
            for cell in (
                *(("wan22-ti2v", preset) for preset in ("exact", "sparse")),
                *(("worldplay", preset) for preset in ("exact", "all")),
                ("matrix-game", "all"),
            )
        ),
    ],
)
@torch.no_grad()
def test_with_its_functions_inlined_openvino_runs_it(model: str, preset: str, tmp_path: Path) -> None:
    import openvino

    case, path, flat = MODELS[model](), tmp_path / "m.onnx", tmp_path / "flat.onnx"
    calls = [case.inputs] if case.longer is None else [case.inputs, case.longer]
    lightint_compile.export(
        case.module,
        (),
        path,
        kwargs=case.inputs,
        options=PRESETS[preset],
        dynamic=case.dynamic,
        checks=[((), call) for call in calls[1:]],
    )
    with pytest.raises(Exception, match=r"lightint\.regions"):
        openvino.Core().compile_model(str(path), "CPU")
    onnx.save(inliner.inline_local_functions(onnx.load(path)), flat)
    compiled = openvino.Core().compile_model(str(flat), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(str(path))
    for call in calls:
        given = arguments(session, call)
        answer = compiled(given)
        for expected, output in zip(session.run(None, given), compiled.outputs, strict=True):
            np.testing.assert_allclose(answer[output], expected, rtol=1e-4, atol=1e-5)
