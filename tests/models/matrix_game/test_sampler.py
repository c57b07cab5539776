"""The sampler solves diffusers' equations on the released schedule."""

from __future__ import annotations

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.models.matrix_game.sampler import UniPC, sigmas


def network(latents: Tensor, time: float) -> Tensor:
    return torch.tanh(1.3 * latents + time / 1000.0)


def by_diffusers(latents: Tensor, sampler: UniPC) -> Tensor:
    steps = len(sampler.timesteps)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor(sampler.sigmas, dtype=torch.float64)
    for index, told in enumerate(scheduler.timesteps):
        velocity = network(latents, sampler.timesteps[index])
        latents = scheduler.step(velocity, told, latents, return_dict=False)[0]
    return latents


def by_ours(latents: Tensor, sampler: UniPC) -> Tensor:
    last, estimates = latents, list[Tensor]()
    for index, time in enumerate(sampler.timesteps):
        estimate = sampler.clean(latents, network(latents, time), index)
        if index > 0:
            latents = sampler.correct(last, estimates, estimate, index)
        estimates.append(estimate)
        last = latents
        latents = sampler.predict(latents, estimates, index)
    return latents


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_every_step_is_that_of_diffusers(steps: int) -> None:
    latents = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(steps))
    sampler = UniPC(steps, 5.0)
    torch.testing.assert_close(by_ours(latents, sampler), by_diffusers(latents, sampler), rtol=0, atol=1e-6)


def test_the_released_schedule() -> None:
    sampler = UniPC(3, 5.0)
    assert [round(sigma, 5) for sigma in sampler.sigmas] == [0.99980, 0.90884, 0.71398, 0.0]
    assert sampler.timesteps == [1000.0, 908.0, 712.0]


def test_diffusers_own_schedule_begins_elsewhere() -> None:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() != [999, 908, 713]


def test_along_a_held_velocity_the_estimate_stays() -> None:
    """So a reused step changes nothing but the level: steps along one velocity are one longer step."""
    latents = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler, velocity = UniPC(3, 5.0), network(latents, 1000.0)
    first = sampler.clean(latents, velocity, 0)
    second = sampler.clean(sampler.predict(latents, [first], 0), velocity, 1)
    torch.testing.assert_close(second, first)


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (3, 0.0)])
def test_a_schedule_that_cannot_be_is_refused(steps: int, shift: float) -> None:
    with pytest.raises(InputError, match="at least one step"):
        sigmas(steps, shift)
