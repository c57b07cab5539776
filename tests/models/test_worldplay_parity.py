"""The transformer against tensors made by the released implementation from the same pseudo-random weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightint_compile.models.worldplay import WorldPlayConfig, WorldPlayTransformer

DATA = Path(__file__).resolve().parents[1] / "data"
TOLERANCE = 1e-5


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def fill(model: torch.nn.Module) -> None:
    ones = ("norm.weight", "norm1.weight", "norm2.weight")
    also = {"vision_in.proj.0.weight", "vision_in.proj.4.weight", "byt5_in.layernorm.weight"}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(0.05 * draw("param:" + key, *parameter.shape))
            if key.endswith(ones) or key in also:
                parameter.add_(1.0)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(DATA / "worldplay_tiny.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture(scope="module")
def model() -> WorldPlayTransformer:
    transformer = WorldPlayTransformer(WorldPlayConfig.tiny())
    fill(transformer)
    return transformer.eval()


@pytest.fixture(scope="module")
def text(model: WorldPlayTransformer) -> list:
    with torch.no_grad():
        return model.text_cache(
            draw("in:text", 1, 10, 24)[:, :7], draw("in:byt5", 1, 6, 1472)[:, :2], draw("in:vision", 1, 5, 20)
        )


def latents() -> Tensor:
    noisy = draw("in:latents", 1, 4, 12, 4, 6)
    condition, mask = torch.zeros(1, 4, 12, 4, 6), torch.zeros(1, 1, 12, 4, 6)
    condition[:, :, 0] = draw("in:cond", 1, 4, 4, 6)
    mask[:, :, 0] = 1.0
    return torch.cat([noisy, condition, mask], dim=1)


def frames(golden: dict[str, Tensor], index: list[int], time: float) -> tuple[Tensor, ...]:
    cameras = golden["w2c"][:, index], golden["K"][:, index]
    return latents()[:, :, index], torch.full((1, len(index)), time), golden["action"][:, index], *cameras


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= TOLERANCE


def test_text_keys_and_values(golden: dict[str, Tensor], text: list) -> None:
    for index, entry in enumerate(text):
        assert_close(entry.key, golden[f"k_txt_{index}"])
        assert_close(entry.value, golden[f"v_txt_{index}"])


@torch.no_grad()
def test_first_chunk_velocity(golden: dict[str, Tensor], model: WorldPlayTransformer, text: list) -> None:
    assert_close(model(*frames(golden, [0, 1, 2, 3], 1000.0), text), golden["chunk0_pred"])


@torch.no_grad()
def test_context_and_later_chunk_velocity(golden: dict[str, Tensor], model: WorldPlayTransformer, text: list) -> None:
    context = model.prefill(*frames(golden, [0, 1, 2, 3, 6, 7], 14.0), text)
    for index, entry in enumerate(context):
        assert_close(entry.key, golden[f"k_vision_{index}"])
        assert_close(entry.value, golden[f"v_vision_{index}"])
    velocity = model(*frames(golden, [8, 9, 10, 11], 625.0), text, context, 6)
    assert_close(velocity, golden["chunk2_pred"])


@pytest.mark.parametrize(
    ("size", "file"), [("tiny", "worldplay_tiny_keys.json"), ("hy_8b_480p", "worldplay_full_keys.json")]
)
def test_keys_and_shapes_are_the_checkpoints(size: str, file: str) -> None:
    expected = {key: tuple(shape) for key, shape in json.loads((DATA / file).read_text()).items()}
    with torch.device("meta"):
        state = WorldPlayTransformer(getattr(WorldPlayConfig, size)()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_full_size_has_8_558_billion_parameters() -> None:
    with torch.device("meta"):
        transformer = WorldPlayTransformer(WorldPlayConfig.hy_8b_480p())
    assert round(sum(parameter.numel() for parameter in transformer.parameters()) / 1e9, 3) == 8.558
