"""TeaCache: steps are skipped while the modulated input of the first block has changed little.

Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", CVPR 2025 (arXiv 2411.19108).
Of consecutive steps the relative L1 change of `norm(tokens) * (1 + scale) + shift` is summed up; while it is below
the threshold, all blocks are skipped and what they added last is added again. The first and the last step are
computed. The published polynomial that rescales the change is fitted a checkpoint; none is published for this one,
so it is the identity.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn

from lightint_compile.errors import StateError

from .block_rule import BlockRule
from .rule import number as read
from .rule import relative_l1


@dataclasses.dataclass
class TeaCache(BlockRule):
    """`threshold` 0.1 is the published one of HunyuanVideo's 1.6x setting."""

    sweep: ClassVar[tuple[str, ...]] = ("threshold=0.05", "", "threshold=0.3")
    threshold: float = 0.1
    _before: Tensor | None = dataclasses.field(default=None, init=False)
    _sum: float = dataclasses.field(default=0.0, init=False)
    _residual: Tensor | None = dataclasses.field(default=None, init=False)

    def begin_chunk(self) -> None:
        """Nothing is known of the chunk."""
        self._before, self._residual, self._sum = None, None, 0.0

    def skips_all(self, number: int, tokens: Tensor, block: nn.Module, rest: tuple[Any, ...]) -> bool:
        """By the sum of changes."""
        return self.decides(number, modulated_input(block, tokens, *rest))

    def decides(self, number: int, modulated: Tensor) -> bool:
        """Whether step `number` is skipped, with this input of the first block."""
        before, self._before = self._before, modulated
        if number in (0, self._steps - 1) or before is None or self._residual is None:
            self._sum = 0.0
            return False
        self._sum += read(relative_l1(modulated, before))
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


def modulated_input(block: nn.Module, tokens: Tensor, conditions: Any, *rest: Any) -> Tensor:
    """What the attention of a block reads: its norm of the tokens, scaled and shifted by the condition vector.

    Raises:
        StateError: a block with other names of norm and modulation: the rule has one adapter an architecture.
    """
    norm, modulation = getattr(block, "img_norm1", None), getattr(block, "img_mod", None)
    if norm is None or modulation is None:
        why = "it has no img_norm1 and img_mod"
        raise StateError("TeaCache has no adapter for this block", where=type(block).__name__, why=why)
    shift, scale = modulation(conditions.vector)[:2]
    modulated: Tensor = norm(tokens) * (1 + scale) + shift
    return modulated
