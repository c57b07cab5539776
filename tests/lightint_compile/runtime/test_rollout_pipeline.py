"""The ``rollout`` context around a pipeline of diffusers, which has the denoising loop; we decide its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from torch._dynamo.utils import counters
from toy_world import there_and_back

import lightint_compile
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import PublishedRules

diffusers = pytest.importorskip("diffusers", reason="the pipeline is one of diffusers")

STEPS, SCALE = 4, 3.0
PATH = there_and_back(40)[0]
RULES = PublishedRules()
DECIDED = plan(PATH, RULES)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A text-to-video pipeline with random weights; prompts arrive embedded and latents leave undecoded."""
    transformer, _ = zoo.build("wan")
    torch.manual_seed(2)
    scales = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = diffusers.AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **scales)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = diffusers.WanPipeline(None, None, vae, scheduler, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chunk_of(pipe: Any, number: int) -> Tensor:
    """The latents of one chunk, from noise and prompts of its own."""
    generator = torch.Generator().manual_seed(number)
    prompt = (1, zoo.TEXT, zoo.WIDTH)
    shapes = ((1, 4, 4, 16, 16), prompt, prompt)
    noise, positive, negative = (torch.randn(shape, generator=generator) for shape in shapes)
    found: Tensor = pipe(
        prompt_embeds=positive, negative_prompt_embeds=negative, latents=noise, height=128, width=128, num_frames=13,
        num_inference_steps=STEPS, guidance_scale=SCALE, output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    return found


@contextmanager
def predicting(pipe: Any, predict: Callable[..., Tensor]) -> Iterator[None]:
    """The pipeline with another forward of its transformer."""
    module = pipe.transformer
    module.forward = lambda **given: (predict(**given),)
    try:
        yield
    finally:
        del module.forward


def number_of(pipe: Any, timestep: Tensor) -> int:
    """Which step of the schedule a call belongs to."""
    return int((pipe.scheduler.timesteps == timestep[0]).nonzero()[0, 0])


def by_hand(pipe: Any, forward: Callable[..., Any], reused: tuple[int, ...]) -> Callable[..., Tensor]:
    """Predictions of one chunk with ``reused`` steps on the line through the last two computed ones, halves apart."""
    known: dict[int, list[tuple[float, Tensor]]] = {0: [], 1: []}
    asked: dict[int, int] = {}

    def predict(**given: Any) -> Tensor:
        step = number_of(pipe, given["timestep"])
        half = asked[step] = asked.get(step, -1) + 1
        sigma, computed = float(pipe.scheduler.sigmas[step]), known[half]
        if step not in reused:
            computed.append((sigma, forward(**given)[0]))
            return computed[-1][1]
        (before_at, before), (latest_at, latest) = computed[-2:] if len(computed) > 1 else computed * 2
        slope = 0.0 if before_at == latest_at else (sigma - latest_at) / (latest_at - before_at)
        return latest + (latest - before) * slope

    return predict


@pytest.mark.parametrize("compiled", [pytest.param(False, marks=pytest.mark.slow), True], ids=["eager", "compiled"])
def test_a_pipeline_of_diffusers_reuses_the_steps_that_are_decided(pipeline: Any, compiled: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    original = pipeline.transformer.forward
    forward = original
    if compiled:
        forward = torch.compile(original, backend="lightint", options={"preset": "exact", "delegate": "eager"})
    calls: list[int] = []
    assert any(each.reused_steps for each in DECIDED) and not DECIDED[1].reused_steps

    with lightint_compile.rollout(cameras=PATH, rules=RULES) as run:

        def predict(**given: Any) -> Tensor:
            step = number_of(pipeline, given["timestep"])

            def compute() -> Tensor:
                calls.append(step)
                found: Tensor = forward(**given)[0]
                return found

            return run.step(step, compute, float(pipeline.scheduler.sigmas[step]))

        for number, decided in enumerate(DECIDED):
            assert run.chunk(number) == decided
            calls.clear()
            with predicting(pipeline, predict):
                found = chunk_of(pipeline, number)
            assert calls == [step for step in range(STEPS) if step not in decided.reused_steps for _ in range(2)]
            with predicting(pipeline, by_hand(pipeline, original, decided.reused_steps)):
                expected = chunk_of(pipeline, number)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            as_ever = torch.allclose(found, chunk_of(pipeline, number), rtol=1e-4, atol=1e-4)
            assert as_ever is not bool(decided.reused_steps)
        assert run.decisions == DECIDED
    assert bool(counters["stats"]["unique_graphs"]) is compiled
