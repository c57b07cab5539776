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
