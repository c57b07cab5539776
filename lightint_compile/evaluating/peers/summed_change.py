"""Rules that sum up how much one tensor changes from step to step, and skip all blocks while the sum is small."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from .block_rule import LastResidual
from .rule import number as read
from .rule import relative_l1


@dataclasses.dataclass
class SummedChange(LastResidual):
    """Skips while the sum of relative L1 changes is below `threshold`; a computed step begins a new sum."""

    threshold: float = 0.1
    _before: Tensor | None = dataclasses.field(default=None, init=False)
    _sum: float = dataclasses.field(default=0.0, init=False)

    def begin_chunk(self) -> None:
        """A chunk has its own sum."""
        super().begin_chunk()
        self._before, self._sum = None, 0.0

    def always_computed(self, number: int) -> bool:
        """Whether step `number` is computed whatever has changed."""
        return False

    def decides(self, number: int, tokens: Tensor) -> bool:
        """Whether step `number` is skipped, with these values of the tensor that is looked at."""
        before, self._before = self._before, tokens
        if before is not None and self._residual is not None and not self.always_computed(number):
            self._sum += read(relative_l1(tokens, before))
            if self._sum < self.threshold:
                return True
        self._sum = 0.0
        return False
