"""One clip as one module: remember, look, denoise. This is what gets compiled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightint_compile.errors import InputError

from ..dtypes import wide
from .cameras import ray_map, seen_from, steps_of
from .config import MatrixGameConfig
from .memory import camera_poses, reference_poses, remembered
from .sampler import UniPC
from .sizes import FRAMES_PER_LATENT
from .transformer import MatrixGameTransformer


class MatrixGameClip(nn.Module):
    """Generates one clip of latent frames from noise, the history, cameras, actions and text.

    As the released pipeline does, without classifier-free guidance: its distilled model needs none.
    """

    def __init__(self, config: MatrixGameConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = MatrixGameTransformer(config)
        self.sampler = UniPC(config.steps, config.shift)

    def forward(
        self,
        noise: Tensor,
        history: Tensor | None,
        extrinsics: Tensor,
        mouse: Tensor,
        keyboard: Tensor,
        image: Tensor,
        text: Tensor,
    ) -> Tensor:
        """New latents [B, C, T, h, w] in the dtype of `noise`: all of the first clip, later those past the overlap.

        Args:
            noise: [B, C, F, h, w], standard normal; F is `first_clip`, or `later_clip` with a history.
            history: [B, C, P, h, w], all latents so far; None for the first clip.
            extrinsics: [B, V, 4, 4] world-to-camera, rigid, of every video frame to the end of this clip: of latent
                frame 0 one, of every other four.
            mouse: [B, V, 2], up-down and left-right.
            keyboard: [B, V, 6], 1 where a key is down; the first four are W, S, A, D.
            image: [B, C, 1, h, w], latent of the first image, which is latent frame 0.
            text: [B, n, text_dim] features of the prompt, n at most `text_length`.

        Raises:
            InputError: shapes that do not fit, checked outside of tracing.
        """
        if not torch.compiler.is_compiling():
            check_shapes(self.config, noise, history, extrinsics, mouse, keyboard, image, text)
        poses = camera_poses(extrinsics)
        cameras = ray_map(self.config, steps_of(self._clip_poses(poses, noise.shape[2])))
        frames = torch.arange(noise.shape[2], device=noise.device)
        memory, clean = None, image
        if history is not None:
            chosen = remembered(self.config, poses)
            memory, clean = history.index_select(2, chosen), history[:, :, -self.config.overlap :]
            frames = torch.cat([chosen, frames + (history.shape[2] - self.config.overlap)])
            recalled = poses.index_select(1, FRAMES_PER_LATENT * chosen)
            views = seen_from(reference_poses(self.config, poses), recalled)
            cameras = torch.cat([ray_map(self.config, views), cameras], dim=2)
        latents = self._denoise(noise, clean, memory, frames, cameras, mouse, keyboard, text)
        return latents if history is None else latents[:, :, self.config.overlap :]

    def _clip_poses(self, poses: Tensor, frames: int) -> Tensor:
        """Poses of the latent frames of the clip: each is that of its last video frame."""
        span = FRAMES_PER_LATENT * (frames - 1) + 1
        return poses[:, -span::FRAMES_PER_LATENT]

    def _denoise(
        self,
        noise: Tensor,
        clean: Tensor,
        memory: Tensor | None,
        frames: Tensor,
        cameras: Tensor,
        mouse: Tensor,
        keyboard: Tensor,
        text: Tensor,
    ) -> Tensor:
        kept, video = clean.shape[2], video_frames(noise.shape[2], memory is None)
        cameras = cameras.to(noise.dtype)
        latents = torch.cat([clean, noise[:, :, kept:]], dim=2)
        last = latents
        estimates: list[Tensor] = []
        for index, time in enumerate(self.sampler.timesteps):
            velocity = self.transformer(
                latents,
                self._timestep(latents, kept, time),
                text,
                cameras,
                mouse[:, -video:],
                keyboard[:, -video:],
                frames,
                memory,
            )
            estimate = self.sampler.clean(latents, velocity, index)
            if index > 0:
                latents = self.sampler.correct(last, estimates, estimate, index)
            estimates.append(estimate)
            last = latents
            latents = self.sampler.predict(latents, estimates, index)
            latents = torch.cat([clean, latents[:, :, kept:]], dim=2)
        return latents

    def _timestep(self, latents: Tensor, kept: int, time: float) -> Tensor:
        """One a token [B, F*S1], float32 or wider: 0 for the `kept` clean frames."""
        batch, frames, tokens = latents.shape[0], latents.shape[2], self.config.tokens_per_frame
        noisy = torch.full((batch, frames - kept, tokens), time, device=latents.device, dtype=wide(latents.dtype))
        return torch.cat([noisy.new_zeros(batch, kept, tokens), noisy], dim=1).flatten(1)


def video_frames(latents: int, first: bool) -> int:
    """Video frames of so many latent frames; latent frame 0 has one, every other four."""
    return FRAMES_PER_LATENT * latents - (FRAMES_PER_LATENT - 1 if first else 0)


def check_shapes(
    config: MatrixGameConfig,
    noise: Tensor,
    history: Tensor | None,
    extrinsics: Tensor,
    mouse: Tensor,
    keyboard: Tensor,
    image: Tensor,
    text: Tensor,
) -> None:
    """Raise InputError for the first argument of `MatrixGameClip.forward` whose shape does not fit."""
    batch, size = noise.shape[0], (config.latent_height, config.latent_width)
    past = 0 if history is None else history.shape[2] if history.ndim == 5 else -1
    if history is not None and (past < config.first_clip or (past - config.first_clip) % config.new_frames):
        why = f"its shape is {tuple(history.shape)}"
        fix = f"give [batch, channels, frames, height, width] with {config.first_clip} frames and a multiple of "
        raise InputError("The history does not fit.", where="history", why=why, fix=f"{fix}{config.new_frames}")
    clip = config.first_clip if history is None else config.later_clip
    video = video_frames(config.first_clip if history is None else past + config.new_frames, True)
    expected = {
        "noise": (noise, (batch, config.in_channels, clip, *size)),
        "history": (noise if history is None else history, (batch, config.in_channels, past or clip, *size)),
        "extrinsics": (extrinsics, (batch, video, 4, 4)),
        "mouse": (mouse, (batch, video, config.mouse_axes)),
        "keyboard": (keyboard, (batch, video, config.keys)),
        "image": (image, (batch, config.in_channels, 1, *size)),
        "text": (text, (batch, min(text.shape[1], config.text_length), config.text_dim)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            why = f"its shape is {tuple(tensor.shape)}, expected {shape}"
            raise InputError(f"The argument {name!r} does not fit.", where=name, why=why, fix="reshape or slice it")
