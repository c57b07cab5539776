"""The rollout of pipelines that make clip after clip, with single frames of the past that the cameras choose.

The loop is inside of ``generate``. A later clip begins where the pipeline asks ``select_memory_idx_fov``, with the
cameras of the video and the frames that ask, for the frames to remember; the first clip asks for none. In a clip the
model is called once a denoising step, twice under guidance, and is given the remembered frames by themselves.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from lightint_compile.integrations.loop import Calls
from lightint_compile.integrations.loop_rules import LoopRules
from lightint_compile.integrations.replacing import Replaced, ReplacedGlobal
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.rollout import Rollout, rollout

_ROLLOUT, _SELECT, _MODEL = "generate", "select_memory_idx_fov", "model"
_STEPS, _GUIDED = "num_inference_steps", "use_base_model"
"""Arguments of ``generate``: denoising steps, and whether each is two calls."""

_COMING = "predict_latent_idx"
"""The argument of the model that says which latent frames a clip is: the first, and the one behind its last."""

_FRAMES: Mapping[str, int] = {"x_memory": 2, "mouse_cond_memory": 1, "keyboard_cond_memory": 1}
"""Arguments of the model that hold remembered frames, and their axis of frames."""

_TIMES, _NUMBERS, _RAYS = "timestep_memory", "memory_latent_idx", "plucker_emb"
"""Arguments that hold them otherwise: times [1, M * tokens], latent frames as a list, and rays of remembered and coming
frames [1, C, M + F, h, w]. The model takes a tensor of latent frames as well."""

_VIDEO_FRAMES = 4
"""Frames of the video that a latent frame stands for; the first stands for one."""


def install(pipeline: Any, calls: Mapping[str, Calls], rules: LoopRules) -> MemoryClips | None:
    """See :data:`~lightint_compile.integrations.loop.Adapter`."""
    loop = getattr(pipeline, _ROLLOUT, None)
    if not inspect.ismethod(loop) or _MODEL not in calls or not rules:
        return None
    if _STEPS not in inspect.signature(loop).parameters or _SELECT not in loop.__func__.__globals__:
        return None
    return MemoryClips(pipeline, loop, calls[_MODEL], rules)


@dataclass
class _Run:
    """One rollout under way.

    Attributes:
        calls_a_step: calls of the model in one denoising step: two under guidance.
        open: what is left when the rollout ends.
        cameras: world-to-camera [F, 4, 4] of the latent frames that the pipeline knows; ``None`` in the first clip.
        asking: frames of the video that ask for a remembered one, the last of the clip first.
        clip: its number.
        asked: calls in it.
        ends: latent frames at the end of each clip so far.
    """

    rules: LoopRules
    steps: int
    calls_a_step: int
    open: contextlib.ExitStack
    cameras: Tensor | None = None
    asking: tuple[int, ...] = ()
    clip: int = 0
    asked: int = 0
    ends: dict[int, int] = field(default_factory=dict)
    rollout: Rollout | None = None
    decision: Decision | None = None

    def begin(self, poses: Any, asking: Sequence[int]) -> None:
        """A later clip, of cameras camera-to-world [V, 4, 4], one a frame of the video."""
        cameras = _cameras_of(poses)
        if self.cameras is None or not torch.equal(cameras, self.cameras):
            self.rollout = None  # a path that grew
        self.cameras, self.asking, self.decision = cameras, tuple(map(int, asking)), None
        self.clip, self.asked = self.clip + 1, 0

    def called(self, call: Callable[[], Any], given: dict[str, Any]) -> Any:
        """A call of the model, on fewer remembered frames, or left out."""
        step, self.asked = self.asked // self.calls_a_step, self.asked + 1
        first, self.ends[self.clip] = map(int, given[_COMING])
        if not self.clip:
            return call()
        if self.decision is None:
            self.decision = self._decide(first)
        if self.decision.asked_places is not None and given.get("x_memory") is not None:
            _remember(given, self.decision.asked_places)
        assert self.rollout is not None
        return self.rollout.step(step, call)

    def _decide(self, first: int) -> Decision:
        """The decision of this clip, whose known latent frames begin with ``first``."""
        if self.rollout is None:
            self.rollout = self._entered(first)
            for earlier in range(self.clip):
                self.rollout.chunk(earlier)
        return self.rollout.chunk(self.clip)

    def _entered(self, first: int) -> Rollout:
        before = self.ends[self.clip - 1]
        rules = self.rules.of_frames(
            self.steps,
            chunk=self.ends[self.clip] - before,
            first_chunk=self.ends[0],
            memory=len(self.asking) + before - first,
            recent=before - first,
            asked_every=(self.asking[0] - self.asking[1]) // _VIDEO_FRAMES,
        )
        return self.open.enter_context(rollout(cameras=self.cameras, rules=rules))


_under_way: ContextVar[_Run | None] = ContextVar("lightint_memory_clips", default=None)


def _cameras_of(poses: Any) -> Tensor:
    """World-to-camera [F, 4, 4] of the last frame of the video in each latent frame.

    A left-handed camera sees what its mirror image sees: the field of view is symmetric.
    """
    latent = torch.as_tensor(poses)[::_VIDEO_FRAMES].double().cpu()
    latent = torch.where(torch.linalg.det(latent[:, :3, :3])[:, None, None] < 0, latent @ _MIRROR, latent)
    return torch.linalg.inv(latent)


_MIRROR = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))


def _remember(given: dict[str, Any], places: Sequence[int]) -> None:
    """Leave of the remembered frames those at ``places``, in the keyword arguments of a call."""
    count, kept = given["x_memory"].shape[2], list(places)
    given[_NUMBERS] = _as_tensor(given[_NUMBERS], given["x_memory"].device)
    if len(kept) == count:
        return
    for name, axis in _FRAMES.items():
        if given.get(name) is not None:
            given[name] = given[name].index_select(axis, torch.tensor(kept, device=given[name].device))
    given[_TIMES] = given[_TIMES].unflatten(1, (count, -1))[:, kept].flatten(1)
    given[_NUMBERS] = given[_NUMBERS][kept]
    rays = given[_RAYS]
    given[_RAYS] = torch.cat([rays[:, :, :count][:, :, kept], rays[:, :, count:]], 2)


def _as_tensor(numbers: Any, device: torch.device) -> Tensor:
    """Numbers of frames as a tensor: one program then serves every number of them, and a list would have one each."""
    return torch.as_tensor(numbers, dtype=torch.long, device=device)


def _choosing(choose: Callable[..., Any]) -> Callable[..., Any]:
    """``select_memory_idx_fov``, by which a clip of the rollout under way begins."""

    @functools.wraps(choose)
    def chosen(poses: Any, first: Any, asking: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        run = _under_way.get()
        if run is not None:
            run.begin(poses, asking)
        return choose(poses, first, asking, *args, **kwargs)

    return chosen


class MemoryClips:
    """One such pipeline; see :class:`~lightint_compile.integrations.loop.Loop`."""

    def __init__(self, pipeline: Any, loop: MethodType, model: Calls, rules: LoopRules) -> None:
        self._loop, self._rules, self._signature = loop, rules, inspect.signature(loop)
        self.decisions: list[Decision] = []
        self.what = f"{type(pipeline).__name__}.{_ROLLOUT} is followed: {rules} are decided from its cameras"
        self._replaced = (
            ReplacedGlobal(loop.__func__.__globals__, _SELECT, _choosing),
            Replaced(pipeline, _ROLLOUT, self._rolled_out),
        )
        model.intercept(_called)

    def undo(self) -> None:
        """Leave the pipeline as it was."""
        for each in self._replaced:
            each.undo()

    def _rolled_out(self, *args: Any, **kwargs: Any) -> Any:
        """``generate`` inside of a rollout of ours; on several GPUs, where one of them asks for all, as it is."""
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            return self._loop(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        with contextlib.ExitStack() as stack:
            run = _Run(self._rules, int(given[_STEPS]), 2 if given.get(_GUIDED) else 1, stack)
            token = _under_way.set(run)
            try:
                return self._loop(*args, **kwargs)
            finally:
                _under_way.reset(token)
                self.decisions = [] if run.rollout is None else list(run.rollout.decisions)


def _called(call: Callable[[], Any], given: dict[str, Any]) -> Any:
    """A call of the model; inside of a rollout a denoising step may be left out, and remembered frames dropped."""
    run = _under_way.get()
    return call() if run is None or given.get(_COMING) is None else run.called(call, given)
