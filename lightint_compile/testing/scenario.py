"""A drawn world, how it is compiled, and what happens to it between its calls: one scenario a seed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from lightint_compile.testing.drawn import Drawn
from lightint_compile.testing.events import Event
from lightint_compile.testing.world_features import WorldFeatures

_SETUP: dict[str, tuple[Any, ...]] = {
    "preset": ("exact", "all"),
    "delegate": ("eager", "inductor"),
    "dynamic": ("auto", "all", "marked", "none"),
    "target": ("module", "forward", "function", "in-place", "blocks"),
    "caller": ("keywords", "positions", "vmap", "checkpoint"),
}


@dataclass(frozen=True)
class Setup(Drawn):
    """How the world is compiled.

    Attributes:
        preset: ``all`` runs at density 1 with guards that refuse, so that its numbers must be eager's too.
        dynamic: what ``torch.compile`` is told of sizes; ``marked`` marks the axes that change.
        target: what is compiled: the module, its ``forward``, a function around it, or the module by ``compile()``,
            or each of its blocks in the same way.
        caller: how the arguments are handed over: as keywords, in their places, by ``vmap`` or by ``checkpoint``.
    """

    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = _SETUP
    WHAT: ClassVar[str] = "setup"

    preset: str = "exact"
    delegate: str = "eager"
    dynamic: str = "auto"
    target: str = "module"
    caller: str = "keywords"

    @classmethod
    def drawn(cls, draw: random.Random, world: WorldFeatures) -> Self:
        """By chance; seldom Inductor, which takes seconds a graph. Context is decided where its size is marked."""
        return cls(
            preset=draw.choice(("exact", "all")),
            delegate=draw.choices(("eager", "inductor"), (99, 1))[0],
            dynamic=draw.choices(_SETUP["dynamic"], (2, 1, 6, 1) if world.kind == "rollout" else (6, 2, 2, 1))[0],
            target=draw.choices(_SETUP["target"], (12, 2, 2, 2, 1))[0],
            caller=draw.choices(_SETUP["caller"], (20, 3, 1, 1))[0],
        )


@dataclass(frozen=True)
class Scenario:
    """What the adversary plays: ``world`` is called, then every event happens, each followed by calls."""

    seed: int = 0
    world: WorldFeatures = field(default_factory=WorldFeatures)
    setup: Setup = field(default_factory=Setup)
    events: tuple[Event, ...] = ()

    @classmethod
    def from_seed(cls, seed: int) -> Self:
        """The scenario that a seed stands for, the same in every version of Python."""
        draw = random.Random(seed)
        world = WorldFeatures.drawn(draw, seed)
        setup = Setup.drawn(draw, world)
        return cls(seed, world, setup, tuple(Event.drawn(draw, world) for _ in range(draw.choice((2, 3, 4, 5)))))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The scenario written down as ``data``."""
        return cls(
            data.get("seed", 0),
            WorldFeatures.from_dict(data.get("world", {})),
            Setup.from_dict(data.get("setup", {})),
            tuple(map(Event.from_dict, data.get("events", ()))),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seed": self.seed,
            "world": self.world.to_dict(),
            "setup": self.setup.to_dict(),
            "events": [event.to_dict() for event in self.events],
        }

    def simpler(self) -> Iterator[Self]:
        """Fewer events first, then a simpler world and setup, then plainer events."""
        for first, last in self._parts():
            yield dataclasses.replace(self, events=self.events[:first] + self.events[last:])
        for world in self.world.simpler():
            yield dataclasses.replace(self, world=world)
        for setup in self.setup.simpler():
            yield dataclasses.replace(self, setup=setup)
        for place, event in enumerate(self.events):
            for plainer in event.simpler():
                yield dataclasses.replace(self, events=(*self.events[:place], plainer, *self.events[place + 1 :]))

    def _parts(self) -> Iterator[tuple[int, int]]:
        """Runs of events, long ones first."""
        size = len(self.events)
        while size:
            yield from ((first, first + size) for first in range(len(self.events) - size, -1, -size))
            size //= 2
