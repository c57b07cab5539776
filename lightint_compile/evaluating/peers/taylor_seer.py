"""TaylorSeer: features of skipped steps are forecast by a Taylor series over computed ones.

Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", ICCV 2025 (arXiv
2503.06923). Every `interval`-th step is computed; between them features go on by their finite difference over
computed steps, order 1 here. The authors forecast each attention and MLP; this is the form that looks at the whole
stack of blocks, as their lite variant does. Before there are two computed steps the feature is held.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn

from .block_rule import BlockRule


@dataclasses.dataclass
class TaylorSeer(BlockRule):
    """`interval` 5 is the published one of video models; of 4 steps it computes the first alone."""

    sweep: ClassVar[tuple[str, ...]] = ("interval=2", "interval=3", "")
    interval: int = 5
    _known: list[tuple[int, Tensor]] = dataclasses.field(default_factory=list, init=False)

    def begin_chunk(self) -> None:
        """Nothing is known of the chunk."""
        self._known = []

    def skips_all(self, number: int, tokens: Tensor, block: nn.Module, rest: tuple[Any, ...]) -> bool:
        """All but every `interval`-th step."""
        return number % int(self.interval) != 0

    def residual(self, number: int) -> Tensor:
        """On by the difference of the two last computed steps."""
        step, newest = self._known[-1]
        if len(self._known) == 1:
            return newest
        before, older = self._known[-2]
        return newest + (newest - older) * ((number - step) / (step - before))

    def computed_residual(self, number: int, residual: Tensor) -> None:
        """The two newest are kept."""
        self._known = [*self._known[-1:], (number, residual)]
