"""Sizes and constants of HY-WorldPlay, checked once so that no forward has to."""

from __future__ import annotations

from dataclasses import dataclass

from ..video_sizes import VideoSizes


@dataclass(frozen=True)
class WorldPlayConfig(VideoSizes):
    """Every size of the model and every constant of its chunk loop.

    Lengths count latent frames (4 video frames each) and latent pixels. `patch_size` is (time, height, width); time
    must be 1 because a latent frame is the unit of camera, action and timestep. `memory` is the most context frames
    gathered, of which `recent` are the newest, `sink` the first of the video, and the rest retrieved in clips of
    `chunk_frames` by view overlap over `fov_points` fixed points. Raises InputError for sizes that do not fit.
    """

    in_channels: int = 32
    out_channels: int = 32
    hidden_size: int = 2048
    heads: int = 16
    depth: int = 54
    mlp_ratio: int = 4
    patch_size: tuple[int, int, int] = (1, 1, 1)
    rope_dims: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 256.0
    text_dim: int = 3584
    glyph_dim: int = 1472
    glyph_hidden: int = 2048
    vision_dim: int = 1152
    vision_tokens: int = 729
    refiner_depth: int = 2
    latent_height: int = 30
    latent_width: int = 52
    chunk_frames: int = 4
    steps: int = 4
    shift: float = 5.0
    context_timestep: float = 14.0
    memory: int = 20
    recent: int = 12
    sink: int = 4
    fov_points: int = 50_000

    def __post_init__(self) -> None:
        self.check_positive({"vision_tokens", "refiner_depth", "context_timestep", "sink"})
        self._check_heads()
        self.check_patch()
        self._check_memory()

    @property
    def input_channels(self) -> int:
        """Channels the patch embedding sees: noisy latent, condition latent, mask."""
        return 2 * self.in_channels + 1

    @property
    def retrieved_clips(self) -> int:
        """Clips that view overlap adds to the context once the history is longer than `memory`."""
        return (self.memory - self.recent - self.sink) // self.chunk_frames

    @classmethod
    def hy_8b_480p(cls) -> WorldPlayConfig:
        """The released 8.558 B parameter model at 832x480: 54 blocks, 1560 tokens a latent frame."""
        return cls()

    @classmethod
    def demo(cls) -> WorldPlayConfig:
        """Small enough for two CPU cores, every mechanism still present: 4 blocks, 96 tokens a latent frame."""
        return cls(
            in_channels=8,
            out_channels=8,
            hidden_size=128,
            heads=4,
            depth=4,
            rope_dims=(8, 12, 12),
            text_dim=64,
            glyph_hidden=128,
            vision_dim=48,
            vision_tokens=8,
            latent_height=8,
            latent_width=12,
            fov_points=2048,
        )

    @classmethod
    def tiny(cls) -> WorldPlayConfig:
        """The size of the parity fixtures: 2 blocks, 24 tokens a latent frame."""
        return cls(
            in_channels=4,
            out_channels=4,
            hidden_size=64,
            heads=2,
            depth=2,
            rope_dims=(8, 12, 12),
            text_dim=24,
            vision_dim=20,
            vision_tokens=5,
            latent_height=4,
            latent_width=6,
            fov_points=512,
        )

    def _check_heads(self) -> None:
        if self.hidden_size % self.heads:
            raise self.misfit(
                "heads", f"{self.heads} heads do not divide hidden_size {self.hidden_size}", "use a divisor"
            )
        if self.head_dim % 4:
            raise self.misfit(
                "heads", f"head_dim {self.head_dim} is no multiple of 4", "camera matrices act on groups of 4"
            )
        if sum(self.rope_dims) != self.head_dim or any(dim % 2 for dim in self.rope_dims):
            why = f"{self.rope_dims} is not three even numbers that sum to head_dim {self.head_dim}"
            raise self.misfit("rope_dims", why, "split head_dim over time, height and width in pairs")

    def _check_memory(self) -> None:
        spare = self.memory - self.recent - self.sink
        if spare < 0 or spare % self.chunk_frames:
            why = f"memory {self.memory} - recent {self.recent} - sink {self.sink} = {spare}"
            raise self.misfit(
                "memory", why, f"leave a non-negative multiple of chunk_frames {self.chunk_frames} for retrieval"
            )
        for name in ("recent", "sink"):
            if getattr(self, name) % self.chunk_frames:
                why = f"it is {getattr(self, name)}"
                raise self.misfit(name, why, f"use a multiple of chunk_frames {self.chunk_frames}")
