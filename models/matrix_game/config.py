"""Sizes and constants of Matrix-Game-3.0, checked once so that no forward has to."""

from __future__ import annotations

from dataclasses import dataclass

from lightint_compile.errors import InputError

FRAMES_PER_LATENT = 4
"""Video frames of a latent frame; the first latent frame of a video has one."""

VAE_STRIDE = 16
"""Pixels of a latent pixel along height and width."""

RAY_CHANNELS = 6 * VAE_STRIDE * VAE_STRIDE
"""Channels of a camera map: ray origin and direction of all pixels of a latent pixel."""


@dataclass(frozen=True)
class MatrixGameConfig:
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
        self._check_positive()
        self._check_heads()
        self._check_grid()

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.heads

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Channels of a head that turn with time, height and width."""
        side = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * side, side, side

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of one latent frame as (height, width)."""
        return self.latent_height // self.patch_size[1], self.latent_width // self.patch_size[2]

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame; 880 at 720p."""
        height, width = self.grid
        return height * width

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

    def _check_positive(self) -> None:
        may_be_zero = {"rope_spread", "action_blocks", "memory"}
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if value < 0 or (value == 0 and name not in may_be_zero):
                raise _error(name, f"it is {value}", "give a positive value")

    def _check_heads(self) -> None:
        for name, size, heads in (
            ("heads", self.hidden_size, self.heads),
            ("action_heads", self.action_size, self.action_heads),
        ):
            if size % heads or size // heads % 2:
                raise _error(name, f"{heads} heads do not divide {size} into even parts", "use a divisor")
        width = self.action_size // self.action_heads
        if sum(self.action_rope_dims) != width or any(dim % 2 for dim in self.action_rope_dims):
            why = f"{self.action_rope_dims} is not three even numbers that sum to {width}"
            raise _error("action_rope_dims", why, "split a head over time, height and width in pairs")

    def _check_grid(self) -> None:
        time, height, width = self.patch_size
        if time != 1:
            raise _error("patch_size", f"its time side is {time}", "use 1: cameras and actions are per latent frame")
        for name, side, patch in (
            ("latent_height", self.latent_height, height),
            ("latent_width", self.latent_width, width),
        ):
            if patch < 1 or side % patch:
                raise _error(name, f"{side} is not divisible by the patch side {patch}", "pad or crop the latent")
        if not self.overlap < self.later_clip <= self.first_clip:
            why = f"overlap {self.overlap}, later_clip {self.later_clip}, first_clip {self.first_clip}"
            raise _error("later_clip", why, "a later clip is longer than the overlap and no longer than the first")


def _error(field: str, why: str, fix: str) -> InputError:
    return InputError(f"MatrixGameConfig.{field} does not fit.", where=f"MatrixGameConfig.{field}", why=why, fix=fix)
