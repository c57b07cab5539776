"""A pytest plugin for a checkout of diffusers: its tests of compiled models run under another backend, and compare.

Those tests only call the compiled model; here every call is compared with the same call in eager. They ask for an
accelerator, which they do not need. ``PEER_BACKEND`` names the backend, ``PEER_RESULTS`` the file that is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

MIXIN = "TorchCompileTesterMixin"
TESTS = (
    "test_torch_compile_recompilation_and_graph_break",
    "test_torch_compile_repeated_blocks",
    "test_compile_on_different_shapes",
)
OPTIONS = {"lightint": {"preset": "exact", "delegate": "eager"}}
RESULTS: list[dict[str, str]] = []
COMPILE = torch.compile


class Compared:
    """A compiled callable that runs eager beside itself."""

    def __init__(self, original: Any, compiled: Any) -> None:
        self._original, self._compiled = original, compiled

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        expected = self._original(*arguments, **keywords)
        actual = self._compiled(*arguments, **keywords)
        pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
        for got, wanted in pairs:
            if isinstance(wanted, torch.Tensor):
                torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
        return actual


def compare(model: Any, **keywords: Any) -> Compared:
    """Stands for ``torch.compile``."""
    backend = os.environ["PEER_BACKEND"]
    chosen = {**keywords, "backend": backend, "options": OPTIONS.get(backend)}
    return Compared(model, COMPILE(model, **chosen))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if _is_meant(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in kept:
        for node in item.listchain():
            node.own_markers = [mark for mark in node.own_markers if not _asks_for_an_accelerator(mark)]


@pytest.fixture(autouse=True)
def under_the_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "compile", compare)
    torch.manual_seed(0)
    with torch.fx.experimental._config.patch(use_duck_shape=True):  # a test of theirs changes it for good
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or (report.outcome != "passed" and report.when == "setup"):
        RESULTS.append({"test": report.nodeid, "outcome": report.outcome, "detail": _detail(report)})


def pytest_sessionfinish() -> None:
    Path(os.environ["PEER_RESULTS"]).write_text(json.dumps(RESULTS))


def _is_meant(item: Any) -> bool:
    ancestors = {base.__name__ for base in getattr(item.cls, "__mro__", ())}
    return MIXIN in ancestors and item.originalname in TESTS


def _asks_for_an_accelerator(mark: pytest.Mark) -> bool:
    return mark.name == "skipif" and "accelerator" in str(mark.kwargs.get("reason"))


def _detail(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(crash.message.split())[:600] if crash else str(report.longrepr or "")[-300:]
