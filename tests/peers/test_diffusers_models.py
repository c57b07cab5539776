"""diffusers' own tests of compiled models (its ``TorchCompileTesterMixin``, of ``--diffusers``) under the backend.

They run as their authors wrote them, in a process of their own, with a plugin that changes the backend and compares
every call with eager; nothing may fail that passes under Inductor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODELS = Path("tests/models")


@pytest.mark.timeout(0)
def test_compiled_models_of_diffusers(tally: Any, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    checkout = pytestconfig.getoption("--diffusers")
    if checkout is None:
        pytest.skip("needs --diffusers CHECKOUT (its tests need httpx, parameterized and requests_mock)")
    files = [str(path.relative_to(checkout)) for path in sorted((checkout / MODELS).glob("*/test_*.py"))]
    files = [name for name in files if "TorchCompileTesterMixin" in (checkout / name).read_text()]
    results = _run(checkout, files, "lightint", tmp_path / "ours.json")
    failed = [result for result in results if result["outcome"] == "failed"]
    stock = _run(checkout, [result["test"] for result in failed], "inductor", tmp_path / "stock.json") if failed else []
    fails_too = {result["test"] for result in stock if result["outcome"] == "failed"}
    for result in results:
        kind = "fails under Inductor too" if result["test"] in fails_too else result["outcome"]
        test = result["test"].rsplit("::", 1)[1]
        tally.add(f"diffusers, {test}", kind, result["test"], result["detail"] if kind != "skipped" else "")
    ours = [f"{result['test']}: {result['detail']}" for result in failed if result["test"] not in fails_too]
    assert results and not ours, "\n".join(ours)


def _run(checkout: Path, tests: list[str], backend: str, results: Path) -> list[dict[str, str]]:
    here = Path(__file__).parent
    environment = os.environ | {
        "PEER_BACKEND": backend,
        "PEER_RESULTS": str(results),
        "PYTHONPATH": str(here),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "diffusers_plugin", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", "--tb=no", *tests]
    subprocess.run(command, cwd=checkout, env=environment, check=False)
    return list(json.loads(results.read_text()))
