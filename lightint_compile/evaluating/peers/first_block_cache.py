"""First-Block Cache: when the first block's residual has changed little, the others are skipped.

ParaAttention (C. Zeyi, 2024), the rule that diffusers and cache-dit took over: the first block is always computed;
if the relative L1 change of what it adds, against the last computed step, is below the threshold, the other blocks
add what they added then.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from .block_rule import LastResidual
from .rule import number as read
from .rule import relative_l1


@dataclasses.dataclass
class FirstBlockCache(LastResidual):
    """`threshold` 0.12 is the published one of FLUX."""

    sweep: ClassVar[tuple[str, ...]] = ("threshold=0.06", "", "threshold=0.3")
    threshold: float = 0.12
    _first: Tensor | None = dataclasses.field(default=None, init=False)

    def begin_chunk(self) -> None:
        """Nothing is known of the chunk."""
        super().begin_chunk()
        self._first = None

    def skips_rest(self, number: int, before: Tensor, after: Tensor) -> bool:
        """By the change of the first residual."""
        return self.decides(after - before)

    def decides(self, first: Tensor) -> bool:
        """Whether the other blocks are skipped, with this residual of the first."""
        known = self._first if self._residual is not None else None
        if known is not None and read(relative_l1(first, known)) < self.threshold:
            return True
        self._first = first
        return False
