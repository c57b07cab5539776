"""UniPC (bh2, order 2) for flow matching, with its coefficients as numbers.

UniPC (Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", 2023) predicts the next latents from the latest
two estimates of the clean ones, and corrects them once the network has seen the prediction. diffusers'
`UniPCMultistepScheduler` solves the same equations, and a test compares the two; it is not used because its own
schedule starts at a noise level of 1 instead of 0.9998 (timesteps 999, 909, 714 instead of 999, 908, 713), and because
its step searches the timestep among tensors, which ends a graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.errors import InputError

from ..dtypes import wide

_TRAINING_STEPS = 1000


def sigmas(steps: int, shift: float) -> list[float]:
    """Noise levels, `steps + 1` of them, from 0.9998 (for a shift of 5) to 0: `shift*s / (1 + (shift-1)*s)`."""
    if steps < 1 or shift <= 0:
        why = f"steps is {steps}, shift is {shift}"
        raise InputError("A schedule needs at least one step and a positive shift.", where="sigmas", why=why)
    most = 1.0 - 1.0 / _TRAINING_STEPS
    even = [most * (1.0 - index / steps) for index in range(steps + 1)]
    return [shift * level / (1.0 + (shift - 1.0) * level) for level in even]


def timesteps(steps: int, shift: float) -> list[float]:
    """What the network is told: whole numbers rounded to bfloat16, 1000, 908 and 712 for 3 steps with a shift of 5."""
    whole = [float(int(_TRAINING_STEPS * sigma)) for sigma in sigmas(steps, shift)[:-1]]
    return torch.tensor(whole, dtype=torch.bfloat16, device="cpu").tolist()


@dataclass(frozen=True)
class _Weights:
    """One linear combination: of the latents, of the newest estimate, of the one before, and of that to come."""

    latents: float
    newest: float
    before: float = 0.0
    coming: float = 0.0


class UniPC:
    """Steps of the sampler as linear combinations; `step` keeps no state, so that a loop over it is one graph."""

    def __init__(self, steps: int, shift: float) -> None:
        self.sigmas = sigmas(steps, shift)
        self.timesteps = timesteps(steps, shift)
        orders = [min(2, index + 1, steps - index) for index in range(steps)]
        self._predict = [self._predictor(index, order) for index, order in enumerate(orders)]
        self._correct = [self._corrector(index, order) for index, order in enumerate(orders[:-1])]

    def clean(self, latents: Tensor, velocity: Tensor, index: int) -> Tensor:
        """The estimate of the clean latents, `x - sigma * v`, in float32 or wider."""
        dtype = wide(latents.dtype)
        return latents.to(dtype) - self.sigmas[index] * velocity.to(dtype)

    def correct(self, last: Tensor, estimates: list[Tensor], coming: Tensor, index: int) -> Tensor:
        """Latents at level `index`, again: from those of the step before, now that `coming`, their estimate, is known.

        `last` are the latents that step `index - 1` started from, `estimates` all estimates before `coming`.
        """
        return _combine(self._correct[index - 1], last, estimates, coming)

    def predict(self, latents: Tensor, estimates: list[Tensor], index: int) -> Tensor:
        """Latents at level `index + 1`, from those at level `index` and all estimates so far; in the latents' dtype."""
        return _combine(self._predict[index], latents, estimates, None)

    def _lambda(self, index: int) -> float:
        sigma = self.sigmas[index]
        return math.inf if sigma == 0.0 else math.log((1.0 - sigma) / sigma)

    def _common(self, index: int) -> tuple[float, float, float]:
        """Of a step from level `index`: the latents' weight, alpha times expm1(-h), and -h."""
        sigma, following = self.sigmas[index], self.sigmas[index + 1]
        negative = self._lambda(index) - self._lambda(index + 1)
        return following / sigma, (1.0 - following) * math.expm1(negative), negative

    def _predictor(self, index: int, order: int) -> _Weights:
        kept, factor, negative = self._common(index)
        if order == 1:
            return _Weights(kept, -factor)
        ratio = (self._lambda(index - 1) - self._lambda(index)) / -negative
        share = 0.5 * factor / ratio
        return _Weights(kept, -factor + share, -share)

    def _corrector(self, index: int, order: int) -> _Weights:
        kept, factor, negative = self._common(index)
        if order == 1:
            return _Weights(kept, -factor + 0.5 * factor, coming=-0.5 * factor)
        ratio = (self._lambda(index - 1) - self._lambda(index)) / -negative
        growth = math.expm1(negative)
        first = growth / negative - 1.0
        second = first / negative - 0.5
        # rho_1 + rho_2 = first / growth and ratio * rho_1 + rho_2 = 2 * second / growth
        old = (2.0 * second - first) / growth / (ratio - 1.0)
        new = first / growth - old
        return _Weights(kept, -factor + factor * (old / ratio + new), -factor * old / ratio, -factor * new)


def _combine(weights: _Weights, latents: Tensor, estimates: list[Tensor], coming: Tensor | None) -> Tensor:
    result = weights.latents * latents.to(estimates[-1].dtype) + weights.newest * estimates[-1]
    if weights.before:
        result = result + weights.before * estimates[-2]
    if coming is not None:
        result = result + weights.coming * coming
    return result.to(latents.dtype)
