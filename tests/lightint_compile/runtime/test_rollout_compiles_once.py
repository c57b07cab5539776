"""On a GPU, too, a rollout captures two graphs, compiles each region once, and nothing after its first chunks."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from world_sessions import WORLDS, Session


@pytest.mark.gpu
@pytest.mark.parametrize("world", WORLDS)
def test_a_rollout(world: str) -> None:
    session = Session(world, "cuda", torch.bfloat16, depth=1, preset="exact", delegate="inductor")
    assert session.captured == 2 and not session.breaks, "one graph without history, one with"
    compiled, expected = session.compilations, [result.latents for result in session.rollout(session.module)]
    counters.clear()
    for got, eager in zip(session.latents(), expected, strict=True):
        # The history of each rollout is its own, in half precision.
        assert (got - eager).float().norm() <= 0.1 * eager.float().norm()
    assert counters["stats"]["unique_graphs"] == 0 and session.compilations == compiled
