"""Upstream world and video models, unedited, as people run them: tiny, random weights, checkouts (``--worlds DIR``).

Each runs in a process of its own (``world_models``), through the loop that its pipeline has, with the cache that it
keeps in place. Everything that a call returns, and every cache at the end, is compared with eager.
"""

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
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(SUPPORT))

from cases import CASES  # noqa: E402

WAYS = ("dynamo", "exact", "accelerate:exact", "accelerate:sparse")
RESULTS: dict[tuple[str, str], dict[str, Any]] = {}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_model_of_others_runs_as_in_eager(name: str, way: str, tally: Any, pytestconfig: pytest.Config) -> None:
    checkouts = pytestconfig.getoption("--worlds")
    if checkouts is None or not (checkouts / CASES[name].folder).is_dir():
        pytest.skip(f"needs --worlds=DIR with a checkout of {CASES[name].folder} (its imports: docs/measurements.md)")
    found = _run(name, checkouts, way)
    RESULTS[name, way] = found
    told = f"{found['graphs']} graphs, {found['breaks']} breaks, {found['late']} late, {found['difference']:.1e}"
    tally.add(f"world models, {way}", "right", name, f"{told}, {found['rewritten']}")
    if not way.endswith("sparse"):
        assert found["difference"] < CASES[name].rounding
    stock = RESULTS.get((name, "dynamo"))
    if way.startswith("accelerate") and stock is not None:
        assert found["graphs"] <= stock["graphs"] and found["late"] <= stock["late"]


def _run(name: str, checkouts: Path, way: str) -> dict[str, Any]:
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE), name, str(checkouts), way]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))
