"""What is minimised: flow matching over all noise levels, then the sampler's four steps against a finer sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from lightint_compile.models.worldplay.blocks import KeyValue
from lightint_compile.models.worldplay.sampler import sigmas
from lightint_compile.training.generation import Coming, chosen_frames, coming, integrate, step_velocity
from lightint_compile.training.network import Caches, Network, repeated
from lightint_compile.training.pool import Batch

_ROUGHENED = 0.7
"""Share of contexts that get noise, so that faults of the past do not grow, as in GameNGen (Valevski et al., 2024)."""

_ROUGHEST = 0.25
"""The largest noise level of a context."""

_TRUTH = 0.5
"""Share of the truth in what the distilled steps aim at."""

TEACHER_STEPS = 4
"""Steps of the teacher for one of the student's."""


def flow_loss(network: Network, batch: Batch, chunk: int, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity of chunk number `chunk`, at one noise level of each step of the sampler.

    Half of the levels are the sampler's own, half are drawn between them. The context passes the network once for all.
    """
    config = network.size.transformer
    text = network.text()
    given, clean = _given(network, batch, chunk, generator, text)
    count, device = len(clean), clean.device
    number = torch.arange(config.steps, device=device)
    inside = torch.rand(count, config.steps, generator=generator, device=device)
    exact = torch.rand(count, config.steps, generator=generator, device=device) < 0.5
    even = (number + torch.where(exact, 1.0, inside)) / config.steps
    sigma = (config.shift * even / (1.0 + (config.shift - 1.0) * even)).flatten()
    target = clean.repeat_interleave(config.steps, dim=0)
    noise = torch.randn(target.shape, generator=generator, device=device)
    level = sigma[:, None, None, None, None]
    given = _copies(given, config.steps)
    velocity = step_velocity(network, (1.0 - level) * target + level * noise, sigma, given, text)
    return (velocity - (noise - target)).square().mean()


def distillation_loss(
    student: Network, teacher: Network, batch: Batch, chunk: int, generator: torch.Generator
) -> Tensor:
    """Mean squared error of each of the sampler's steps from a point that the student itself reached from noise.

    The aim is between where several finer steps of the teacher lead, which is sharp, and the truth, which mends faults.
    """
    config = student.size.transformer
    levels = sigmas(config.steps, config.shift)
    text = student.text()
    given, clean = _given(student, batch, chunk, generator, text)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    with torch.no_grad():
        reached = torch.stack(integrate(student, noise, levels, _detached(given), text)[:-1], dim=1).flatten(0, 1)
        teacher_text = teacher.text()
        fine = _given(teacher, batch, chunk, None, teacher_text)[0]
        sharp = _finer(teacher, reached, levels, _copies(fine, config.steps), teacher_text)
        sigma = torch.tensor(levels[:-1], device=clean.device).repeat(len(clean))
        true = (reached - clean.repeat_interleave(config.steps, dim=0)) / sigma[:, None, None, None, None]
        target = torch.lerp(sharp, true, _TRUTH)
    velocity = step_velocity(student, reached, sigma, _copies(given, config.steps), text)
    return (velocity - target).square().mean()


def _finer(teacher: Network, latents: Tensor, levels: list[float], given: Coming, text: Caches) -> Tensor:
    """Mean velocity of `TEACHER_STEPS` steps from every level to the next; rows of latents go through the levels."""
    begin, end = (torch.tensor(part, device=latents.device) for part in (levels[:-1], levels[1:]))
    count = len(latents) // len(begin)
    now, level = latents, begin
    for step in range(1, TEACHER_STEPS + 1):
        following = torch.lerp(begin, end, step / TEACHER_STEPS)
        velocity = step_velocity(teacher, now, level.repeat(count), given, text)
        now = now + velocity * (following - level).repeat(count)[:, None, None, None, None]
        level = following
    return (now - latents) / (end - begin).repeat(count)[:, None, None, None, None]


def _given(
    network: Network, batch: Batch, chunk: int, generator: torch.Generator | None, text: Caches
) -> tuple[Coming, Tensor]:
    """The pass over the context of a chunk, noisy where there is a generator; and the chunk's clean latents."""
    config = network.size.transformer
    walks, size = batch.walks, config.chunk_frames
    clean = walks.latents.float()
    past = batch.past if generator is None else _roughened(batch.past, generator)
    chosen = chosen_frames(walks.context, chunk, size)
    given = coming(network, past, chosen, chunk, walks.cameras, clean[:, :, 0], text)
    return given, clean[:, :, chunk * size : (chunk + 1) * size]


def _roughened(past: Tensor, generator: torch.Generator) -> Tensor:
    shape, device = (len(past), 1, 1, 1, 1), past.device
    strength = _ROUGHEST * torch.rand(shape, generator=generator, device=device).square()
    strength = strength * (torch.rand(shape, generator=generator, device=device) < _ROUGHENED)
    return (1.0 - strength) * past + strength * torch.randn(past.shape, generator=generator, device=device)


def _detached(given: Coming) -> Coming:
    if given.context is None:
        return given
    return given._replace(context=[KeyValue(key.detach(), value.detach()) for key, value in given.context])


def _copies(given: Coming, copies: int) -> Coming:
    context = None if given.context is None else repeated(given.context, copies)
    image = given.image.repeat_interleave(copies, dim=0)
    return Coming(given.frames, given.cameras.repeated(copies), image, context, given.position)
