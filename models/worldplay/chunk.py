"""One chunk as one module: select context, rebuild its keys and values, denoise. This is what gets compiled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightint_compile.errors import InputError

from .blocks import KeyValue
from .config import WorldPlayConfig
from .context import ContextSelector
from .sampler import euler_step, sigmas, timesteps
from .transformer import WorldPlayTransformer


class WorldPlayChunk(nn.Module):
    """Generates one chunk of `chunk_frames` latent frames from noise, the history, the cameras and the text.

    The text pass and the prefill are computed in every call, as in a plain implementation.
    """

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = WorldPlayTransformer(config)
        self.selector = ContextSelector(config)

    def forward(
        self,
        noise: Tensor,
        history: Tensor | None,
        extrinsics: Tensor,
        intrinsics: Tensor,
        actions: Tensor,
        image: Tensor,
        text: Tensor,
        glyphs: Tensor,
        vision: Tensor,
    ) -> Tensor:
        """Denoised latents [B, C, chunk, h, w] in the dtype of `noise`.

        Args:
            noise: [B, C, chunk, h, w], standard normal.
            history: [B, C, F, h, w], all latents so far, F a multiple of the chunk; None for the first chunk.
            extrinsics: [B, F + chunk, 4, 4] world-to-camera, rigid, of the history and of this chunk.
            intrinsics: [B, F + chunk, 3, 3], focal lengths over image width and height.
            actions: [B, F + chunk] labels 0..80 (see `actions.py`), as numbers.
            image: [B, C, h, w], latent of the first image, the condition of frame 0.
            text: [B, L, text_dim] language features, padding dropped.
            glyphs: [B, G, glyph_dim] byT5 features, padding dropped; G may be 0.
            vision: [B, V, vision_dim] vision tokens of the first image.

        Raises:
            InputError: shapes that do not fit, checked outside of tracing.
        """
        if not torch.compiler.is_compiling():
            check_shapes(self.config, noise, history, extrinsics, intrinsics, actions, image)
        cache = self.transformer.text_cache(text, glyphs, vision)
        if history is None:
            frames = torch.arange(self.config.chunk_frames, device=noise.device)
            return self._denoise(noise, frames, extrinsics, intrinsics, actions, image, cache, None, 0)
        selected = self.selector(extrinsics, history.shape[2])
        context = self.transformer.prefill(
            self._conditioned(history.index_select(2, selected), selected, image),
            torch.full((noise.shape[0], selected.shape[0]), self.config.context_timestep, device=noise.device),
            actions.index_select(1, selected),
            extrinsics.index_select(1, selected),
            intrinsics.index_select(1, selected),
            cache,
        )
        frames = history.shape[2] + torch.arange(self.config.chunk_frames, device=noise.device)
        return self._denoise(noise, frames, extrinsics, intrinsics, actions, image, cache, context, selected.shape[0])

    def _denoise(
        self,
        latents: Tensor,
        frames: Tensor,
        extrinsics: Tensor,
        intrinsics: Tensor,
        actions: Tensor,
        image: Tensor,
        text: list[KeyValue],
        context: list[KeyValue] | None,
        first_position: int,
    ) -> Tensor:
        config, chunk = self.config, self.config.chunk_frames
        levels = sigmas(config.steps, config.shift)
        for step, time in enumerate(timesteps(config.steps, config.shift)):
            velocity = self.transformer(
                self._conditioned(latents, frames, image),
                torch.full((latents.shape[0], chunk), time, device=latents.device),
                actions[:, -chunk:],
                extrinsics[:, -chunk:],
                intrinsics[:, -chunk:],
                text,
                context,
                first_position,
            )
            latents = euler_step(latents, velocity, levels[step], levels[step + 1])
        return latents

    def _conditioned(self, latents: Tensor, frames: Tensor, image: Tensor) -> Tensor:
        """Append the condition latent and its mask, which are the first image at frame 0 and zero elsewhere."""
        first = (frames == 0).to(latents.dtype)[None, None, :, None, None]
        condition = image[:, :, None] * first
        mask = first.expand(latents.shape[0], 1, -1, *latents.shape[3:])
        return torch.cat([latents, condition, mask], dim=1)


def check_shapes(
    config: WorldPlayConfig,
    noise: Tensor,
    history: Tensor | None,
    extrinsics: Tensor,
    intrinsics: Tensor,
    actions: Tensor,
    image: Tensor,
) -> None:
    """Raise InputError for the first argument of `WorldPlayChunk.forward` whose shape does not fit."""
    batch, chunk = noise.shape[0], config.chunk_frames
    size = (config.in_channels, config.latent_height, config.latent_width)
    past = 0 if history is None else history.shape[2] if history.ndim == 5 else -1
    if past < 0 or past % chunk or (history is not None and past == 0):
        why = f"its shape is {None if history is None else tuple(history.shape)}"
        fix = f"give [batch, channels, frames, height, width] with frames a positive multiple of {chunk}, or None"
        raise InputError("The history does not fit.", where="history", why=why, fix=fix)
    expected = {
        "noise": (noise, (batch, size[0], chunk, *size[1:])),
        "history": (noise if history is None else history, (batch, size[0], past or chunk, *size[1:])),
        "extrinsics": (extrinsics, (batch, past + chunk, 4, 4)),
        "intrinsics": (intrinsics, (batch, past + chunk, 3, 3)),
        "actions": (actions, (batch, past + chunk)),
        "image": (image, (batch, *size)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            why = f"its shape is {tuple(tensor.shape)}, expected {shape}"
            raise InputError(f"The argument {name!r} does not fit.", where=name, why=why, fix="reshape or slice it")
