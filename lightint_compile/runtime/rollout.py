"""Decisions for loops that live outside the compiled module: a pipeline's, or a script's own.

with lightint_compile.rollout(cameras=extrinsics, intrinsics=intrinsics) as run:
    for chunk in range(chunks):
        decision = run.chunk(chunk)                  # which context frames to gather, and why
        for k, sigma in enumerate(sigmas):
            velocity = run.step(k, lambda: transformer(latents, sigma, ...), sigma)
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from torch import Tensor

from lightint_compile.errors import InputError, StateError, check_callable
from lightint_compile.passes.ir.world_spec import PUBLISHED, WorldSpec
from lightint_compile.runtime.cameras import path_of, view_of
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.predictions import Prediction
from lightint_compile.runtime.rules import AdaptiveRules, Rules
from lightint_compile.runtime.underway import rollout_begins, rollout_ends

T = TypeVar("T")


def rollout(
    *, cameras: Any, intrinsics: Any = None, rules: Rules | None = None, chunk_frames: int | None = None
) -> Rollout:
    """A rollout along ``cameras``, to be entered with ``with``.

    Both are copied: what is written into them later changes nothing.

    Args:
        cameras: world-to-camera of the whole path, [F, 4, 4] or [F, 3, 4], with or without an axis of one in front, a
            chunk every ``chunk_frames`` latent frames, with or without one frame in front of the first. A tensor on any
            device, an array, or lists. Rotations in half precision become the nearest rotations.
        intrinsics: [3, 3], [F, 3, 3] or [F, 4] (focal lengths, principal point) over image width and height, or in
            pixels with the principal point in the middle of the image: they set the field of view that overlap is
            measured in, the first frame's for all. Without them it is HY-WorldPlay's, 60 by 35 degrees.
        rules: how to decide; ours unless given. Given rules have a field of view and a chunk length of their own.
        chunk_frames: latent frames of a chunk; four unless given.

    Raises:
        InputError: cameras that are no rigid transforms, or no whole number of chunks; intrinsics that tell no field of
            view; rules that are none.
    """
    path = path_of(cameras)
    view = None if intrinsics is None else view_of(intrinsics)
    if rules is None:
        rules = AdaptiveRules.of(PUBLISHED if chunk_frames is None else WorldSpec(chunk=chunk_frames))
        rules = rules if view is None else rules.seeing(view)
    elif not isinstance(rules, Rules):
        why, fix = (
            f"it is {type(rules).__name__}",
            "leave it out, or give AdaptiveRules() of lightint_compile.runtime.rules",
        )
        raise InputError("These are no rules.", where="rules", why=why, fix=fix)
    elif chunk_frames not in (None, rules.chunk):
        why = f"the rules are for chunks of {rules.chunk}"
        raise InputError(f"There is no chunk of {chunk_frames}.", where="chunk_frames", why=why, fix="leave it out")
    if rules.lead(path.shape[0]) is None:
        why = f"the shape is {tuple(path.shape)}, a chunk has {rules.chunk} latent frames"
        raise InputError("The cameras are no whole number of chunks.", where="cameras", why=why, fix="give [F, 4, 4]")
    return Rollout(path, rules)


class _Calls:
    """The calls of a chunk's steps in their order, which tells the halves of guidance apart.

    A chunk that was begun again, after an exception say, has calls that belong to no prediction of its own. Nothing
    tells these from others but their number, so its steps have to be asked as often as those of the chunks before.
    """

    def __init__(self) -> None:
        self._wanted = 0
        self._steps: list[list[int]] = []

    def begin(self) -> None:
        """The chunk before is over."""
        if len(self._steps) > 1 and self._is_regular(self._steps):
            self._wanted = self._steps[0][1]
        self._steps = []

    def add(self, number: int) -> int:
        """One more call: how many of its step were made in front of it."""
        if not self._steps or self._steps[-1][0] != number:
            self._steps.append([number, 0])
        self._steps[-1][1] += 1
        return self._steps[-1][1] - 1

    @property
    def fit(self) -> bool:
        """Whether those so far are what the steps of a chunk before had; of the first chunk, all as often."""
        *done, (_, count) = self._steps
        each = done[0][1] if done else count
        return self._is_regular(self._steps[:-1]) and count <= each == (self._wanted or each)

    @staticmethod
    def _is_regular(steps: Sequence[Sequence[int]]) -> bool:
        numbers = [number for number, _ in steps]
        return numbers == sorted(set(numbers)) and len({count for _, count in steps}) <= 1


class Rollout:
    """Where a rollout is, what was decided, and what its latest computed steps predicted. It is one thread's own."""

    def __init__(self, cameras: Tensor, rules: Rules) -> None:
        self._cameras, self._planner = cameras, Planner(rules)
        self._decision: Decision | None = None
        self._entered = 0
        self._calls = _Calls()
        self._computed: defaultdict[int, list[tuple[float | None, Prediction]]] = defaultdict(list)

    def __enter__(self) -> Self:
        rollout_begins()
        self._entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        rollout_ends()
        self._entered -= 1
        self._forget()
        self._planner.reset()
        self._decision = None

    @property
    def decisions(self) -> list[Decision]:
        """The decisions so far, chunk by chunk."""
        return self._planner.decisions

    def chunk(self, index: int) -> Decision:
        """Begin chunk ``index``; nothing of the chunk before is kept but its decision.

        Args:
            index: a whole number, of any kind.

        Raises:
            InputError: the path has no such chunk.
            StateError: the rollout is not entered, so calls would not count as inside of it.
        """
        index = _whole(index, "chunk")
        if not self._entered:
            fix = "call it inside of `with lightint_compile.rollout(cameras=...) as run:`"
            raise StateError("no rollout is under way", where="chunk", why="chunks belong to one", fix=fix)
        chunk, frames = self._planner.rules.chunk, int(self._cameras.shape[0])
        last = frames % chunk + chunk * (index + 1)
        if not 0 <= index < frames // chunk:
            why, fix = f"the path has {frames // chunk} chunks", "count them from 0"
            raise InputError(f"There is no chunk {index}.", where="chunk", why=why, fix=fix)
        self._forget()
        self._decision = self._planner.decide(self._cameras[:last])
        return self._decision

    def step(self, number: int, compute: Callable[[], T], sigma: float | None = None) -> T:
        """The prediction of denoising step ``number``: ``compute()``, or what the chunk already knows of it.

        A prediction is a tensor, or tuples, lists, mappings and dataclasses of tensors, as a transformer returns them.
        It is copied when it is kept, so both it and what is given back are the caller's to write into.

        With ``sigma`` a reused step follows the line through the latest two computed ones; without, it holds one. A
        step asked twice in a chunk is a guidance pair: each half follows its own predictions, told apart by order. A
        step is reused where the steps before it were asked as often as those of a chunk before: a loop that begins
        again in the middle of a chunk computes, until ``chunk`` is called.

        Raises:
            InputError: ``number`` is no whole number from 0 on, ``sigma`` no finite number, or ``compute`` cannot be
                called.
            StateError: no chunk has begun.
        """
        number, sigma = _counted(number), _finite(sigma)
        check_callable("compute", compute, "run.step(k, lambda: transformer(...))")
        if self._decision is None:
            raise StateError(
                "no chunk has begun", why="steps belong to a chunk", fix="call chunk(i) before step(k, ...)"
            )
        reused, computed = self._decision.reused_steps, self._computed[self._calls.add(number)]
        if number in reused and computed and self._may_reuse(number):
            prediction: T = _reused(computed, sigma)
        else:
            prediction = compute()
            if reused:
                computed[:] = [*computed[-1:], (sigma, Prediction.of(prediction))]
        return prediction

    def _may_reuse(self, number: int) -> bool:
        fits, latest = self._calls.fit, self._planner.latest
        if not fits and latest is not None:
            latest.refused(number, "its steps are not called as often as those of a chunk before")
        return fits

    def _forget(self) -> None:
        self._computed.clear()
        self._calls.begin()


