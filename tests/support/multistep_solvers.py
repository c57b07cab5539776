"""Multistep solvers as samplers write them, over a velocity prediction and a fixed list of sigmas.

Each is made anew for a loop; ``step(velocity, latents)`` gives the latents of the next sigma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class DPM:
    """DPM-Solver++ of second order, with Python numbers: the clean latent of the step before corrects this one's."""

    def __init__(self, sigmas: list[float]) -> None:
        self.sigmas, self.number = sigmas, 0
        self.before: Tensor | None = None

    def log_snr(self, step: int) -> float:
        sigma = self.sigmas[step]
        return math.inf if sigma == 0 else math.log(1 - sigma) - math.log(sigma)

    def step(self, velocity: Tensor, latents: Tensor) -> Tensor:
        at, after = self.sigmas[self.number : self.number + 2]
        clean = latents - at * velocity
        h = self.log_snr(self.number + 1) - self.log_snr(self.number)
        weight = (1 - after) * (math.exp(-h) - 1)
        result = (after / at) * latents - weight * clean
        if self.before is not None and after > 0:
            ratio = (self.log_snr(self.number) - self.log_snr(self.number - 1)) / h
            result = result - 0.5 * weight * ((clean - self.before) / ratio)
        self.before, self.number = clean, self.number + 1
        return result


class UniPC:
    """UniPC (bh2) of second order with its corrector: differences are stacked and weighed with a table of tensors."""

    def __init__(self, sigmas: list[float]) -> None:
        self.sigmas = torch.tensor(sigmas, dtype=torch.float64)
        self.number = 0
        self.clean: list[Tensor] = []
        self.last: Tensor | None = None

    def log_snr(self, step: int) -> Tensor:
        return torch.log(1 - self.sigmas[step]) - torch.log(self.sigmas[step])

    def moved(self, step: int, latents: Tensor, now: Tensor | None) -> Tensor:
        """From ``step`` to the next one: predicted, or with the answer ``now`` of the next one, corrected."""
        at, after = self.sigmas[step], self.sigmas[step + 1]
        h = self.log_snr(step + 1) - self.log_snr(step)
        phi = torch.expm1(-h)
        result = (after / at * latents - (1 - after) * phi * self.clean[step]).to(latents.dtype)
        ratios, differences = [], []
        if 0 < step < len(self.sigmas) - 2:
            ratios.append((self.log_snr(step - 1) - self.log_snr(step)) / h)
            differences.append((self.clean[step - 1] - self.clean[step]) / ratios[0])
        if now is not None:
            ratios.append(torch.ones_like(h))
            differences.append(now - self.clean[step])
        if not differences:
            return result
        weights = torch.full_like(h, 0.5).reshape(1)
        if len(ratios) > 1:
            first = phi / -h - 1
            second = first / -h - 0.5
            powers = torch.stack([torch.ones(2, dtype=h.dtype), torch.stack(ratios)])
            weights = torch.linalg.solve(powers, torch.stack([first / phi, 2 * second / phi]))
        stacked = torch.stack(differences, dim=1)
        correction = torch.einsum("k,bk...->b...", weights.to(stacked.dtype), stacked)
        return (result - (1 - after) * phi * correction).to(latents.dtype)

    def step(self, velocity: Tensor, latents: Tensor) -> Tensor:
        self.clean.append(latents - (self.sigmas[self.number] * velocity).to(latents.dtype))
        if self.last is not None:
            latents = self.moved(self.number - 1, self.last, self.clean[-1])
        self.last, step = latents, self.number
        self.number += 1
        return self.moved(step, latents, None)


SOLVERS = {"dpm++": DPM, "unipc": UniPC}
