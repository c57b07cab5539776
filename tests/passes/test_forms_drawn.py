"""Calls in a drawn order, and writes between them: every form gives what eager gives, whatever is kept."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from formed_world import World
from forms import EVERY_TILE, FORMS, Scene, Side, Stepped, Trio, compiled, every_form, farther
from torch import Tensor

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "one_thread")

PASSES = (
    "canonicalize-attention,distinct-rows,sink-row-repeats,hoist-invariants,dead-tail,adaptive-context,"
    f"{EVERY_TILE},split-linears{{on-cpu=true,min-rows=1}},outline-regions,step-cache{{drift=0.0}}"
)
"""All passes whose results are eager's where every tile is read and every drift refused."""


class Caller:
    """Does what it draws to all sides alike, and compares what they give.

    Attributes:
        done: what was drawn, for the message of a failure.
    """

    def __init__(self, trio: Trio, seed: int) -> None:
        self.trio, self.draw, self.done = trio, random.Random(seed), [f"seed {seed}"]
        self.frames, self.scenes = 4, trio.of(Scene.behind(4, seed))
        stepped = isinstance(trio.eager, Stepped)
        self.acts = [self.text, self.text_in_place, self.weight, *([self.held, self.rewind] if stepped else [])]
        self.calls = [self.chunk, *([self.prefill, self.step, self.step, self.step] if stepped else [])]
        (self.prefill if stepped else self.chunk)()

    def play(self, turns: int) -> None:
        for _ in range(turns):
            self._named(self.draw.choice(self.acts if self.draw.random() < 0.4 else self.calls))

    def _named(self, act: Callable[[], None]) -> None:
        self.done.append(act.__name__)
        act()

    def _same(self, call: Callable[[Side, Scene], list[Tensor]]) -> None:
        found = [[*call(side, scene), *side.held] for side, scene in self.scenes]
        assert not (worse := farther(*found, 0.0)), f"{worse}, after {self.done}"

    def _of(self, frames: int) -> None:
        """Another history, and all else as it was."""
        self.frames = frames
        other = self.trio.of(Scene.behind(frames, self.draw.randrange(100)))
        kept = {id(side): scene.text for side, scene in self.scenes}
        for side, scene in other:
            scene.text.copy_(kept[id(side)])
        self.scenes = other

    def chunk(self) -> None:
        self._of(self.draw.choice((2, 4, 6, 8)))
        self._same(lambda side, scene: side.chunk(scene))

    def prefill(self) -> None:
        self._of(self.draw.choice((2, 4, 6, 8)))
        self._same(lambda side, scene: side.prefill(scene) or [])

    def step(self) -> None:
        number = self.draw.randrange(4)
        self._same(lambda side, scene: [side.step(scene, number, scene.noise)])

    def rewind(self) -> None:
        if self.frames > 2:
            self.frames -= 2
            self.trio.each(lambda side: side.rewind(self.frames))

    def text(self) -> None:
        """The same numbers in another tensor, or others."""
        factor = self.draw.choice((1.0, -1.0))
        self.scenes = [(side, scene.told(scene.text * factor)) for side, scene in self.scenes]

    def text_in_place(self) -> None:
        for _, scene in self.scenes:
            scene.text.data.neg_()

    def weight(self) -> None:
        """A weight changes its sign, in a way that a version counter sees or does not."""
        name = self.draw.choice([name for name, _ in self.trio.eager.world.named_parameters()])
        hidden = self.draw.random() < 0.5
        for side in self.trio.sides:
            weight = side.world.get_parameter(name)
            (weight.data if hidden else weight).neg_()

    def held(self) -> None:
        """The caller writes to some of the keys and values that it holds."""
        place, first = self.draw.randrange(len(self.trio.eager.held)), self.draw.randrange(32)
        for side in self.trio.sides:
            side.held[place][:, first:].neg_()


def played(form: str, dtype: torch.dtype, seeds: range, turns: int = 12) -> None:
    trio = Trio(form, World(dtype), compiled(dynamic=True, passes=PASSES), dynamic=True)
    for seed in seeds:
        Caller(trio, seed).play(turns)


@pytest.mark.parametrize("form", every_form(quick=["in-place cache"]))
def test_calls_in_a_drawn_order_are_eagers(form: str) -> None:
    played(form, torch.float32, range(12))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_more_calls_in_a_drawn_order_are_eagers(form: str, dtype: torch.dtype) -> None:
    played(form, dtype, range(12, 112))
