"""Chunks one after the other: what they see of actions, what the caches hold, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightint_compile.errors import CheckpointError, InputError
from lightint_compile.models.matrix_game.actions import overlapping, windows
from lightint_compile.models.matrix_game_2 import (
    Actions,
    MatrixGame2Chunk,
    MatrixGame2Config,
    empty_caches,
    example_inputs,
    example_scene,
    fill_random,
    load_chunk,
    recent,
    rollout,
)
from lightint_compile.models.matrix_game_2.caches import slot_of

CONFIG = MatrixGame2Config.tiny()


@pytest.fixture(scope="module")
def chunk() -> MatrixGame2Chunk:
    return fill_random(MatrixGame2Chunk(CONFIG)).eval()


def test_a_rollout_is_chunk_after_chunk(chunk: MatrixGame2Chunk) -> None:
    actions, scene = Actions.held("w+left-5,s-6"), example_scene(CONFIG, 12)
    results = list(rollout(chunk, CONFIG, scene, actions, seed=1))
    assert [result.history.shape[2] for result in results] == [3, 6, 9, 12]
    assert torch.equal(results[-1].history[:, :, 9:], results[-1].latents)
    again = list(rollout(chunk, CONFIG, scene, actions, seed=1))
    assert torch.equal(again[-1].history, results[-1].history)
    other = list(rollout(chunk, CONFIG, scene, Actions.held("w+left-5,w-6"), seed=1))
    # A latent frame sees the video frames before its last one: frame 6 is the first that sees another key.
    assert torch.equal(other[-1].history[:, :, :6], results[-1].history[:, :, :6])
    assert not torch.equal(other[2].latents, results[2].latents)


def test_keys_of_held_actions() -> None:
    actions = Actions.held("w+left-1,d+up-1")
    assert len(actions) == 3 and actions.mouse.shape == (9, 2)
    assert actions.keyboard[3].tolist() == [1, 0, 0, 0] and actions.keyboard[4].tolist() == [0, 0, 0, 1]
    assert actions.mouse[[3, 4]].tolist() == [pytest.approx([0, -0.1]), pytest.approx([0.1, 0])]


@pytest.mark.parametrize("first", [0, 3, 9])
def test_a_chunk_sees_the_windows_of_its_frames(first: int) -> None:
    rows = torch.randn(1, 4 * (first + 2) + 1, 2)
    seen = overlapping(recent(CONFIG, rows, first), CONFIG.action_window)
    assert torch.equal(seen, windows(rows, CONFIG.action_window)[:, first:])


@pytest.mark.parametrize(
    ("window", "slots"),
    [(6, [(0, 3, 0), (3, 6, 0), (3, 6, 3), (3, 6, 3)]), (4, [(0, 3, 0), (1, 4, 2), (1, 4, 3), (1, 4, 3)])],
)
def test_room_is_made_at_the_end_of_a_window(window: int, slots: list[tuple[int, int, int]]) -> None:
    config = dataclasses.replace(CONFIG, window=window)
    assert [tuple(slot_of(config, min(first, window))) for first in (0, 3, 6, 9)] == slots


@torch.no_grad()
def test_a_full_window_moves_by_a_chunk_and_nothing_older_is_read(chunk: MatrixGame2Chunk) -> None:
    given = example_inputs(CONFIG, 9)
    caches = given["caches"]
    other = type(caches)(*([type(pair)(*(each.clone() for each in pair)) for pair in part] for part in caches))
    for part in other[:3]:
        for key, value in part:
            key[:, : key.shape[1] // 2] = value[:, : value.shape[1] // 2] = 7.0
    moved = [each[:, each.shape[1] // 2 :].clone() for part in caches[:3] for pair in part for each in pair]
    assert torch.equal(chunk(**given), chunk(**given | {"caches": other}))
    kept = [each[:, : each.shape[1] // 2] for part in caches[:3] for pair in part for each in pair]
    assert all(map(torch.equal, kept, moved))


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet(chunk: MatrixGame2Chunk) -> None:
    both = example_inputs(CONFIG, 0, batch=2)
    latents = chunk(**both)
    for index in range(2):
        alone = {name: value[index : index + 1] for name, value in both.items() if name in ("image", "seen")}
        alone |= {name: both[name][index : index + 1] for name in ("mouse", "keyboard")}
        alone |= {"noise": both["noise"][:, index : index + 1], "frames": both["frames"]}
        found = chunk(**alone, caches=empty_caches(CONFIG), held=0)
        torch.testing.assert_close(found, latents[index : index + 1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_lower_precision_follows_float64() -> None:
    def of(dtype: torch.dtype) -> torch.Tensor:
        return fill_random(MatrixGame2Chunk(CONFIG)).to(dtype).eval()(**example_inputs(CONFIG, 3, dtype=dtype))

    reference = of(torch.float64)
    assert reference.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        found = of(dtype)
        assert found.dtype == dtype
        assert float((found.double() - reference).norm() / reference.norm()) < tolerance


@torch.no_grad()
def test_full_width_runs_on_the_meta_device() -> None:
    config = dataclasses.replace(MatrixGame2Config.universal(), depth=2, action_blocks=1)
    with torch.device("meta"):
        chunk = MatrixGame2Chunk(config).bfloat16()
    assert chunk(**example_inputs(config, 6, "meta", torch.bfloat16)).shape == (1, 16, 3, 44, 80)
    assert config.pixels == (352, 640)


def test_weights_are_loaded_strictly(chunk: MatrixGame2Chunk, tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in chunk.transformer.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_chunk(CONFIG, tmp_path, dtype=torch.float32)
    assert all(torch.equal(value, state[f"model.{key}"]) for key, value in loaded.transformer.state_dict().items())
    save_file({key: value for key, value in state.items() if "img_emb" not in key}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="img_emb"):
        load_chunk(CONFIG, tmp_path)


@pytest.mark.parametrize("name", ["noise", "image", "seen", "mouse", "keyboard", "frames"])
def test_a_wrong_shape_is_named(chunk: MatrixGame2Chunk, name: str) -> None:
    given = example_inputs(CONFIG, 0)
    with pytest.raises(InputError, match=name):
        chunk(**given | {name: given[name][..., :-1]})


@pytest.mark.parametrize("text", ["w-4", "w-12"])
def test_actions_that_do_not_fit_are_refused(chunk: MatrixGame2Chunk, text: str) -> None:
    with pytest.raises(InputError, match="whole number of chunks"):
        rollout(chunk, CONFIG, example_scene(CONFIG, 12), Actions.held(text))


def test_a_scene_that_is_too_short_is_refused(chunk: MatrixGame2Chunk) -> None:
    with pytest.raises(InputError, match="too short"):
        rollout(chunk, CONFIG, example_scene(CONFIG, 9), Actions.held("w-11"))


@pytest.mark.parametrize(
    "change",
    [{"window": 2}, {"in_channels": 4}, {"levels": ()}, {"levels": (1000, 0)}, {"latent_height": 7}, {"heads": 3}],
)
def test_sizes_that_do_not_fit_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)
