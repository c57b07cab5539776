"""Sizes that the models of this line share: those of their layers, their actions and their positions."""

from __future__ import annotations

from ..video_sizes import VideoSizes

FRAMES_PER_LATENT = 4
"""Video frames of a latent frame; the first latent frame of a video has one."""


class GameSizes(VideoSizes):
    """A base of frozen configurations of a transformer over latent frames that mouse and keyboard steer.

    An action module sees windows of `action_window` latent frames of actions; `action_norm_weight` applies the weights
    of its query and key norms, which the released code declares and ignores. `rope_spread` is how far the bases of
    RoPE differ from head to head, 0 where all heads have one.
    """

    in_channels: int
    out_channels: int
    depth: int
    mlp_size: int
    frequencies: int
    rope_theta: float
    rope_spread: float
    action_blocks: int
    action_heads: int
    action_size: int
    action_rope_dims: tuple[int, int, int]
    action_rope_theta: float
    action_window: int
    action_norm_weight: bool
    key_size: int
    mouse_axes: int
    keys: int

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Channels of a head that turn with time, height and width."""
        side = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * side, side, side

    def check_heads(self) -> None:
        """Raise InputError for heads that do not divide their channels."""
        for name, size, heads in (
            ("heads", self.hidden_size, self.heads),
            ("action_heads", self.action_size, self.action_heads),
        ):
            if size % heads or size // heads % 2:
                raise self.misfit(name, f"{heads} heads do not divide {size} into even parts", "use a divisor")
        width = self.action_size // self.action_heads
        if sum(self.action_rope_dims) != width or any(dim % 2 for dim in self.action_rope_dims):
            why = f"{self.action_rope_dims} is not three even numbers that sum to {width}"
            raise self.misfit("action_rope_dims", why, "split a head over time, height and width in pairs")
