"""A rollout captures two graphs, compiles each region once, and nothing after its first chunks; on a GPU as well."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._dynamo.utils import counters

from lightint_compile.compiled import CompiledGraph
from lightint_compile.models.worldplay import (
    Trajectory,
    WorldPlayChunk,
    WorldPlayConfig,
    example_scene,
    fill_random,
    rollout,
)

CASES = [
    pytest.param("cpu", torch.float32, "eager", id="cpu"),
    pytest.param("cuda", torch.bfloat16, "inductor", id="gpu", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize(("device", "dtype", "delegate"), CASES)
def test_a_rollout(device: str, dtype: torch.dtype, delegate: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    config = dataclasses.replace(WorldPlayConfig.tiny(), depth=1)
    with torch.device(device):
        model = fill_random(WorldPlayChunk(config).to(dtype), 0).eval().requires_grad_(False)
    options = {"preset": "exact", "delegate": delegate}
    compiled = torch.compile(model, backend="lightint", fullgraph=True, options=options)
    scene = example_scene(config, device, dtype)
    path = Trajectory.from_pose_string("left-11,right-12")
    made: list[int] = []
    found: list[torch.Tensor] = []
    for chunk in rollout(compiled, config, scene, path):
        found.append(chunk.latents)
        made.append(sum(graph.driver.compilations for graph in CompiledGraph.of(compiled) if graph.driver is not None))
    assert counters["stats"]["unique_graphs"] == 2, "one graph without history, one with"
    assert not counters["graph_break"]
    assert len(set(made[1:])) == 1, f"regions compiled so far, chunk by chunk: {made}"
    expected = [chunk.latents for chunk in rollout(model, config, scene, path)]
    bound = 1e-4 if dtype == torch.float32 else 0.1  # half precision: the history of each rollout is its own
    for got, eager in zip(found, expected, strict=True):
        assert (got - eager).float().norm() <= bound * eager.float().norm()
