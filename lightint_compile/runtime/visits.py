"""One call of a program that is a step of a loop outside of it: what it was given, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.cameras import of_elements
from lightint_compile.runtime.content_check import Check, Content, Watch


@dataclass(frozen=True)
class Told:
    """What was read of a call, on the host.

    Attributes:
        at: the timestep: the largest number of it.
        rest: the smallest number and how often it occurs, where tokens or frames have another one than the largest.
        cameras: [B, F, 4, 4] as they came, in ``dtype`` or wider.
        intrinsics: those of every element of the batch, or of all at once.
    """

    at: float
    rest: tuple[float, ...]
    cameras: Tensor
    dtype: torch.dtype
    intrinsics: Tensor | None = None


class Visit:
    """A call, from the end of its first block on. What it was given is copied, as the caller may write to it.

    Attributes:
        watch: which program was called, and what else it was given.
        told: what was read of it; ``None`` until then.
        step: the step of its chunk that it is, once its place is found.
        content: everything it was given but latent and timestep; ``None`` until known, or where it cannot be told.
        first: the first block's output, where a later step may be compared with it.
        prediction: what it computed, where a later step may follow it.
        keeps: whether both are wanted.
    """

    def __init__(
        self,
        latent: Tensor,
        timestep: Tensor,
        cameras: Tensor,
        first: Tensor | None,
        intrinsics: Tensor | None,
        watch: Watch,
    ) -> None:
        self.watch, self.first, self.keeps = watch, first, False
        self._of = latent.shape, latent.stride(), latent.dtype, latent.device
        self.told: Told | None = None
        self.step = 0
        self.content: Content | None = None
        self.prediction: Tensor | None = None
        self._check: Check | None = None
        self._dtype = cameras.dtype
        self._given = [_summary(timestep), cameras.detach().clone()]
        if intrinsics is not None:
            self._given.append(of_elements(intrinsics.detach()).clone())

    def keep(self) -> None:
        """A later step may follow this one: its content is checked from now on, and its values are kept."""
        self.keeps = True
        self.first = None if self.first is None else self.first.clone()
        self.compare()

    def compare(self) -> None:
        """The step may follow another: what it is given is read now, before the caller writes to it again."""
        if self.content is None:
            self._check = self.watch.current()
            self._sums()

    def waiting(self) -> list[Tensor]:
        """What must come to the host to know this call."""
        return [*self._sums(), *(self._given if self.told is None else ())]

    def arrived(self, numbers: Sequence[Tensor]) -> None:
        """The numbers behind :meth:`waiting`, in float64."""
        count = len(self._sums())
        if self._check is not None:
            self._check.arrived(numbers[:count])
            self.content = self._check.content(self.watch.positions)
            self._check = None
        if self.told is None:
            (most, least, often), cameras, *intrinsics = numbers[count:]
            rest = () if least == most else (float(least), float(often))
            cameras = cameras.reshape(-1, *cameras.shape[-3:])
            self.told = Told(float(most), rest, cameras, self._dtype, *intrinsics)
            self._given = []

    def is_like(self, other: Visit) -> bool:
        """Whether ``other`` is of the same program at the same sizes."""
        return self.watch is other.watch and self._of == other._of

    def has_content_of(self, other: Visit) -> bool:
        """Whether both were given the same but for latent and timestep."""
        known = self.is_like(other) and self.content is not None and other.content is not None
        return known and self.content.equals(other.content)  # type: ignore[union-attr, arg-type]

    def _sums(self) -> list[Tensor]:
        return [] if self._check is None else self._check.waiting()


def read(visits: Sequence[Visit], more: Sequence[Tensor]) -> list[float]:
    """One transfer: what is to be known of visits, and ``more`` scalars, whose values it gives."""
    waiting = [each.waiting() for each in visits]
    parts = [*more, *(part for each in waiting for part in each)]
    parts.sort(key=lambda part: part.device.type == "cpu")
    numbers = dict(zip(map(id, parts), transfer.together(parts), strict=True))
    for visit, each in zip(visits, waiting, strict=True):
        visit.arrived([numbers[id(part)] for part in each])
    return [float(numbers[id(part)]) for part in more]


def _summary(timestep: Tensor) -> Tensor:
    """The largest and the smallest number of a timestep, and how often the smallest occurs: [3] in float64."""
    flat = timestep.detach().flatten().double()
    least = flat.amin()
    return torch.stack([flat.amax(), least, (flat == least).sum().double()])
