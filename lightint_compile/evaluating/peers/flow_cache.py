"""FlowCache's rule for chunks: each chunk decides by itself, from the change of its embedded input.

"Flow Caching for Autoregressive Video Generation", ICLR 2026 (mikeallen39/FlowCache). The relative L1 change of the
embedded latents of a chunk is summed up; while the sum is below the threshold the chunk's blocks are skipped and
add what they added last. The first step of a chunk is computed, and `warmup` ones. Its compression of keys and
values has no counterpart here: this model's context is bounded.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn

from .block_rule import BlockRule
from .rule import number as read
from .rule import relative_l1


@dataclasses.dataclass
class FlowCache(BlockRule):
    """`threshold` 0.01 is the published one of MAGI-1."""

    sweep: ClassVar[tuple[str, ...]] = ("", "threshold=0.1", "threshold=0.3")
    threshold: float = 0.01
    warmup: int = 0
    _before: Tensor | None = dataclasses.field(default=None, init=False)
    _sum: float = dataclasses.field(default=0.0, init=False)
    _residual: Tensor | None = dataclasses.field(default=None, init=False)

    def begin_chunk(self) -> None:
        """A chunk has its own sum."""
        self._before, self._residual, self._sum = None, None, 0.0

    def skips_all(self, number: int, tokens: Tensor, block: nn.Module, rest: tuple[Any, ...]) -> bool:
        """By the sum of changes of the embedded input."""
        return self.decides(number, tokens)

    def decides(self, number: int, tokens: Tensor) -> bool:
        """Whether step `number` is skipped, with these embedded latents."""
        before, self._before = self._before, tokens
        if before is None or self._residual is None or number < self.warmup:
            self._sum = 0.0
            return False
        self._sum += read(relative_l1(tokens, before))
        if self._sum < self.threshold:
            return True
        self._sum = 0.0
        return False

    def residual(self, number: int) -> Tensor:
        """That of the last computed step."""
        assert self._residual is not None
        return self._residual

    def computed_residual(self, number: int, residual: Tensor) -> None:
        """Kept for steps that are skipped."""
        self._residual = residual
