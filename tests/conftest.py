"""Shared fixtures: GPU tests skip themselves with a reason; generated cases run on one thread."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

# pytest hands its handlers to loggers that do not propagate, and torch writes a trace for tlparse wherever its
# logger has a handler: a tenth of a batch of seeds went into it. Its own handler leaves at the first record, which
# must not reach the terminal: a test may read what is there.
_trace = logging.getLogger("torch.__trace")
_trace.debug("no trace is wanted")
_trace.propagate = True

# Dynamo measures how long the guards of every new graph take, behind a flush of the caches: 25 to 40 ms, a quarter of
# what a small graph takes to compile. No test reads it.
torch._dynamo.guards.profile_guard_manager = lambda *_: 0.0

# With an empty cache Inductor compiles small programs to see which vectors the compiler knows: 4 s in every process
# that a test starts with a cache of its own. What the processor has is taken as known, here and in those processes.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
torch._inductor.config.cpp.vec_isa_ok = True

# Nor is every graph a reason to look for garbage: 10 ms each.
torch._dynamo.config.run_gc_after_compile = False

# torch.library.opcheck imports torch.testing's internals, which forbid every later test to set a backend's flags.
torch.backends.disable_global_flags = lambda: None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
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
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """The test counts graphs from none, without gradients."""
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
