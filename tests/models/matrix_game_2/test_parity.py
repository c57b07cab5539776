"""Chunks and caches against tensors made by the released implementation from the same pseudo-random weights."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightint_compile.models.matrix_game_2 import (
    Caches,
    MatrixGame2Chunk,
    MatrixGame2Config,
    MatrixGame2Transformer,
    empty_caches,
    recent,
)

DATA = Path(__file__).resolve().parents[2] / "data"
TOLERANCE = 1e-5
CONFIG = MatrixGame2Config.tiny()
FRAMES = 12


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def fill(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(0.05 * draw("param:" + key, *parameter.shape))
            if key.endswith("weight") and parameter.ndim == 1:
                parameter.add_(1.0)


def rolled(config: MatrixGame2Config) -> tuple[list[Tensor], Caches]:
    """Four chunks, the last two of which at least push frames out of the window, and the caches behind them."""
    chunk, caches = MatrixGame2Chunk(config).eval(), empty_caches(config)
    fill(chunk.transformer)
    image = draw("in:image", 1, 4, FRAMES, 8, 12)
    mouse = 0.1 * draw("in:mouse", 1, 4 * FRAMES - 3, 2)
    keyboard = (draw("in:keyboard", 1, 4 * FRAMES - 3, config.keys) > 0).float()
    found = []
    for index, first in enumerate(range(0, FRAMES, 3)):
        with torch.no_grad():
            latents = chunk(
                draw(f"in:noise{index}", 3, 1, 4, 3, 8, 12),
                image[:, :, first : first + 3],
                draw("in:seen", 1, 5, 24),
                recent(config, mouse, first),
                recent(config, keyboard, first),
                torch.arange(first, first + 3),
                caches,
                min(first, config.window),
            )
        found.append(latents)
    return found, caches


@pytest.fixture(scope="module")
def tiny() -> tuple[list[Tensor], Caches]:
    return rolled(CONFIG)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(DATA / "matrix_game_2_tiny.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def test_latents(golden: dict[str, Tensor], tiny: tuple[list[Tensor], Caches]) -> None:
    for index, latents in enumerate(tiny[0]):
        torch.testing.assert_close(latents, golden[f"chunk{index}"], rtol=0, atol=TOLERANCE)


def test_latents_where_a_window_holds_no_whole_number_of_chunks(golden: dict[str, Tensor]) -> None:
    """As in the release for driving: two keys, and four frames."""
    for index, latents in enumerate(rolled(dataclasses.replace(CONFIG, keys=2, window=4))[0]):
        torch.testing.assert_close(latents, golden[f"driving{index}"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name",
    ["frames1_key", "frames1_value", "mouse0_key", "keyboard0_key", "keyboard0_value", "image1_key", "image1_value"],
)
def test_what_is_kept(golden: dict[str, Tensor], tiny: tuple[list[Tensor], Caches], name: str) -> None:
    cache, _, part = name.partition("_")
    kept = getattr(getattr(tiny[1], cache[:-1])[int(cache[-1])], part)
    torch.testing.assert_close(kept, golden[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("size", "file"), [("tiny", "matrix_game_2_tiny_keys.json"), ("universal", "matrix_game_2_full_keys.json")]
)
def test_keys_and_shapes_are_those_of_the_released_model(size: str, file: str) -> None:
    expected = {key: tuple(shape) for key, shape in json.loads((DATA / file).read_text()).items()}
    with torch.device("meta"):
        state = MatrixGame2Transformer(getattr(MatrixGame2Config, size)()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_full_size_has_1_619_billion_parameters() -> None:
    with torch.device("meta"):
        transformer = MatrixGame2Transformer(MatrixGame2Config.universal())
    assert round(sum(parameter.numel() for parameter in transformer.parameters()) / 1e9, 3) == 1.619
