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

from .summed_change import SummedChange


@dataclasses.dataclass
class FlowCache(SummedChange):
    """`threshold` 0.01 is the published one of MAGI-1."""

    sweep: ClassVar[tuple[str, ...]] = ("", "threshold=0.1", "threshold=0.3")
    threshold: float = 0.01
    warmup: int = 0

    def skips_all(self, number: int, tokens: Tensor, block: nn.Module, rest: tuple[Any, ...]) -> bool:
        """By the sum of changes of the embedded input."""
        return self.decides(number, tokens)

    def always_computed(self, number: int) -> bool:
        """The steps that warm up."""
        return number < self.warmup
