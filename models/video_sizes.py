"""What the sizes of every video transformer here have in common, and the checks of them."""

from __future__ import annotations

from collections.abc import Collection

from lightint_compile.errors import InputError


class VideoSizes:
    """A base of frozen configurations of a transformer over latent frames of patches.

    Lengths count latent frames and latent pixels. `patch_size` is (time, height, width); time must be 1 because a
    latent frame is the unit of camera, action and timestep.
    """

    hidden_size: int
    heads: int
    patch_size: tuple[int, int, int]
    latent_height: int
    latent_width: int

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.heads

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of one latent frame as (height, width)."""
        return self.latent_height // self.patch_size[1], self.latent_width // self.patch_size[2]

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        height, width = self.grid
        return height * width

    def misfit(self, field: str, why: str, fix: str) -> InputError:
        """The error of a field that does not fit."""
        where = f"{type(self).__name__}.{field}"
        return InputError(f"{where} does not fit.", where=where, why=why, fix=fix)

    def check_positive(self, may_be_zero: Collection[str]) -> None:
        """Raise InputError for a number that is not positive."""
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if value < 0 or (value == 0 and name not in may_be_zero):
                raise self.misfit(name, f"it is {value}", "give a positive value")

    def check_patch(self) -> None:
        """Raise InputError for patches that do not tile a latent frame."""
        time, height, width = self.patch_size
        if time != 1:
            raise self.misfit("patch_size", f"its time side is {time}", "use 1: camera and action are per latent frame")
        for name, side, patch in (
            ("latent_height", self.latent_height, height),
            ("latent_width", self.latent_width, width),
        ):
            if patch < 1 or side % patch:
                raise self.misfit(name, f"{side} is not divisible by the patch side {patch}", "pad or crop the latent")
