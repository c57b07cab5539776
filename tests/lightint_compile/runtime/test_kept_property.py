"""Random modules with a text branch, random writes between calls in every way there is: always what eager gives."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

from lightint_compile.compiled import CompiledGraph


class Drawn(nn.Module):
    """A video read by layers that read a text, which a few operations and layers make from the prompt and a buffer."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        width = draw.choice((8, 16))
        self.depth, self.kind = draw.randint(1, 3), draw.choice(("add", "mul", "view"))
        self.shared = draw.random() < 0.3
        self.embed, self.text = nn.Linear(6, width), nn.Linear(12, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(self.depth)])
        self.register_buffer("table", torch.randn(width))
        self.plain = torch.randn(width)

    def forward(self, video: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        now, words = self.embed(video), self.text(text)
        if mask is not None:
            words = words * mask[..., None]
        for layer in self.layers:
            words = self.changed(torch.relu((self.layers[0] if self.shared else layer)(words)))
            scores = torch.softmax(now @ words.transpose(-1, -2), -1)
            now = now + scores @ words
        return now

    def changed(self, words: Tensor) -> Tensor:
        if self.kind == "add":
            return words + self.table
        if self.kind == "mul":
            return words * self.plain.cos() + self.table
        return words.reshape(words.shape[0], -1, words.shape[-1] // 2).reshape(words.shape) * self.table


def _numpy(target: Tensor, value: Tensor) -> None:
    numpy.copyto(target.detach().numpy(), value.numpy())


def _storage(target: Tensor, value: Tensor) -> None:
    target.untyped_storage().copy_(value.contiguous().untyped_storage())


def _bytes(target: Tensor, value: Tensor) -> None:
    memoryview(target.detach().reshape(-1).view(torch.uint8).numpy())[:] = (
        value.contiguous().view(-1).view(torch.uint8).numpy()
    )


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "in place": lambda target, value: target.copy_(value),
    "data copied": lambda target, value: target.data.copy_(value),
    "data added": lambda target, value: target.data.add_(value - target),
    "data assigned": lambda target, value: setattr(target, "data", value.clone()),
    "set_": lambda target, value: target.set_(value.clone()),
    "numpy": _numpy,
    "storage": _storage,
    "bytes": _bytes,
    "dlpack": lambda target, value: torch.from_dlpack(target.detach()).copy_(value),
    "one element": lambda target, value: target.data.view(-1)[-1:].copy_(value.view(-1)[-1:]),
    "foreach": lambda target, value: torch._foreach_copy_([target.data], [value]),
}

ON_HOST = {"numpy", "bytes"}
"""Writes that there are on the CPU only."""


class Session:
    """A drawn module, compiled, with the inputs that calls share; in float64, where rounding stays small."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        self.draw, self.device = random.Random(seed), device
        torch.manual_seed(seed)
        self.module = Drawn(self.draw).eval().requires_grad_(False).to(device, torch.float64)
        self.module.plain = self.module.plain.to(device, torch.float64)
        options = {"preset": self.draw.choice(("exact", "all")), "delegate": "eager"}
        self.compiled = torch.compile(self.module, backend="lightint", options=options)
        batch = self.draw.choice((1, 2))
        self.prompts = [self.drawn((batch, 5, 12)) for _ in range(2)]
        self.mask = torch.ones(batch, 5, device=device, dtype=torch.float64) if self.draw.random() < 0.5 else None
        self.batch = batch

    def drawn(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.float64)

    def check(self, context: str) -> None:
        video, prompt = self.drawn((self.batch, 7, 6)), self.draw.choice(self.prompts)
        arguments = (video, prompt) if self.mask is None else (video, prompt, self.mask)
        inference = self.draw.random() < 0.2
        with torch.inference_mode(inference), torch.no_grad():
            expected, found = self.module(*arguments), self.compiled(*arguments)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda text: f"{context}\n{text}")

    def step(self) -> str:
        """Something that a user does between calls."""
        steps = self.write, self.write, self.write, self.prompt, self.move, self.swap, lambda: "nothing"
        return self.draw.choice(steps)()

    def write(self) -> str:
        targets = [*self.module.parameters(), self.module.table, self.module.plain, *self.prompts]
        target = self.draw.choice(targets if self.mask is None else [*targets, self.mask])
        way = self.draw.choice([each for each in WRITES if self.device == "cpu" or each not in ON_HOST])
        with torch.no_grad():
            WRITES[way](target, self.drawn(target.shape))
        return way

    def prompt(self) -> str:
        place, anew = self.draw.randrange(2), self.draw.random() < 0.7
        before = self.prompts[place]
        self.prompts[place] = self.drawn(before.shape) if anew else before.clone()
        return "another prompt" if anew else "the same prompt elsewhere"

    def move(self) -> str:
        for parameter in self.module.parameters():
            parameter.data = parameter.data.clone()
        return "weights moved"

    def swap(self) -> str:
        layer = self.draw.choice([self.module.text, *self.module.layers])
        torch.utils.swap_tensors(layer.weight, nn.Parameter(self.drawn(layer.weight.shape), requires_grad=False))
        return "swap_tensors"


SEEDS = [
    *((seed, "cpu") for seed in range(5)),
    *(pytest.param(seed, "cpu", marks=pytest.mark.slow) for seed in range(5, 60)),
    *(pytest.param(seed, "cuda", marks=pytest.mark.gpu) for seed in range(60, 66)),
]


@pytest.mark.parametrize(("seed", "device"), SEEDS)
def test_whatever_is_written_between_calls_results_are_those_of_eager(seed: int, device: str) -> None:
    torch._dynamo.reset()
    session, done = Session(seed, device), []
    for _ in range(10):
        session.check(f"seed {seed}, after {done}")
        session.check(f"seed {seed}, again after {done}")
        done.append(session.step())
    drivers = [graph.driver for graph in CompiledGraph.of(session.compiled) if graph.driver]
    assert sum(memo.hits for driver in drivers for memo in driver.memos.values()) > 0, "nothing was kept: a void test"


class Writing(nn.Module):
    """Writes to what it made from the prompt alone, in the call that made it and in those that got it back."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.write, self.embed, self.text, self.other = write, *(nn.Linear(size, 8) for size in (6, 12, 12))

    def forward(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        now = self.embed(video)
        words = self.write(torch.relu(self.text(text)), now)
        return now + torch.softmax(now @ words.mT, -1) @ words, self.other(text)


def _slice(words: Tensor, now: Tensor) -> Tensor:
    words[:, :2] = now[:, :2]
    return words


def _through_a_view(words: Tensor, now: Tensor) -> Tensor:
    words.view(-1)[:4].mul_(now.sum())
    return words


def _all(words: Tensor, now: Tensor) -> Tensor:
    return words.add_(now.mean(1, keepdim=True))


@pytest.mark.parametrize("write", [_all, _slice, _through_a_view])
def test_what_a_model_writes_to_is_never_what_was_kept(write: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch._dynamo.reset()
    module = Writing(write).eval().requires_grad_(False)
    compiled = torch.compile(module, backend="lightint", options={"preset": "exact", "delegate": "eager"})
    text = torch.randn(1, 5, 12)
    for _ in range(3):
        video = torch.randn(1, 7, 6)
        with torch.no_grad():
            expected, found = module(video, text), compiled(video, text)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        found[1].add_(1), found[0].zero_()
    (driver,) = [graph.driver for graph in CompiledGraph.of(compiled) if graph.driver]
    assert sum(memo.hits for memo in driver.memos.values()) == 2


def test_threads_that_write_to_prompts_of_their_own_get_their_own_results() -> None:
    torch._dynamo.reset()
    session, right = Session(3), []
    session.check("first")

    def run(seed: int) -> None:
        draw, double = torch.Generator().manual_seed(seed), torch.float64
        prompt = torch.zeros(session.batch, 5, 12, dtype=double)
        more = () if session.mask is None else (session.mask,)
        for _ in range(20):
            prompt.numpy()[...] = torch.randn(prompt.shape, generator=draw, dtype=double).numpy()
            video = torch.randn(session.batch, 7, 6, generator=draw, dtype=double)
            with torch.no_grad():
                expected, found = session.module(video, prompt, *more), session.compiled(video, prompt, *more)
            right.append(torch.allclose(expected, found, rtol=1e-5, atol=1e-5))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 80 and all(right)
