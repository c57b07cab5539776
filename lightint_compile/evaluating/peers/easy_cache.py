"""EasyCache: steps are skipped while the output is predicted to change little, by how much it followed its input.

Zhou et al., "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching" (arXiv
2507.02860, H-EmbodVis/EasyCache). With k the ratio of the change of outputs to the change of inputs at computed
steps, `k * |x - x before| / |output|` is summed up; while the sum is below the threshold, the output is the input
plus what the model added last. The authors compute the first 10 of 50 steps and the last: here the first fifth,
rounded up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from .rule import StepRule
from .rule import number as read


@dataclasses.dataclass
class EasyCache(StepRule):
    """`threshold` 0.05 is the published one of Wan 2.1."""

    sweep: ClassVar[tuple[str, ...]] = ("threshold=0.025", "", "threshold=0.2")
    threshold: float = 0.05
    _inputs: list[Tensor] = dataclasses.field(default_factory=list, init=False)
    _output: Tensor | None = dataclasses.field(default=None, init=False)
    _k: float | None = dataclasses.field(default=None, init=False)
    _sum: float = dataclasses.field(default=0.0, init=False)
    _added: Tensor | None = dataclasses.field(default=None, init=False)

    def begin_chunk(self) -> None:
        """Nothing is known of the chunk."""
        self._inputs, self._output, self._added = [], None, None
        self._k, self._sum = None, 0.0

    def step(self, number: int, compute: Callable[[], Tensor], latents: Tensor) -> Tensor:
        """See `StepRule.step`."""
        skipped = self._skips(number, latents)
        before = self._inputs[-1:]
        self._inputs = [*before, latents]
        noisy = latents[:, : self._output.shape[1]] if self._output is not None else latents
        if skipped:
            assert self._added is not None
            return noisy + self._added
        output = compute()
        self._learn(output, latents, before)
        return output

    def _skips(self, number: int, latents: Tensor) -> bool:
        if number < math.ceil(self._steps / 5) or number >= self._steps - 1:
            self._sum = 0.0
            return False
        if not self._inputs or self._output is None or self._k is None:
            return False
        change = read((latents - self._inputs[-1]).abs().mean() / self._output.abs().mean())
        self._sum += self._k * change
        if self._sum < self.threshold:
            return True
        self._sum = 0.0
        return False

    def _learn(self, output: Tensor, latents: Tensor, before: list[Tensor]) -> None:
        """The ratio k, and what the model adds, from a step that was computed."""
        if self._output is not None and before:
            self._k = read((output - self._output).abs().mean() / (latents - before[0]).abs().mean())
        self._output = output
        self._added = output - latents[:, : output.shape[1]]
