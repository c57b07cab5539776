"""How far a result is from the exact one, and how far it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

MARGIN = 0.8
"""Share of a budget that a calibrated setting may use: other rollouts differ from the calibrated one."""


@dataclass(frozen=True)
class Deviation:
    """The distance between a result and the exact one.

    Attributes:
        relative: L2 norm of the difference over that of the exact result; infinite for what is not a number.
        psnr: peak signal-to-noise ratio in decibels, with the range of the exact result as the peak.
    """

    relative: float = 0.0
    psnr: float = math.inf

    def worst(self, other: Deviation) -> Deviation:
        """The worse of two, measure by measure."""
        return Deviation(max(self.relative, other.relative), min(self.psnr, other.psnr))

    @property
    def within_margin(self) -> Deviation:
        """The deviation that a share :data:`MARGIN` of a budget allows where the whole budget allows this one."""
        return Deviation(MARGIN * self.relative, self.psnr - 20 * math.log10(MARGIN))

    def __str__(self) -> str:
        return f"relative error {self.relative:.3g}, {self.psnr:.1f} dB"


@dataclass(frozen=True)
class Budget:
    """How far results may be from the exact ones; where both are stated, both are kept.

    Attributes:
        max_relative_error: largest relative error, ``None`` for any.
        min_psnr: smallest ratio in decibels, ``None`` for any.
    """

    max_relative_error: float | None = None
    min_psnr: float | None = None

    @property
    def is_stated(self) -> bool:
        """Whether anything is asked for."""
        return self.max_relative_error is not None or self.min_psnr is not None

    @property
    def is_exact(self) -> bool:
        """Whether nothing may move."""
        return self.max_relative_error == 0 or self.min_psnr == math.inf

    def allows(self, deviation: Deviation, margin: float = 1.0) -> bool:
        """Whether a deviation stays within the share ``margin`` of the budget."""
        most, least = self.max_relative_error, self.min_psnr
        near = most is None or deviation.relative <= margin * most
        return near and (least is None or deviation.psnr >= least - 20 * math.log10(margin))

    def reached_by(self, deviation: Deviation) -> Budget:
        """The smallest budget, in the same measures, that a deviation fits with the margin; rounded up."""
        relative = _rounded_up(deviation.relative / MARGIN) if self.max_relative_error is not None else None
        psnr = math.floor(deviation.psnr + 20 * math.log10(MARGIN)) if self.min_psnr is not None else None
        return Budget(relative, psnr)

    def __str__(self) -> str:
        parts = [f"max_relative_error={self.max_relative_error:g}"] if self.max_relative_error is not None else []
        return ", ".join(parts + ([f"min_psnr={self.min_psnr:g}"] if self.min_psnr is not None else []))


def _rounded_up(value: float) -> float:
    """To two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1) if 0 < value < math.inf else 1.0
    return math.ceil(value / unit) * unit if value < math.inf else value
