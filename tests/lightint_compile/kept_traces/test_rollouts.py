"""Rollouts of world models in a second process that does not trace: every chunk and every decision is equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightint_compile.torch_frames import opens_frames

RUN = """
import json, sys, torch, lightint_compile
from lightint_compile.models.registry import world_model
from lightint_compile.models.world_model import turn_and_back
name, preset = sys.argv[1:]
model = world_model(name).at_depth(2)
options = {"preset": preset, "traces": True}
compiled = torch.compile(model.module(), backend="lightint", fullgraph=True, options=options)
path = model.camera_path(turn_and_back(model.spec, model.spec.frames(3)))
with torch.no_grad():
    chunks = [result.latents.tolist() for result in model.rollout(compiled, model.scene(), path)]
made = [repr(decision) for decision in lightint_compile.decisions(compiled)]
kept = [section.measurements.get("kept trace", 0.0) for section in lightint_compile.report(compiled).sections]
print(json.dumps([kept, chunks, made]))
"""


def run(cache: Path, *arguments: str) -> Any:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", RUN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not opens_frames(), reason="traces are kept under torch 2.14 only")
@pytest.mark.parametrize(("name", "preset"), [("worldplay:tiny", "all"), ("matrix-game:tiny", "exact")])
def test_a_rollout_in_a_second_process_is_the_same(name: str, preset: str, tmp_path: Path) -> None:
    kept, *traced = run(tmp_path, name, preset)
    again, *found = run(tmp_path, name, preset)
    assert set(kept) == {0.0} and set(again) == {1.0} and len(kept) == len(again)
    assert found == traced


PLAIN = """
import json, sys, torch, lightint_compile, lightint_compile.kernels.cost as cost
from torch import nn
from torch.nn import functional as F

class Video(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.heads = nn.Conv3d(4, 64, (1, 2, 2), (1, 2, 2)), nn.Linear(64, 3 * 64)

    def forward(self, latents):
        tokens = self.heads(self.patches(latents).flatten(2).transpose(1, 2))
        query, key, value = (each[:, None] for each in tokens.chunk(3, -1))
        return F.scaled_dot_product_attention(query * 9, key, value)

def call(inside):
    if not inside:
        return compiled(latents)
    with lightint_compile.rollout(cameras=torch.eye(4).expand(8, 4, 4)):
        return compiled(latents)

torch.manual_seed(0)
cost.prefers_sparse = lambda *_, **__: True
model, latents = Video().eval(), torch.randn(1, 4, 8, 64, 64)
compiled = torch.compile(model, backend="lightint", options={"traces": True})
with torch.no_grad():
    exact = [torch.allclose(call(inside == "1"), model(latents), rtol=1e-3, atol=1e-4) for inside in sys.argv[1]]
kept = [section.measurements.get("kept trace", 0.0) for section in lightint_compile.report(compiled).sections]
print(json.dumps([kept, exact]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not opens_frames(), reason="traces are kept under torch 2.14 only")
def test_a_kept_trace_is_for_calls_inside_of_rollouts_or_outside(tmp_path: Path) -> None:
    script = tmp_path / "video.py"
    script.write_text(PLAIN)
    found = {}
    for order in ("10", "01", "101", "010"):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, script, order], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found[order] = json.loads(done.stdout.splitlines()[-1])
    assert all(exact == [inside == "0" for inside in order] for order, (_, exact) in found.items())
    assert [kept for kept, _ in found.values()] == [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
