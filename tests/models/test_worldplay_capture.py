"""A whole chunk is one graph: captured once for every length of the history, and exported with it dynamic."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from lightint_compile.errors import InputError
from lightint_compile.models.worldplay import (
    Trajectory,
    WorldPlayChunk,
    WorldPlayConfig,
    example_inputs,
    example_scene,
    fill_random,
    rollout,
)

CONFIG = WorldPlayConfig.tiny()


@pytest.fixture(scope="module")
def chunk() -> WorldPlayChunk:
    return fill_random(WorldPlayChunk(CONFIG)).eval()


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch.compiler.reset()


def walk(text: str) -> Trajectory:
    return Trajectory.from_pose_string(text)


@pytest.mark.slow
def test_a_rollout_is_two_graphs_whatever_the_trajectory(chunk: WorldPlayChunk) -> None:
    counter = CompileCounter()
    compiled = torch.compile(chunk, backend=counter, fullgraph=True)
    scene = example_scene(CONFIG)
    for path in ("w-35", "left-12,right-12,w+up-11"):
        eager = [result.latents for result in rollout(chunk, CONFIG, scene, walk(path), seed=3)]
        results = list(rollout(compiled, CONFIG, scene, walk(path), seed=3))
        assert [result.index for result in results] == list(range(9))
        for result, expected in zip(results, eager, strict=True):
            torch.testing.assert_close(result.latents, expected)
        assert results[-1].history.shape[2] == 36
    assert counter.frame_count == 2


@torch.no_grad()
def test_export_keeps_the_history_dynamic() -> None:
    """Steps are unrolled, each over every block: two of them are as many as show a second."""
    config = dataclasses.replace(CONFIG, steps=2, refiner_depth=1)
    chunk = fill_random(WorldPlayChunk(config)).eval()
    frames = torch.export.Dim("frames", min=4, max=252)
    shapes = (None, {2: frames}, {1: frames + 4}, {1: frames + 4}, {1: frames + 4}, None, None, None, None)
    args, kwargs = example_inputs(config, 24)
    program = torch.export.export(chunk, args, kwargs, dynamic_shapes=shapes, strict=False).module()
    for history in (4, 20, 36):
        args, _ = example_inputs(config, history, seed=history)
        torch.testing.assert_close(program(*args), chunk(*args))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_lower_precision_follows_float64(dtype: torch.dtype, tolerance: float) -> None:
    exact = fill_random(WorldPlayChunk(CONFIG)).double().eval()
    # The same random numbers, drawn in float32 and rounded to each dtype.
    reference = exact(*example_inputs(CONFIG, 24, dtype=torch.float64)[0])
    rounded = fill_random(WorldPlayChunk(CONFIG)).to(dtype).eval()(*example_inputs(CONFIG, 24, dtype=dtype)[0])
    assert (reference.dtype, rounded.dtype) == (torch.float64, dtype)
    assert relative_error(rounded, reference) < tolerance


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@torch.no_grad()
def test_full_size_runs_on_the_meta_device() -> None:
    config = dataclasses.replace(WorldPlayConfig.hy_8b_480p(), depth=2)  # of 54 blocks, which are alike
    with torch.device("meta"):
        chunk = WorldPlayChunk(config).bfloat16()
    args, _ = example_inputs(config, 24, device="meta", dtype=torch.bfloat16, text_tokens=119)
    assert chunk(*args).shape == (1, 32, 4, 30, 52)


@torch.no_grad()
def test_a_batch_is_its_worlds_one_by_one(chunk: WorldPlayChunk) -> None:
    first, second = example_inputs(CONFIG, 16, seed=1)[0], example_inputs(CONFIG, 16, seed=2)[0]
    together = chunk(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
    torch.testing.assert_close(together, torch.cat([chunk(*first), chunk(*second)]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("position", "name", "change"),
    [
        (0, "noise", lambda tensor: tensor[..., :-1]),
        (1, "history", lambda tensor: tensor[:, :, :-1]),
        (1, "history", lambda tensor: tensor[:, :, :0]),
        (2, "extrinsics", lambda tensor: tensor[:, 1:]),
        (3, "intrinsics", lambda tensor: tensor[:, 1:]),
        (4, "actions", lambda tensor: tensor[:, 1:]),
        (5, "image", lambda tensor: tensor[:, 1:]),
    ],
)
def test_a_wrong_shape_is_named(chunk: WorldPlayChunk, position: int, name: str, change) -> None:
    args = list(example_inputs(CONFIG, 8)[0])
    args[position] = change(args[position])
    with pytest.raises(InputError, match=name):
        chunk(*args)


def test_a_bad_trajectory_stops_before_the_first_chunk(chunk: WorldPlayChunk) -> None:
    good, scene = walk("w-7"), example_scene(CONFIG)
    missing = good.extrinsics.clone()
    missing[5, 0, 0] = float("nan")
    sheared = good.extrinsics.clone()
    sheared[3, 0, 0] = 2.0
    for extrinsics, frame in ((missing, "frame 5"), (sheared, "frame 3")):
        with pytest.raises(InputError, match=frame):
            rollout(chunk, CONFIG, scene, Trajectory(extrinsics, good.intrinsics, good.actions))
    with pytest.raises(InputError, match="whole number of chunks"):
        rollout(chunk, CONFIG, scene, walk("w-8"))
