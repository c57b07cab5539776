"""Shared fixtures: GPU tests skip themselves with a reason."""

from __future__ import annotations

import pytest
import torch

# torch.library.opcheck imports torch.testing's internals, which forbid every later test to set a backend's flags.
torch.backends.disable_global_flags = lambda: None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; none is visible")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
