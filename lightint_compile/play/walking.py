"""A walk under way: chunk after chunk along a path that grows with the keys, accelerated or not."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lightint_compile
from lightint_compile.errors import StateError
from lightint_compile.models.world_model import CameraPath, Visit, Visitable, WorldModel
from lightint_compile.play.open_place import OpenPlace
from lightint_compile.runtime.decision import Decision

LONGEST = 1024
"""Latent frames of a walk; another one then begins."""

OPPOSITES = (("w", "s"), ("a", "d"), ("left", "right"), ("up", "down"))
KEYS = frozenset(key for pair in OPPOSITES for key in pair)


def pressed(keys: Collection[str]) -> frozenset[str]:
    """The keys that do something together: opposite ones cancel."""
    known = KEYS & set(keys)
    return frozenset(known - {key for pair in OPPOSITES if known.issuperset(pair) for key in pair})


@dataclass(frozen=True)
class Steered:
    """One chunk of a walk.

    Attributes:
        frames: [F, 3, H, W] in [0, 1] on the CPU.
        decision: lightint's, or what the model does by itself.
        decided: whether it was lightint's.
        milliseconds: the model's time; ``None`` of a chunk that was given.
    """

    index: int
    frames: Tensor
    decision: Decision
    decided: bool
    milliseconds: float | None


class _Continued:
    """A model's module that answers with the chunks that are known, and runs behind them."""

    def __init__(self, call: Callable[..., Tensor], known: Sequence[Tensor]) -> None:
        self._call, self._known, self._asked = call, known, 0

    def __call__(self, *args: Any) -> Tensor:
        """The next chunk's latents."""
        self._asked += 1
        return self._known[self._asked - 1] if self._asked <= len(self._known) else self._call(*args)


class Walking:
    """A walk through the place of a seed. It belongs to one thread at a time.

    The path and the chunks so far are handed to the model's own rollout again for every chunk; what is known is not
    computed again. So any world model can be steered, whatever its inputs.
    """

    def __init__(
        self, model: WorldModel, plain: Callable[..., Tensor], fast: Callable[..., Tensor], seed: int, place: Visit
    ) -> None:
        self.model, self.place, self._plain, self._fast, self._seed = model, place, plain, fast, seed
        self._scene = place.scene()
        self._held: list[frozenset[str]] = []
        self._chunks: list[Tensor] = []

    @property
    def is_over(self) -> bool:
        """Whether the walk is as long as it may become."""
        return self.model.spec.frames(len(self._chunks) + 1) > LONGEST

    def begin(self) -> Steered | None:
        """The first chunk where it is given: the camera stands still."""
        still = [frozenset[str]()] * (self.model.spec.frames(1) - 1)
        if self.place.walls is None:
            return None
        path = self.place.path(still)
        given = self.place.given(path)
        if given is None:
            return None
        self._held, self._chunks = still, [given]
        return Steered(0, self.place.frames(given), self._own(path, 0), False, None)

    def go(self, keys: Collection[str], accelerated: bool) -> Steered:
        """The next chunk, while these keys are held.

        Raises:
            StateError: no key is held, or the walk is over.
        """
        held = pressed(keys)
        if not held:
            raise StateError("the camera goes nowhere", why="no key moves the camera", fix="hold a key, or stay")
        return self._next(held, accelerated)

    def stay(self, accelerated: bool) -> Steered:
        """The next chunk, while the camera stands still.

        Raises:
            StateError: the walk is over.
        """
        return self._next(frozenset(), accelerated)

    def _next(self, held: frozenset[str], accelerated: bool) -> Steered:
        if self.is_over:
            why = f"a walk has at most {LONGEST} latent frames"
            raise StateError("the camera goes nowhere", why=why, fix="begin another walk")
        spec, index = self.model.spec, len(self._chunks)
        path = self.place.path([*self._held, *[held] * (spec.frames(index + 1) - 1 - len(self._held))])
        start = time.perf_counter()
        latents = self._made(path, self._fast if accelerated else self._plain)
        if latents.device.type == "cuda":
            torch.cuda.synchronize(latents.device)
        took = 1e3 * (time.perf_counter() - start)
        self._held += [held] * (len(path) - 1 - len(self._held))
        self._chunks.append(latents)
        decision = self._decided(index) if accelerated else None
        own = decision or self._own(path, index)
        return Steered(index, self.place.frames(latents), own, decision is not None, took)

    @property
    def path(self) -> CameraPath:
        """The way so far."""
        return self.place.path(self._held)

    def _made(self, path: CameraPath, call: Callable[..., Tensor]) -> Tensor:
        rollout = self.model.rollout(_Continued(call, self._chunks), self._scene, path, seed=self._seed)
        (last,) = collections.deque(rollout, maxlen=1)
        return last.latents

    def _decided(self, index: int) -> Decision | None:
        found = lightint_compile.decisions(self._fast)
        return next((each for each in found if each.chunk == index), None)

    def _own(self, path: CameraPath, index: int) -> Decision:
        context = self.model.context_frames(path, self.model.spec.frames(index))
        return Decision(chunk=index, context_frames=tuple(context))


def place_of(model: WorldModel, seed: int, device: torch.device, dtype: torch.dtype) -> Visit:
    """The place of a seed: the model's own, or one without walls."""
    return model.visit(seed, device, dtype) if isinstance(model, Visitable) else OpenPlace(model, seed, device, dtype)
