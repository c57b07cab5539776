"""The rollout of pipelines in the form of HY-WorldPlay's: ``ar_rollout`` walks chunks along ``viewmats``.

The chunk loop is inside of ``ar_rollout``. A chunk begins where the pipeline asks ``select_aligned_memory_frames`` for
its context frames; the first one asks for none. In a chunk the transformer is called once to fill its K/V caches with
the context (``cache_vision``), then once a denoising step, twice under guidance.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from lightint_compile.integrations.camera_calls import SYMBOLIC_COUNTS, dense_cameras, filled
from lightint_compile.integrations.loop import Calls
from lightint_compile.integrations.loop_rules import LoopRules
from lightint_compile.integrations.replacing import Replaced, ReplacedGlobal
from lightint_compile.runtime.cameras import view_of
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.rollout import Rollout, rollout

_ROLLOUT, _SELECT = "ar_rollout", "select_aligned_memory_frames"
_READ = ("timesteps", "viewmats", "Ks")
"""Arguments of ``ar_rollout`` that are read: timesteps [S], world-to-camera [1, F, 4, 4], intrinsics [1, F, 3, 3]."""


def install(pipeline: Any, calls: Mapping[str, Calls], rules: LoopRules) -> CameraRollout | None:
    """See :data:`~lightint_compile.integrations.loop.Adapter`."""
    loop = getattr(pipeline, _ROLLOUT, None)
    if not inspect.ismethod(loop) or "transformer" not in calls:
        return None
    parameters = inspect.signature(loop).parameters
    if not all(name in parameters for name in _READ) or _SELECT not in loop.__func__.__globals__:
        return None
    return CameraRollout(pipeline, loop, calls["transformer"], rules)


@dataclass
class _Run:
    """One rollout under way.

    Attributes:
        adapts: whether the decided context frames are handed to the pipeline, or its own.
        calls_a_step: calls of the transformer in one denoising step: two under guidance.
        sigmas: the noise level of each step; empty where the scheduler does not say it.
    """

    rollout: Rollout
    chunk_frames: int
    adapts: bool
    calls_a_step: int
    sigmas: Sequence[float]
    chunk: int = -1
    asked: int = 0
    decision: Decision | None = field(default=None)

    def begin(self, chunk: int) -> Decision:
        if self.decision is None or chunk != self.chunk:
            self.chunk, self.asked, self.decision = chunk, 0, self.rollout.chunk(chunk)
        return self.decision

    def stepped(self, compute: Callable[[], Any]) -> Any:
        step = self.asked // self.calls_a_step
        self.asked += 1
        return self.rollout.step(step, compute, self.sigmas[step] if step < len(self.sigmas) else None)


_under_way: ContextVar[_Run | None] = ContextVar("lightint_camera_rollout", default=None)


def _choosing(choose: Callable[..., Any]) -> Callable[..., Any]:
    """``select_aligned_memory_frames`` which follows the rollout under way; outside of one it is the pipeline's own."""

    @functools.wraps(choose)
    def chosen(cameras: Any, first: int, *args: Any, **kwargs: Any) -> Any:
        run = _under_way.get()
        if run is None:
            return choose(cameras, first, *args, **kwargs)
        decision = run.begin(first // run.chunk_frames)
        return list(decision.context_frames) if run.adapts else choose(cameras, first, *args, **kwargs)

    return chosen


class CameraRollout:
    """One such pipeline; see :class:`~lightint_compile.integrations.loop.Loop`."""

    def __init__(self, pipeline: Any, loop: MethodType, transformer: Calls, rules: LoopRules) -> None:
        self._pipeline, self._loop, self._rules = pipeline, loop, rules
        self._signature = inspect.signature(loop)
        self.decisions: list[Decision] = []
        self.what = "one program serves every length of context"
        self._replaced: tuple[Replaced | ReplacedGlobal, ...] = ()
        if rules:
            self.what = f"{type(pipeline).__name__}.{_ROLLOUT} is followed: {rules} are decided from its cameras"
            self._replaced = (
                ReplacedGlobal(loop.__func__.__globals__, _SELECT, _choosing),
                Replaced(pipeline, _ROLLOUT, self._rolled_out),
            )
        transformer.intercept(_stepped)

    def undo(self) -> None:
        """Leave the pipeline as it was."""
        for each in self._replaced:
            each.undo()

    def _rolled_out(self, *args: Any, **kwargs: Any) -> Any:
        """``ar_rollout`` inside of a rollout of ours."""
        given = self._signature.bind(*args, **kwargs).arguments
        steps, chunk_frames = len(given["timesteps"]), int(self._pipeline.chunk_latent_frames)
        rules = self._rules.of_chunks(chunk_frames, steps)
        if not self._rules.has_view:
            rules = rules.seeing(view_of(given["Ks"][0], depth=rules.view_depth))
        with rollout(cameras=given["viewmats"], rules=rules) as run:
            adapts = self._rules.context is not None
            calls = 2 if self._pipeline.do_classifier_free_guidance else 1
            token = _under_way.set(_Run(run, chunk_frames, adapts, calls, self._sigmas(steps)))
            try:
                return self._loop(*args, **kwargs)
            finally:
                _under_way.reset(token)
                self.decisions = list(run.decisions)

    def _sigmas(self, steps: int) -> list[float]:
        """The noise levels of the steps, read once a rollout."""
        sigmas = getattr(self._pipeline.scheduler, "sigmas", None)
        return [] if sigmas is None or len(sigmas) < steps else [float(sigma) for sigma in sigmas]


def _stepped(call: Callable[[], Any], given: dict[str, Any]) -> Any:
    """A call of the transformer, by one program; a denoising step inside of a rollout may be left out."""
    with SYMBOLIC_COUNTS.on():
        return _called(call, given)


def _called(call: Callable[[], Any], given: dict[str, Any]) -> Any:
    run = _under_way.get()
    if not given.get("ar_vision_inference"):
        return call()
    dense_cameras(given)
    if given.get("cache_vision"):
        return filled(given, call)
    if run is None:
        return call()
    run.begin(max(run.chunk, 0))
    return run.stepped(call)
