"""Upstream world and video models, and pipelines of diffusers, unedited, as people run them: tiny, random weights.

Each runs in a process of its own (``world_models``), through the loop that its pipeline has, with the cache that it
keeps in place. All that a call returns, and every cache at the end, is compared with eager. Code bases need checkouts
(``--worlds=DIR``). With ``--worlds-table=FILE`` the table of docs/measurements.md is written; facts of earlier runs,
kept beside it as JSON, fill the rows that did not run this time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "world_models"
SUPPORT = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(SUPPORT))

from cases import CASES, MODELS, PIPELINES  # noqa: E402
from table import MOST, SAME, STOCK, markdown  # noqa: E402

COMPILED = "exact"
"""The preset by ``torch.compile`` alone, cut as upstream's source is."""

WAYS = (STOCK, COMPILED, SAME, MOST)


@pytest.fixture(scope="module")
def facts(pytestconfig: pytest.Config) -> Iterator[dict[str, Any]]:
    """Facts by name and way, written as tables at the end."""
    path = pytestconfig.getoption("--worlds-table")
    kept = None if path is None else path.with_suffix(".json")
    found = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    yield found
    if kept is not None and found:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1))
        path.write_text("\n".join(markdown(found, names) for names in (MODELS, PIPELINES)))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", CASES)
def test_a_model_of_others_runs_as_in_eager(
    name: str, tally: Any, facts: dict[str, Any], pytestconfig: pytest.Config
) -> None:
    case, checkouts = CASES[name], pytestconfig.getoption("--worlds") or Path()
    if case.folder and not (checkouts / case.folder).is_dir():
        pytest.skip(f"needs --worlds=DIR with a checkout of {case.folder} (its imports: docs/measurements.md)")
    found = facts[name] = _run(name, checkouts)
    for way, told in found.items():
        if "error" in told:
            tally.add(f"world models, {way}", "fails", name, told["error"])
            continue
        brief = f"{told['graphs']} graphs, {told['breaks']} breaks, {told['late']} late, {told['difference']:.1e}"
        tally.add(f"world models, {way}", "right", name, f"{brief}, {told.get('rewritten', {})}")
    assert found[COMPILED].get("difference", 0) < case.rounding  # where Dynamo fails, so does this
    assert found[SAME]["difference"] < case.rounding
    for way in (SAME, MOST) if "error" not in found[STOCK] else ():
        assert found[way]["graphs"] <= found[STOCK]["graphs"] + case.more
        assert found[way]["late"] <= found[STOCK]["late"] + case.late


def _run(name: str, checkouts: Path) -> dict[str, Any]:
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE), name, str(checkouts), *WAYS]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))
