"""A clip is one graph, captured once for every length of the history; its shapes and weights are checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounter

from lightint_compile.errors import CheckpointError, InputError
from lightint_compile.models.matrix_game import (
    MatrixGameClip,
    MatrixGameConfig,
    Trajectory,
    example_inputs,
    example_scene,
    fill_random,
    load_clip,
    rollout,
    to_int8,
)

CONFIG = MatrixGameConfig.tiny()


@pytest.fixture(scope="module")
def clip() -> MatrixGameClip:
    return fill_random(MatrixGameClip(CONFIG)).eval()


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch.compiler.reset()


def test_a_rollout_is_two_graphs() -> None:
    """A graph is traced as often as there are blocks and steps: one block in two steps is enough to see how many."""
    config = dataclasses.replace(CONFIG, depth=1, steps=2)
    clip, counter = fill_random(MatrixGameClip(config)).eval(), CompileCounter()
    compiled = torch.compile(clip, backend=counter, fullgraph=True)
    scene, path = example_scene(config), Trajectory.from_pose_string("w+left-20,right-14")
    eager = list(rollout(clip, config, scene, path, seed=3))
    results = list(rollout(compiled, config, scene, path, seed=3))
    assert [result.latents.shape[2] for result in results] == [15, 10, 10]
    for result, expected in zip(results, eager, strict=True):
        torch.testing.assert_close(result.latents, expected.latents)
    assert results[-1].history.shape[2] == 35
    assert counter.frame_count == 2


@torch.no_grad()
def test_the_image_is_the_first_latent_and_the_overlap_is_kept(clip: MatrixGameClip) -> None:
    first = example_inputs(CONFIG, 0)
    assert torch.equal(clip(**first)[:, :, :1], first["image"])
    later = example_inputs(CONFIG, 25)
    changed = later | {"image": torch.zeros_like(later["image"])}
    latents = clip(**later)
    assert torch.equal(latents, clip(**changed))
    assert latents.shape[2] == 10


@torch.no_grad()
def test_lower_precision_follows_float64() -> None:
    exact = fill_random(MatrixGameClip(CONFIG)).double().eval()
    reference = exact(**example_inputs(CONFIG, 15, dtype=torch.float64))
    assert reference.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        rounded = fill_random(MatrixGameClip(CONFIG)).to(dtype).eval()(**example_inputs(CONFIG, 15, dtype=dtype))
        assert rounded.dtype == dtype
        assert float((rounded.double() - reference).norm() / reference.norm()) < tolerance


@torch.no_grad()
def test_full_size_runs_on_the_meta_device() -> None:
    config = MatrixGameConfig.base_5b_720p()
    with torch.device("meta"):
        clip = MatrixGameClip(config).bfloat16()
    inputs = example_inputs(config, 25, device="meta", dtype=torch.bfloat16, text_tokens=119)
    assert clip(**inputs).shape == (1, 48, 10, 44, 80)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("noise", lambda tensor: tensor[..., :-1]),
        ("history", lambda tensor: tensor[:, :, :-1]),
        ("extrinsics", lambda tensor: tensor[:, 1:]),
        ("mouse", lambda tensor: tensor[:, 1:]),
        ("keyboard", lambda tensor: tensor[..., :4]),
        ("image", lambda tensor: tensor[:, 1:]),
        ("text", lambda tensor: tensor.repeat(1, 2, 1)),
    ],
)
def test_a_wrong_shape_is_named(clip: MatrixGameClip, name: str, change) -> None:
    inputs = example_inputs(CONFIG, 15)
    with pytest.raises(InputError, match=name):
        clip(**inputs | {name: change(inputs[name])})


def test_a_path_of_no_whole_number_of_clips_is_refused(clip: MatrixGameClip) -> None:
    with pytest.raises(InputError, match="whole number of clips"):
        rollout(clip, CONFIG, example_scene(CONFIG), Trajectory.from_pose_string("w-15"))


def saved(folder: Path, clip: MatrixGameClip) -> Path:
    save_file({key: value.clone() for key, value in clip.transformer.state_dict().items()}, folder / "a.safetensors")
    return folder


@pytest.mark.parametrize("int8", [False, True])
@torch.no_grad()
def test_weights_arrive(tmp_path: Path, clip: MatrixGameClip, int8: bool) -> None:
    given = fill_random(MatrixGameClip(CONFIG)).eval()
    given = to_int8(given) if int8 else given
    loaded = load_clip(given.config, saved(tmp_path, given), dtype=torch.float32)
    inputs = example_inputs(CONFIG, 0)
    assert torch.equal(loaded(**inputs), given(**inputs))
    with pytest.raises(CheckpointError, match="key"):
        load_clip(MatrixGameConfig.base_5b_720p(), tmp_path)


@torch.no_grad()
def test_eight_bits_are_close_and_have_the_released_keys(clip: MatrixGameClip) -> None:
    rounded = to_int8(fill_random(MatrixGameClip(CONFIG)).eval())
    data = Path(__file__).resolve().parents[2] / "data" / "matrix_game_tiny_keys.json"
    names = json.loads(data.read_text())
    projections = {key.rpartition(".")[0] for key in names if key.split(".")[-2] in ("q", "k", "v", "o")}
    expected = {key for key in names if key.rpartition(".")[0] not in projections}
    expected |= {f"{each}.{part}" for each in projections for part in ("weight_int8", "weight_scales", "bias")}
    assert set(rounded.transformer.state_dict()) == expected
    inputs = example_inputs(CONFIG, 15)
    exact = clip(**inputs)
    assert 0 < float((rounded(**inputs) - exact).norm() / exact.norm()) < 0.05


def test_sizes_that_do_not_fit_are_refused() -> None:
    for field, value in (("heads", 5), ("latent_width", 7), ("later_clip", 4), ("action_rope_dims", (8, 12, 8))):
        with pytest.raises(InputError, match=f"MatrixGameConfig.{field}"):
            MatrixGameConfig(**{**vars(CONFIG), field: value})
