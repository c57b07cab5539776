"""The transformer against tensors made by the released implementation from the same pseudo-random weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightint_compile.models.matrix_game.config import MatrixGameConfig
from lightint_compile.models.matrix_game.transformer import MatrixGameTransformer

DATA = Path(__file__).resolve().parents[2] / "data"
TOLERANCE = 1e-5


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def fill(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scale = 0.01 if "wancamctrl" in key else 0.05
            parameter.copy_(scale * draw("param:" + key, *parameter.shape))
            owner = key.split(".")[-2]
            if key.endswith("weight") and ("norm" in owner or key.endswith("mouse_mlp.3.weight")):
                parameter.add_(1.0)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(DATA / "matrix_game_tiny.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture(scope="module")
def model() -> MatrixGameTransformer:
    transformer = MatrixGameTransformer(MatrixGameConfig.tiny())
    fill(transformer)
    return transformer.eval()


def times(frames: int, time: float) -> Tensor:
    timestep = torch.full((1, frames, 6), time)
    timestep[:, 0] = 0.0
    return timestep.flatten(1)


TEXT = draw("in:text", 5, 20)[None]


@torch.no_grad()
def test_first_clip(golden: dict[str, Tensor], model: MatrixGameTransformer) -> None:
    velocity = model(
        draw("in:x0", 1, 6, 3, 4, 6),
        times(3, 999.0),
        TEXT,
        draw("in:pl0", 1, 1536, 3, 4, 6),
        draw("in:mouse0", 1, 9, 2),
        (draw("in:key0", 1, 9, 6) > 0).float(),
        torch.arange(3),
    )
    assert velocity.shape == golden["clip0"].shape
    assert (velocity - golden["clip0"]).abs().max().item() <= TOLERANCE


@torch.no_grad()
def test_later_clip_with_memory(golden: dict[str, Tensor], model: MatrixGameTransformer) -> None:
    velocity = model(
        draw("in:x1", 1, 6, 2, 4, 6),
        times(2, 713.0),
        TEXT,
        draw("in:pl1", 1, 1536, 4, 4, 6),
        draw("in:mouse1", 1, 8, 2),
        (draw("in:key1", 1, 8, 6) > 0).float(),
        torch.tensor([7, 1, 11, 12]),
        draw("in:xmem", 1, 6, 2, 4, 6),
    )
    assert velocity.shape == golden["clip1"].shape
    assert (velocity - golden["clip1"]).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize(
    ("size", "file"), [("tiny", "matrix_game_tiny_keys.json"), ("base_5b_720p", "matrix_game_full_keys.json")]
)
def test_keys_and_shapes_are_the_checkpoints(size: str, file: str) -> None:
    expected = {key: tuple(shape) for key, shape in json.loads((DATA / file).read_text()).items()}
    with torch.device("meta"):
        state = MatrixGameTransformer(getattr(MatrixGameConfig, size)()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_full_size_has_6_470_billion_parameters() -> None:
    with torch.device("meta"):
        transformer = MatrixGameTransformer(MatrixGameConfig.base_5b_720p())
    assert round(sum(parameter.numel() for parameter in transformer.parameters()) / 1e9, 3) == 6.470
