"""Drawn calls of one step, with writes between them: what is not the module's own answer follows equal calls only."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
from step_world import FRAMES, SIGMAS, StepWorld
from torch import Tensor
from toy_world import CHUNK, there_and_back

import lightint_compile


@dataclass
class Made:
    """A call that was answered, and what it was given but latent and timestep."""

    key: tuple[float, ...]
    chunk: int
    time: float
    result: Tensor
    is_own: bool


class Play:
    """Rollouts there and back, in which calls are repeated, left out and reordered, and inputs are written to."""

    def __init__(self, seed: int, model: StepWorld, compiled: object) -> None:
        self.draw, self.model, self.compiled = random.Random(seed), model, compiled
        self.path = there_and_back(FRAMES)
        generator = torch.Generator().manual_seed(seed)
        self.text, self.noise = torch.randn(1, 5, 8, generator=generator), generator
        self.chunks = 0
        self.made: list[Made] = []

    def run(self) -> None:
        for number in range(FRAMES // CHUNK):
            self.chunks += 1
            times = [1000 * sigma for sigma in SIGMAS[:-1]]
            if self.draw.random() < 0.2:
                times.insert(self.draw.randrange(4), self.draw.choice(times))
            if self.draw.random() < 0.1:
                times.pop(self.draw.randrange(4))
            views = self.path[:, number * CHUNK : (number + 1) * CHUNK]
            latents = torch.randn(1, 4, CHUNK, 4, 6, generator=self.noise)
            for time in times:
                if self.draw.random() < 0.08:
                    self.write()
                size = 4 if self.draw.random() > 0.03 else 8
                latents = 0.99 * self.call(
                    latents[..., :size, :] if size == 4 else latents.repeat(1, 1, 1, 2, 1), time, views
                )
                latents = latents[..., :4, :]

    def write(self) -> None:
        """One write that leaves no trace in versions, or none at all."""
        kind = self.draw.randrange(4)
        if kind == 0:
            self.text.data.mul_(1.01)
        elif kind == 1:
            self.model.head.weight.data.mul_(1.01)
        elif kind == 2:
            self.path = self.path.clone()
            self.path[..., 2, 3] += 1e-3
        else:
            self.text = self.text.clone()

    @torch.no_grad()
    def call(self, latents: Tensor, time: float, views: Tensor) -> Tensor:
        given = latents, torch.tensor([time]), views, self.text
        got, expected = self.compiled(*given), self.model(*given)  # type: ignore[operator]
        key = (*(float(each.double().sum()) for each in (self.text, self.model.head.weight, views)), latents.shape[3])
        is_own = torch.allclose(got, expected, rtol=1e-5, atol=1e-6)
        assert is_own or self.explains(key, time, got), f"chunk {self.chunks}, {time}"
        self.made.append(Made(key, self.chunks, time, got, is_own))
        return got.clone()

    def explains(self, key: tuple[float, ...], time: float, got: Tensor) -> bool:
        """Whether a result lies on the line through what equal calls of this chunk computed at higher timesteps."""
        known = [each for each in self.made if each.key == key and each.chunk == self.chunks and each.is_own]
        known = [each for each in known if each.time > time]
        lines = [each.result for each in known]
        for one, two in combinations(known, 2):
            if one.time != two.time:
                share = (time - two.time) / (two.time - one.time)
                lines.append(two.result + (two.result - one.result) * share)
        return any(torch.allclose(got, line, rtol=1e-4, atol=1e-5) for line in lines)


@pytest.fixture(scope="module")
def step() -> tuple[StepWorld, object]:
    torch.manual_seed(0)
    model = StepWorld().eval()
    settings = {"preset": "cache", "delegate": "eager", "strict": True, "drift": 1e9}
    return model, torch.compile(model, backend="lightint", options=settings)


def test_what_is_reused_follows_equal_calls_of_its_chunk(step: tuple[StepWorld, object]) -> None:
    model, compiled = step
    state = {name: value.clone() for name, value in model.state_dict().items()}
    reused = 0
    for seed in range(8):
        model.load_state_dict(state)
        play = Play(seed, model, compiled)
        play.run()
        reused += sum(not each.is_own for each in play.made)
        lightint_compile.decisions(compiled)
    assert reused > 20, "the calls that fit are reused"
