"""Rollouts of many walks at once, each with its own context; what the model's own loop makes of each, in a batch."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from lightint_compile.models.worldplay.sampler import euler_step, sigmas
from lightint_compile.training.network import Caches, Cameras, Network


class Coming(NamedTuple):
    """What the frames of a chunk are made from: their numbers [T], cameras, the first image, and the context."""

    frames: Tensor
    cameras: Cameras
    image: Tensor
    context: Caches | None
    position: int


def conditioned(latents: Tensor, frames: Tensor, image: Tensor) -> Tensor:
    """Append the first image [B, C, h, w] and its mask to latents [B, C, T, h, w]; both are zero but at frame 0.

    `frames` [T] or [B, T] are the frames' numbers.
    """
    first = (frames == 0).to(latents.dtype).expand(latents.shape[0], latents.shape[2])[:, None, :, None, None]
    mask = first.expand(-1, 1, -1, *latents.shape[3:])
    return torch.cat([latents, image[:, :, None] * first, mask], dim=1)


def coming(
    network: Network, history: Tensor, chosen: Tensor, chunk: int, cameras: Cameras, image: Tensor, text: Caches
) -> Coming:
    """The pass over the context `chosen` [B, N] of a history [B, C, F, h, w], for chunk number `chunk`."""
    size = network.size.transformer.chunk_frames
    frames = chunk * size + torch.arange(size, device=image.device)
    current = cameras.at(frames.expand(len(image), -1))
    if chosen.shape[1] == 0:
        return Coming(frames, current, image, None, 0)
    past = history.gather(2, chosen[:, None, :, None, None].expand(-1, history.shape[1], -1, *history.shape[3:]))
    context = network.prefill(conditioned(past, chosen, image), cameras.at(chosen), text)
    return Coming(frames, current, image, context, chosen.shape[1])


def step_velocity(network: Network, latents: Tensor, sigma: Tensor, chunk: Coming, text: Caches) -> Tensor:
    """Velocity [B, C, T, h, w] of noisy latents at `sigma` [B], in float32."""
    given = conditioned(latents, chunk.frames, chunk.image)
    return network.velocity(given, sigma, chunk.cameras, text, chunk.context, chunk.position).float()


def integrate(network: Network, latents: Tensor, levels: list[float], chunk: Coming, text: Caches) -> list[Tensor]:
    """Euler steps over noise levels: the latents [B, C, T, h, w] at every level, those given first."""
    made = [latents]
    for level, following in itertools.pairwise(levels):
        sigma = torch.full((len(latents),), level, device=latents.device)
        made.append(euler_step(made[-1], step_velocity(network, made[-1], sigma, chunk, text), level, following))
    return made


def chosen_frames(table: Tensor, chunk: int, chunk_frames: int) -> Tensor:
    """The context [n, N] of a chunk from a table [n, chunks, memory] of `Sequences.context`."""
    return table[:, chunk, : min(chunk * chunk_frames, table.shape[2])].long()


@torch.no_grad()
def generate(
    network: Network,
    image: Tensor,
    cameras: Cameras,
    table: Tensor,
    noise: Tensor,
    anchor: Tensor | None = None,
    first_step: int = 0,
    steps: int | None = None,
    forget: bool = False,
) -> Tensor:
    """Latents [n, C, F, h, w] of rollouts along the cameras, chunk after chunk.

    `image` [n, C, h, w] is the first frame's latent, `noise` [n, C, F, h, w]. With an `anchor` of that shape every
    chunk starts from it with the noise of step `first_step`: it shows the same, with the model's own faults.
    With `forget` the context is the newest frames alone.
    """
    config = network.size.transformer
    levels = sigmas(config.steps if steps is None else steps, config.shift)[first_step:]
    text, size = network.text(), config.chunk_frames
    history = noise[:, :, :0]
    for chunk in range(noise.shape[2] // size):
        part = slice(chunk * size, (chunk + 1) * size)
        chosen = _newest(table, chunk, size, config.recent) if forget else chosen_frames(table, chunk, size)
        given = coming(network, history, chosen, chunk, cameras, image, text)
        start = noise[:, :, part]
        if anchor is not None:
            start = (1.0 - levels[0]) * anchor[:, :, part] + levels[0] * start
        history = torch.cat([history, integrate(network, start, levels, given, text)[-1]], dim=2)
    return history


def _newest(table: Tensor, chunk: int, size: int, recent: int) -> Tensor:
    count = min(chunk * size, recent)
    return (chunk * size - count + torch.arange(count, device=table.device)).expand(len(table), count)
