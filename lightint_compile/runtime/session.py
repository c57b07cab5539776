"""Decisions for loops that live outside the compiled module: a pipeline's, or a script's own.

with lightint_compile.rollout(cameras=extrinsics, intrinsics=intrinsics) as run:
    for chunk in range(chunks):
        decision = run.chunk(chunk)                  # which context frames to gather, and why
        for k, sigma in enumerate(sigmas):
            velocity = run.step(k, lambda: transformer(latents, sigma, ...), sigma)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from lightint_compile.errors import InputError, StateError
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.rules import CLIP, AdaptiveRules, Rules
from lightint_compile.runtime.views import AngularView, check_cameras


def rollout(*, cameras: Tensor, intrinsics: Tensor | None = None, rules: Rules | None = None) -> Rollout:
    """A rollout along ``cameras``, to be entered with ``with``.

    Args:
        cameras: [F, 4, 4] world-to-camera of the whole path, a chunk every four latent frames.
        intrinsics: [F, 3, 3] or [3, 3] with focal lengths over image width and height: they set the field of view that
            overlap is measured in. Without them it is 60 by 35 degrees.
        rules: how to decide; ours unless given.

    Raises:
        InputError: cameras that are no rigid transforms, or no whole number of chunks; focal lengths that are not
            positive.
    """
    if cameras.dim() != 3 or cameras.shape[0] % CLIP or not cameras.shape[0]:
        why = f"the shape is {tuple(cameras.shape)}, a chunk has {CLIP} latent frames"
        raise InputError("The cameras are no whole number of chunks.", where="cameras", why=why, fix="give [F, 4, 4]")
    check_cameras(cameras.detach().to("cpu", torch.float64), "cameras")
    if rules is None:
        rules = AdaptiveRules() if intrinsics is None else AdaptiveRules(view=_view(intrinsics))
    return Rollout(cameras, rules)


def _view(intrinsics: Tensor) -> AngularView:
    focal = intrinsics.detach().reshape(-1, 3, 3)[0].to("cpu", torch.float64).diagonal()[:2]
    if not bool((focal > 0).all()):
        why = f"they are {focal.tolist()}"
        raise InputError(
            "Focal lengths must be positive.", where="intrinsics", why=why, fix="divide pixels by the image size"
        )
    horizontal, vertical = (math.degrees(2 * math.atan(0.5 / length)) for length in focal.tolist())
    return AngularView(horizontal, vertical)


class Rollout:
    """Where a rollout is, what was decided, and what its latest computed steps predicted. It is one thread's own."""

    def __init__(self, cameras: Tensor, rules: Rules) -> None:
        self._cameras, self._planner = cameras.detach(), Planner(rules)
        self._decision: Decision | None = None
        self._asked: Counter[int] = Counter()
        self._computed: defaultdict[int, list[tuple[float | None, Tensor]]] = defaultdict(list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget()
        self._planner.reset()
        self._decision = None

    @property
    def decisions(self) -> list[Decision]:
        """The decisions so far, chunk by chunk."""
        return self._planner.decisions

    def chunk(self, index: int) -> Decision:
        """Begin chunk ``index``; nothing of the chunk before is kept but its decision.

        Raises:
            InputError: the path has no such chunk.
        """
        last = CLIP * (index + 1)
        if not 0 < last <= self._cameras.shape[0]:
            why = f"the path has {self._cameras.shape[0] // CLIP} chunks"
            raise InputError(f"There is no chunk {index}.", where="chunk", why=why)
        self._forget()
        self._decision = self._planner.decide(self._cameras[:last])
        return self._decision

    def step(self, number: int, compute: Callable[[], Tensor], sigma: float | None = None) -> Tensor:
        """The prediction of denoising step ``number``: ``compute()``, or what the chunk already knows of it.

        With ``sigma`` a reused step follows the line through the latest two computed ones; without, it holds one. A
        step asked twice in a chunk is a guidance pair: each half follows its own predictions, told apart by order.

        Raises:
            StateError: no chunk has begun.
        """
        if self._decision is None:
            raise StateError(
                "no chunk has begun", why="steps belong to a chunk", fix="call chunk(i) before step(k, ...)"
            )
        computed = self._computed[self._asked[number]]
        if number in self._decision.reused_steps and computed:
            prediction = _reused(computed, sigma)
        else:
            prediction = compute()
            computed[:] = [*computed[-1:], (sigma, prediction)]
        self._asked[number] += 1
        return prediction

    def _forget(self) -> None:
        self._computed.clear()
        self._asked.clear()


def _reused(computed: list[tuple[float | None, Tensor]], sigma: float | None) -> Tensor:
    latest_at, latest = computed[-1]
    before_at, before = computed[0]
    if sigma is None or latest_at is None or before_at is None or latest_at == before_at:
        return latest.clone()
    step = (latest.float() - before.float()) * ((sigma - latest_at) / (latest_at - before_at))
    return (latest.float() + step).to(latest.dtype)
