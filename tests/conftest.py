"""Shared fixtures: GPU tests skip themselves with a reason; generated cases run on one thread."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

# What is imported is kept, however much it is: looking for garbage in it is a fifth of what collecting takes.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Have torch as tests want it. The process that only deals tests out does without: its workers start 3 s sooner."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        import torch_in_tests  # noqa: F401 - its import does it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; none is visible")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What is imported stays: the collector need not walk it each time that a trace has made many objects."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """The test counts graphs from none, without gradients."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        yield


@pytest.fixture
def undone() -> Iterator[None]:
    """What the test accelerates by ``accelerated_here`` is undone behind it."""
    from accelerated_here import undo_all

    yield
    undo_all()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The test computes on one thread: its tensors are small, and workers share the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
