"""Decisions over a rollout: one planner a rollout, asked once a chunk, with a log of what it said."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.rules import CLIP, Rules, Situation
from lightint_compile.runtime.views import check_cameras


class Planner:
    """Applies :class:`Rules` chunk by chunk and remembers its decisions.

    A call whose cameras do not continue the ones before (another trajectory, a scene cut, a new rollout) starts over: no
    decision of one rollout reaches another.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.decisions: list[Decision] = []
        self._cameras: Tensor | None = None
        self._lock = threading.Lock()

    def decide(self, extrinsics: Tensor, dynamics: float | None = None) -> Decision:
        """The decision for the chunk that the last four of ``extrinsics`` [F + 4, 4, 4] (world-to-camera) belong to.

        Raises:
            InputError: cameras that are not rigid transforms, or not a whole number of chunks.
        """
        cameras = extrinsics.detach().to("cpu", torch.float64)
        if cameras.dim() != 3 or cameras.shape[0] < CLIP or cameras.shape[0] % CLIP:
            why = f"the shape is {tuple(extrinsics.shape)}, a chunk has {CLIP} latent frames"
            raise InputError("The cameras are no whole number of chunks.", where="extrinsics", why=why)
        check_cameras(cameras)
        with self._lock:
            if not self._continues(cameras):
                self.decisions.clear()
            before = self.decisions[-1] if self.decisions else None
            situation = Situation(cameras.shape[0] // CLIP - 1, cameras, dynamics, before)
            decision = self.rules.decide(situation)
            self.decisions.append(decision)
            self._cameras = cameras
            return decision

    def reset(self) -> None:
        """Forget the rollout."""
        with self._lock:
            self.decisions.clear()
            self._cameras = None

    def _continues(self, cameras: Tensor) -> bool:
        known = self._cameras
        if known is None or known.shape[0] >= cameras.shape[0]:
            return False
        return torch.equal(cameras[: known.shape[0]], known)


def plan(extrinsics: Tensor, rules: Rules) -> list[Decision]:
    """The decisions of a whole rollout along ``extrinsics`` [F, 4, 4], without a model (and without its latents).

    Raises:
        InputError: as of :meth:`Planner.decide`.
    """
    planner = Planner(rules)
    if extrinsics.shape[0] % CLIP:
        why = f"there are {extrinsics.shape[0]} latent frames, a chunk has {CLIP}"
        fix = 'a pose string has one frame more than its counts sum to: "w-63" is 64'
        raise InputError("The trajectory is no whole number of chunks.", where="trajectory", why=why, fix=fix)
    return [planner.decide(extrinsics[: CLIP * (chunk + 1)]) for chunk in range(extrinsics.shape[0] // CLIP)]
