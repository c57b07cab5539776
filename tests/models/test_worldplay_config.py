"""Sizes that do not fit are refused with the field named; the schedule is the published one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lightint_compile.errors import InputError
from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs, fill_random
from lightint_compile.models.worldplay.sampler import euler_step, sigmas, timesteps


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("latent_height", {"latent_height": 5, "patch_size": (1, 2, 2)}),
        ("latent_width", {"latent_width": 7, "patch_size": (1, 2, 2)}),
        ("patch_size", {"patch_size": (2, 1, 1)}),
        ("heads", {"heads": 3}),
        ("heads", {"hidden_size": 60, "heads": 10}),
        ("rope_dims", {"rope_dims": (8, 8, 8)}),
        ("rope_dims", {"rope_dims": (7, 13, 12)}),
        ("memory", {"memory": 12}),
        ("memory", {"memory": 18}),
        ("recent", {"recent": 10, "memory": 22}),
        ("steps", {"steps": 0}),
        ("depth", {"depth": -1}),
        ("shift", {"shift": 0.0}),
    ],
)
def test_sizes_that_do_not_fit_name_their_field(field: str, changes: dict) -> None:
    with pytest.raises(InputError, match=f"WorldPlayConfig.{field} does not fit"):
        dataclasses.replace(WorldPlayConfig.tiny(), **changes)


def test_480p_has_1560_tokens_a_frame() -> None:
    config = WorldPlayConfig.hy_8b_480p()
    assert (config.tokens_per_frame, config.head_dim, config.input_channels) == (1560, 128, 65)
    assert config.retrieved_clips == 1


def test_timesteps_are_the_published_ones() -> None:
    assert timesteps(4, 5.0) == pytest.approx([1000.0, 937.5, 2500 / 3, 625.0])
    assert sigmas(4, 5.0)[-1] == 0.0
    with pytest.raises(InputError):
        sigmas(0, 5.0)


def test_euler_rounds_once_a_step() -> None:
    latents, velocity = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    expected = (latents.double() + velocity.double() * -0.0625).to(torch.bfloat16)
    assert torch.equal(euler_step(latents, velocity, 1.0, 0.9375), expected)


@torch.no_grad()
def test_a_larger_patch_keeps_pixels_in_place() -> None:
    config = dataclasses.replace(WorldPlayConfig.tiny(), patch_size=(1, 2, 3), steps=1)
    chunk = fill_random(WorldPlayChunk(config)).eval()
    tokens = torch.arange(1 * 4 * 4 * 24).reshape(1, 16, 24).float()
    latents = chunk.transformer._unpatchify(tokens, 4)
    # Token (t, h, w) holds channels first, then the rows and columns of its patch.
    assert latents[0, 2, 1, 3, 4] == tokens[0, 1 * 4 + 1 * 2 + 1, 2 * 6 + 1 * 3 + 1]
    args, _ = example_inputs(config, 4)
    assert chunk(*args).shape == (1, 4, 4, 4, 6)
