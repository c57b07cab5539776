"""One chunk as one module: denoise, then commit its clean latents to the caches. This is what gets compiled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightint_compile.errors import InputError

from ..dtypes import wide
from .caches import Caches, slot_of
from .config import MatrixGame2Config
from .transformer import MatrixGame2Transformer


class MatrixGame2Chunk(nn.Module):
    """Generates one chunk of latent frames from noise, the first image, actions and caches, which it writes in place.

    As the released pipeline does: each step estimates the clean latents and adds new noise of the next level; a last
    call at timestep 0 leaves keys and values of the clean latents in the caches.
    """

    def __init__(self, config: MatrixGame2Config) -> None:
        super().__init__()
        self.config = config
        self.transformer = MatrixGame2Transformer(config)

    def forward(
        self,
        noise: Tensor,
        image: Tensor,
        seen: Tensor,
        mouse: Tensor,
        keyboard: Tensor,
        frames: Tensor,
        caches: Caches,
        held: int,
    ) -> Tensor:
        """New latents [B, C, F, h, w] in the dtype of `noise`.

        Args:
            noise: [steps, B, C, F, h, w], standard normal: where a chunk begins, and what later steps add.
            image: [B, condition_channels, F, h, w], the first image as the chunk's frames are told it.
            seen: [B, L, image_size] features of that image; read in the first chunk.
            mouse: [B, `action_rows`, axes] of the latest video frames, as `recent` gives them.
            keyboard: [B, `action_rows`, keys], 1 where a key is down: W, S, A, D.
            frames: [F], indices of the chunk's frames in the video.
            caches: of this rollout, as the chunk before left them.
            held: frames that the caches hold: those before the chunk, at most `window`. 0 in the first chunk.

        Raises:
            InputError: shapes that do not fit, checked outside of tracing.
        """
        if not torch.compiler.is_compiling():
            check_shapes(self.config, noise, image, seen, mouse, keyboard, frames)
        slot, features = slot_of(self.config, held), seen if held == 0 else None
        latents, sigmas = noise[0], self.config.sigmas
        for index, sigma in enumerate(sigmas):
            times = self._times(latents, 1000 * sigma)
            velocity = self.transformer(latents, times, image, features, mouse, keyboard, frames, caches, slot)
            clean = mixed(latents, 1.0, velocity, -sigma)
            # Room is made once; what a step wrote, the next one overwrites.
            slot, features = slot._replace(dropped=0), None
            if index + 1 < len(sigmas):
                latents = mixed(clean, 1 - sigmas[index + 1], noise[index + 1], sigmas[index + 1])
        self.transformer(clean, self._times(clean, 0.0), image, None, mouse, keyboard, frames, caches, slot)
        return clean

    def _times(self, latents: Tensor, time: float) -> Tensor:
        """One a frame [B, F], float32 or wider."""
        return torch.full((latents.shape[0], latents.shape[2]), time, device=latents.device, dtype=wide(latents.dtype))


def mixed(left: Tensor, weight: float, right: Tensor, other: float) -> Tensor:
    """`weight * left + other * right`, computed in float32 or wider, in the dtype of `left`."""
    dtype = wide(left.dtype)
    return (weight * left.to(dtype) + other * right.to(dtype)).to(left.dtype)


def check_shapes(
    config: MatrixGame2Config,
    noise: Tensor,
    image: Tensor,
    seen: Tensor,
    mouse: Tensor,
    keyboard: Tensor,
    frames: Tensor,
) -> None:
    """Raise InputError for the first argument of `MatrixGame2Chunk.forward` whose shape does not fit."""
    batch, size = image.shape[0], (config.chunk, config.latent_height, config.latent_width)
    expected = {
        "noise": (noise, (len(config.levels), batch, config.out_channels, *size)),
        "image": (image, (batch, config.condition_channels, *size)),
        "seen": (seen, (batch, config.image_tokens, config.image_size)),
        "mouse": (mouse, (batch, config.action_rows, config.mouse_axes)),
        "keyboard": (keyboard, (batch, config.action_rows, config.keys)),
        "frames": (frames, (config.chunk,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            why = f"its shape is {tuple(tensor.shape)}, expected {shape}"
            raise InputError(f"The argument {name!r} does not fit.", where=name, why=why, fix="reshape or slice it")
