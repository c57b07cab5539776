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

from .summed_change import SummedChange


@dataclasses.dataclass
class TeaCache(SummedChange):
    """`threshold` 0.1 is the published one of HunyuanVideo's 1.6x setting."""

    sweep: ClassVar[tuple[str, ...]] = ("threshold=0.05", "", "threshold=0.3")
    threshold: float = 0.1

    def skips_all(self, number: int, tokens: Tensor, block: nn.Module, rest: tuple[Any, ...]) -> bool:
        """By the sum of changes."""
        return self.decides(number, modulated_input(block, tokens, *rest))

    def always_computed(self, number: int) -> bool:
        """The first step and the last one."""
        return number in (0, self._steps - 1)


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