def _whole(number: Any, what: str) -> int:
    try:
        return operator.index(number)
    except TypeError:
        why, fix = f"it is {type(number).__name__}, a whole number is wanted", f"count each {what} from 0"
        raise InputError(f"There is no {what} {number!r}.", where=what, why=why, fix=fix) from None


def _counted(step: Any) -> int:
    number = _whole(step, "step")
    if number < 0:
        raise InputError(f"There is no step {number}.", where="step", why="it is negative", fix="count steps from 0")
    return number


def _finite(sigma: Any) -> Any:
    """The sigma of a step as a number; one on a device stays there."""
    if sigma is None or (isinstance(sigma, Tensor) and sigma.device.type != "cpu"):
        return sigma
    try:
        found = math.nan if isinstance(sigma, (str, bytes)) else float(sigma)
    except (TypeError, ValueError, RuntimeError):
        found = math.nan
    if not math.isfinite(found):
        fix = "give the step's sigma, or none: then a reused step holds the latest prediction"
        raise InputError(f"{sigma!r} is no sigma.", where="step: sigma", why="a finite number is wanted", fix=fix)
    return found


def _reused(computed: list[tuple[float | None, Prediction]], sigma: float | None) -> Any:
    latest_at, latest = computed[-1]
    before_at, before = computed[0]
    if sigma is None or latest_at is None or before_at is None or latest_at == before_at:
        return latest.held()
    return latest.along(before, (sigma - latest_at) / (latest_at - before_at))
