"""The loop over chunks: the model's use as a person would write it, one result at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.errors import InputError

from ..matrix_game.sizes import FRAMES_PER_LATENT
from ..matrix_game.trajectory import held_actions
from ..random_weights import drawer
from ..world_model import ChunkResult
from .caches import Caches, empty_caches
from .config import MatrixGame2Config


@dataclass(frozen=True)
class Actions:
    """What is done in every video frame: `mouse` [V, 2], up-down and left-right, and `keyboard` [V, keys]."""

    mouse: Tensor
    keyboard: Tensor

    @classmethod
    def held(cls, text: str) -> Actions:
        """From keys held for a number of latent frames each, such as `"w-5,a+left-6"`.

        Keys: `w` `s` `a` `d` move, `left` `right` `up` `down` turn. There is one latent frame more than the counts sum
        to. Raises InputError for a text that cannot be read.
        """
        return cls(*held_actions(text))

    def __len__(self) -> int:
        """Latent frames: the first has one video frame, every other four."""
        return (self.mouse.shape[0] - 1) // FRAMES_PER_LATENT + 1


@dataclass(frozen=True)
class Scene:
    """The first image: `image` [1, condition_channels, F, h, w] as it is told to every frame, `seen` [1, L, C] of CLIP.

    The released pipeline makes `image` of a mask of four channels, 1 in frame 0, and the latents of a video that is
    the image and then grey.
    """

    image: Tensor
    seen: Tensor


def example_scene(
    config: MatrixGame2Config,
    frames: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Scene:
    """A random first image for so many latent frames. On meta, shapes alone."""
    draw = drawer(device, dtype, seed)
    image = draw(1, config.condition_channels, frames, config.latent_height, config.latent_width)
    return Scene(image, draw(1, config.image_tokens, config.image_size))


def recent(config: MatrixGame2Config, rows: Tensor, first: int) -> Tensor:
    """Actions [B, `action_rows`, C] that the chunk from latent frame `first` on sees, of those of a video [B, V, C].

    A latent frame sees the video frames before its last one. The first row stands for those before the video.
    """
    begin = FRAMES_PER_LATENT * (first - config.action_window)
    places = torch.arange(begin, begin + config.action_rows, device=rows.device).clamp_min(0)
    return rows[:, places]


def rollout(
    chunk: Callable[..., Tensor], config: MatrixGame2Config, scene: Scene, actions: Actions, seed: int = 0
) -> Iterator[ChunkResult]:
    """Generate chunk after chunk while keys are held.

    `chunk` is a `MatrixGame2Chunk`, compiled or not. Device and dtype are those of `scene.image`. Raises InputError
    before the first chunk for actions that are no whole number of chunks or too many for the scene.
    """
    frames = len(actions)
    if frames % config.chunk or actions.mouse.shape[0] % FRAMES_PER_LATENT != 1:
        why = f"they are {actions.mouse.shape[0]} video frames, {frames} latent frames; a chunk has {config.chunk}"
        fix = f'keys held have one frame more than their counts sum to, so "w-{config.chunk - 1}" is one chunk'
        raise InputError("The actions are no whole number of chunks.", where="actions", why=why, fix=fix)
    if frames > scene.image.shape[2]:
        why = f"the image is told to {scene.image.shape[2]} latent frames, and actions are of {frames}"
        raise InputError("The scene is too short.", where="scene.image", why=why, fix="make it as long as the actions")
    caches = empty_caches(config, 1, scene.image.device, scene.image.dtype)
    return _chunks(chunk, config, scene, actions, caches, seed)


def _chunks(
    chunk: Callable[..., Tensor],
    config: MatrixGame2Config,
    scene: Scene,
    actions: Actions,
    caches: Caches,
    seed: int,
) -> Iterator[ChunkResult]:
    # Drawn on the CPU, so that devices agree.
    like, generator = scene.image, torch.Generator().manual_seed(seed)
    shape = (len(config.levels), 1, config.out_channels, config.chunk, config.latent_height, config.latent_width)
    rows = [each[None].to(like.device) for each in (actions.mouse, actions.keyboard)]
    history: Tensor | None = None
    for index, first in enumerate(range(0, len(actions), config.chunk)):
        last = first + config.chunk
        noise = torch.randn(shape, generator=generator).to(like.device, like.dtype)
        seen = [recent(config, each, first) for each in rows]
        frames = torch.arange(first, last, device=like.device)
        held = min(first, config.window)
        with torch.no_grad():
            latents = chunk(noise, like[:, :, first:last].contiguous(), scene.seen, *seen, frames, caches, held)
        history = latents if history is None else torch.cat([history, latents], dim=2)
        yield ChunkResult(index, latents, history)
