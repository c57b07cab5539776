"""Sizes and constants of Matrix-Game-2.0, checked once so that no forward has to."""

from __future__ import annotations

from dataclasses import dataclass

from ..matrix_game.sizes import FRAMES_PER_LATENT, GameSizes

VAE_STRIDE = 8
"""Pixels of a latent pixel along height and width."""


@dataclass(frozen=True)
class MatrixGame2Config(GameSizes):
    """Every size of the model and every constant of its chunk loop.

    A chunk has `chunk` latent frames, and attention sees a window of `window` frames with the chunk at its end. Of
    `in_channels` the first `out_channels` are noisy, the others tell the first image. Features of that image have
    `image_size` channels and `image_tokens` tokens. `levels` are the noise levels of the denoising steps, of 1000,
    before the schedule is shifted. Raises InputError for sizes that do not fit.
    """

    in_channels: int = 36
    out_channels: int = 16
    hidden_size: int = 1536
    heads: int = 12
    depth: int = 30
    mlp_size: int = 8960
    patch_size: tuple[int, int, int] = (1, 2, 2)
    frequencies: int = 256
    rope_theta: float = 10_000.0
    rope_spread: float = 0.0
    image_size: int = 1280
    image_tokens: int = 257
    action_blocks: int = 15
    action_heads: int = 16
    action_size: int = 1024
    action_rope_dims: tuple[int, int, int] = (8, 28, 28)
    action_rope_theta: float = 256.0
    action_window: int = 3
    action_norm_weight: bool = False
    key_size: int = 128
    mouse_axes: int = 2
    keys: int = 4
    latent_height: int = 44
    latent_width: int = 80
    chunk: int = 3
    window: int = 6
    levels: tuple[int, ...] = (1000, 666, 333)
    shift: float = 5.0

    def __post_init__(self) -> None:
        self.check_positive({"rope_spread", "action_blocks"})
        self.check_heads()
        self.check_patch()
        if self.window < self.chunk:
            why = f"it is {self.window}, and a chunk has {self.chunk} frames"
            raise self.misfit("window", why, "a window holds a chunk at least")
        if self.in_channels <= self.out_channels:
            why = f"{self.in_channels} hold no image beside the {self.out_channels} noisy ones"
            raise self.misfit("in_channels", why, "add the channels of the first image")
        if not self.levels or not all(0 < level <= 1000 for level in self.levels):
            raise self.misfit("levels", f"they are {self.levels}", "give one level at least, each above 0 up to 1000")

    @property
    def condition_channels(self) -> int:
        """Channels that tell the first image: a mask of four, and its latent."""
        return self.in_channels - self.out_channels

    @property
    def action_rows(self) -> int:
        """Video frames whose actions a chunk sees."""
        return FRAMES_PER_LATENT * (self.action_window - 1 + self.chunk)

    @property
    def sigmas(self) -> list[float]:
        """The noise level of each denoising step, shifted: `shift*s / (1 + (shift-1)*s)`."""
        even = [level / 1000 for level in self.levels]
        return [self.shift * level / (1 + (self.shift - 1) * level) for level in even]

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the video."""
        return VAE_STRIDE * self.latent_height, VAE_STRIDE * self.latent_width

    @classmethod
    def universal(cls) -> MatrixGame2Config:
        """The released model for any scene at 640x352: 30 blocks, 880 tokens a latent frame."""
        return cls()

    @classmethod
    def gta_drive(cls) -> MatrixGame2Config:
        """The released model for driving: two keys, ahead and back, and a window of four frames."""
        return cls(keys=2, window=4)

    @classmethod
    def tiny(cls) -> MatrixGame2Config:
        """The size of the parity fixtures: 2 blocks, one with actions, 24 tokens a latent frame."""
        return cls(
            in_channels=8,
            out_channels=4,
            hidden_size=64,
            heads=2,
            depth=2,
            mlp_size=128,
            frequencies=32,
            image_size=24,
            image_tokens=5,
            action_blocks=1,
            action_heads=2,
            action_size=128,
            key_size=16,
            latent_height=8,
            latent_width=12,
        )
