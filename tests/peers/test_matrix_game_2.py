"""Our Matrix-Game-2.0 beside the released code at its own 880 tokens a frame, over more chunks than a window holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "world_models"
SUPPORT = Path(__file__).parents[1] / "support"
CHECKOUT = "mgx/Matrix-Game-2"


@pytest.mark.timeout(0)
def test_ours_is_the_released_model(tally: Any, pytestconfig: pytest.Config) -> None:
    checkout = (pytestconfig.getoption("--worlds") or Path()) / CHECKOUT
    if not checkout.is_dir():
        pytest.skip(f"needs --worlds=DIR with a checkout of {CHECKOUT} (its imports: docs/measurements.md)")
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "matrix_game_2.py"), str(checkout)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    tally.add("world models, ours", "right", "Matrix-Game 2", f"{found['difference']:.1e}")
    assert found["difference"] < 1e-5
