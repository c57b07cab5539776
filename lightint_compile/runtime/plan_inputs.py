"""What the plan of a chunk reads: one transfer from the device for everything that is decided on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.passes.ir.decision_points import PlanPoint
from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.cameras import of_elements, view_of
from lightint_compile.runtime.content_check import Content, Watch
from lightint_compile.runtime.drift import latent_dynamics
from lightint_compile.runtime.kept_frames import Fingerprint
from lightint_compile.runtime.kv_store import Keeping, fingerprints, frame_sums
from lightint_compile.runtime.view_overlap import AngularView

log = logging.getLogger("lightint_compile.runtime")


@dataclass(frozen=True)
class Watched:
    """The arguments that kept keys and values depend on."""

    watch: Watch
    positions: tuple[int, ...]

    def waiting(self) -> list[Tensor]:
        """Checksums on a device that are to be read."""
        check = self.watch.current()
        return check.waiting() if check else []

    def arrived(self, numbers: Sequence[Tensor]) -> None:
        """Takes what was read of :meth:`waiting`."""
        check = self.watch.current()
        if check:
            check.arrived(numbers)

    def content(self) -> Content | None:
        """What the arguments hold; ``None`` where one of them cannot be told."""
        check = self.watch.current()
        found = check.content(self.positions) if check else None
        if check and found is None:
            self.watch.tell(check.why_not(self.positions))
        return found


@dataclass(frozen=True)
class Seen:
    """What was read, on the host.

    Attributes:
        cameras: of the history and of the coming chunk, in the ``dtype`` that they were rounded to, or wider.
        first: how many of them are the history's; -1 where the coming frames do not follow one another.
        history: latent frames of the history, where they are known.
        dynamics: relative change between the newest latents, where rules look at it.
        prints: what tells every frame apart from others, where values of frames are kept.
        views: the fields of view that intrinsics tell, one for all elements of a batch or one for each.
    """

    cameras: Tensor
    dtype: torch.dtype
    first: int
    history: int | None = None
    dynamics: float | None = None
    prints: Sequence[Fingerprint] = ()
    views: Sequence[AngularView] = ()

    @property
    def frames(self) -> int:
        """Latent frames so far."""
        return max(self.first, 0) if self.history is None else self.history

    def check(self, chunk: int) -> None:
        """Raise :class:`InputError` unless the cameras are those of the history and of one chunk behind it."""
        poses = int(self.cameras.shape[-3])
        if self.first < 0 or poses < self.first + chunk:
            why = f"the coming chunk begins at frame {self.first}, and the path ends at {poses}"
            fix = f"give the cameras of {chunk} consecutive frames behind the history"
            raise InputError("The cameras do not reach the coming chunk.", where="extrinsics", why=why, fix=fix)
        if self.history is not None and self.first != self.history:
            why = f"there are {poses} cameras and a history of {self.history} latent frames"
            fix = (
                f"give the cameras of the history and of the next {chunk} latent frames, {self.history + chunk} in all"
            )
            raise InputError("The cameras do not belong to the history.", where="extrinsics", why=why, fix=fix)


def read(
    spec: PlanPoint,
    keeping: Keeping,
    watched: Watched,
    extrinsics: Tensor,
    history: Tensor | None,
    frames: Sequence[Tensor],
    first: int | Tensor | None,
    intrinsics: Tensor | None,
) -> Seen:
    """One transfer: the operands of a plan point, checksums of frames and of ``watched``, and drifts of kept values.

    What it tells of kept values and of arguments goes to ``keeping`` and ``watched``; the rest is the result.
    """
    policy = spec.policy
    contents = watched.waiting()  # first, as it takes the device longest and the host has more to do meanwhile
    looks = history is not None and policy.adapt_context and policy.rules == "adaptive"
    sums, drifts = frame_sums(frames, spec.frame_axes), keeping.drifts()
    groups: dict[str, Sequence[Tensor]] = {
        "cameras": [extrinsics],
        "dynamics": [latent_dynamics(history.detach())] if looks and history is not None else [],
        "sums": sums.waiting(),
        "contents": contents,
        "first": [first] if isinstance(first, Tensor) else [],
        "intrinsics": [of_elements(intrinsics.detach())] if intrinsics is not None else [],
        "drifts": [drift for _, drift in drifts],
    }
    numbers = iter(transfer.together([part for group in groups.values() for part in group]))
    told = {name: [next(numbers) for _ in group] for name, group in groups.items()}
    sums.arrived(told["sums"])
    watched.arrived(told["contents"])
    for (store, _), drift in zip(drifts, told["drifts"], strict=True):
        keeping.heard(store, float(drift))
    (cameras,) = told["cameras"]
    begins = int(cameras.shape[-3]) - 1 - spec.cameras * (policy.chunk - 1)
    begins = begins if first is None else _begin(policy.chunk, first, *told["first"])
    cameras, begins = cameras[..., begins % spec.cameras :: spec.cameras, :, :], begins // spec.cameras
    return Seen(
        cameras[..., : max(begins + policy.chunk, 0), :, :],
        extrinsics.dtype,
        begins,
        None if history is None else int(history.shape[2]),
        next(map(float, told["dynamics"]), None),
        fingerprints(sums, frames, spec.frame_axes),
        views_of(policy.view_depth, *told["intrinsics"]),
    )


def _begin(chunk: int, first: int | Tensor, numbers: Tensor | None = None) -> int:
    """The first coming frame; -1 for frames that do not follow one another."""
    if numbers is None:
        return int(first)
    rows = [int(number) for number in numbers.flatten()]
    return rows[0] if rows == list(range(rows[0], rows[0] + chunk)) else -1


def views_of(depth: float, intrinsics: Tensor | None = None) -> Sequence[AngularView]:
    """The fields of view that intrinsics tell; none where they tell none, which is said in the log."""
    if intrinsics is None:
        return ()
    try:
        return [view_of(each, depth=depth) for each in intrinsics]
    except InputError as error:
        log.warning("intrinsics are not looked at: %s", error)
        return ()
