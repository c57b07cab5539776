"""Sizes and constants of Matrix-Game-3.0, checked once so that no forward has to."""

from __future__ import annotations

from dataclasses import dataclass

from .sizes import GameSizes

VAE_STRIDE = 16
"""Pixels of a latent pixel along height and width."""

RAY_CHANNELS = 6 * VAE_STRIDE * VAE_STRIDE
"""Channels of a camera map: ray origin and direction of all pixels of a latent pixel."""


@dataclass(frozen=True)
class MatrixGameConfig(GameSizes):
    """Every size of the model and every constant of its clip loop.

    Clips count latent frames: the first has `first_clip`, later ones `later_clip`, of which the first `overlap` are the
    latest of the clip before, kept as they are. A later clip gathers `memory` frames of the past. `patch_size` is
    (time, height, width) with time 1. `action_blocks` blocks from the first on have an action module; its windows hold
    `action_window` latent frames of actions. With `int8` the projections of both attentions are 8 bit.
    `action_norm_weight` applies the weights of the action module's query and key norms, which the released code
    declares and ignores. Raises InputError for sizes that do not fit.
    """

    in_channels: int = 48
    out_channels: int = 48
    hidden_size: int = 3072
    heads: int = 24
    depth: int = 30
    mlp_size: int = 14336
    patch_size: tuple[int, int, int] = (1, 2, 2)
    frequencies: int = 256
    rope_theta: float = 10_000.0
    rope_spread: float = 0.8
    text_dim: int = 4096
    text_length: int = 512
    action_blocks: int = 15
    action_heads: int = 16
    action_size: int = 1024
    action_rope_dims: tuple[int, int, int] = (8, 28, 28)
    action_rope_theta: float = 256.0
    action_window: int = 3
    action_norm_weight: bool = False
    key_size: int = 128
    mouse_axes: int = 2
    keys: int = 6
    latent_height: int = 44
    latent_width: int = 80
    first_clip: int = 15
    later_clip: int = 14
    overlap: int = 4
    memory: int = 5
    steps: int = 3
    shift: float = 5.0
    int8: bool = False

    def __post_init__(self) -> None:
        self.check_positive({"rope_spread", "action_blocks", "memory"})
        self.check_heads()
        self.check_patch()
        self._check_clips()

    @property
    def sequence(self) -> int:
        """Tokens that every call is padded to: the first clip and the memory."""
        return (self.first_clip + self.memory) * self.tokens_per_frame

    @property
    def new_frames(self) -> int:
        """Latent frames that a later clip adds."""
        return self.later_clip - self.overlap

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the video."""
        return VAE_STRIDE * self.latent_height, VAE_STRIDE * self.latent_width

    @classmethod
    def base_5b_720p(cls) -> MatrixGameConfig:
        """The released 6.470 B parameter model at 1280x704: 30 blocks, 880 tokens a latent frame."""
        return cls()

    @classmethod
    def tiny(cls) -> MatrixGameConfig:
        """The size of the parity fixtures: 2 blocks, one with actions, 6 tokens a latent frame."""
        return cls(
            in_channels=6,
            out_channels=6,
            hidden_size=96,
            heads=4,
            depth=2,
            mlp_size=160,
            frequencies=32,
            text_dim=20,
            text_length=8,
            action_blocks=1,
            action_heads=2,
            action_size=64,
            action_rope_dims=(8, 12, 12),
            key_size=16,
            latent_height=4,
            latent_width=6,
        )

    def latent_frames(self, clips: int) -> int:
        """Latent frames after so many clips."""
        return self.first_clip + (clips - 1) * self.new_frames

    def _check_clips(self) -> None:
        if not self.overlap < self.later_clip <= self.first_clip:
            why = f"overlap {self.overlap}, later_clip {self.later_clip}, first_clip {self.first_clip}"
            raise self.misfit("later_clip", why, "a later clip is longer than the overlap and no longer than the first")
