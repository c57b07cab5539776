"""What a call is given, told by content: whether kept results belong to it.

A driver knows which of its arguments kept results come from. The first that asks in a call has all of them checked at
once: their checksums join the one transfer of a chunk where the program decides something, and are a transfer of their
own elsewhere. Neither the identity of a tensor nor its version says that it is unchanged: writes through ``.data``,
NumPy, DLPack or another process raise no version.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightint_compile.kernels.checksum import Memory, in_memory_order
from lightint_compile.runtime.content_sums import Checksums, Layout, Reading, layout_of, obstacle_now
from lightint_compile.runtime.device_to_host import together
from lightint_compile.torch_compat import layout_guard

log = logging.getLogger("lightint_compile.runtime")

_Pick: TypeAlias = Callable[[Sequence[Any]], tuple[Any, ...]]


@dataclass(frozen=True)
class Content:
    """What some arguments hold: equal for the same values read in the same way, wherever they lie.

    Attributes:
        sums: a checksum of each tensor, the text of each number.
        layouts: how each tensor reads its memory.
        places: where each tensor lies; no part of what it holds.
    """

    sums: tuple[int | str, ...]
    layouts: tuple[Layout, ...]
    places: tuple[int, ...]

    def equals(self, other: Content) -> bool:
        """Whether the same is held."""
        return self.sums == other.sums and self.layouts == other.layouts

    def replaces(self, other: Content) -> bool:
        """Whether ``other`` was overwritten by this: read in the same way in the same places, it is there no more."""
        return self.places == other.places and self.layouts == other.layouts and self.sums != other.sums


class Check:
    """The arguments of one call.

    Args:
        args: all of them, and the tensors that the program holds itself behind them.
        watch: which of them kept results come from, and how they were read in an earlier call.
    """

    def __init__(self, args: Sequence[Any], watch: Watch) -> None:
        self._values, self._watch = watch.watched(args), watch
        self._begun: _Begun | None = None
        self._told: list[int | str] | None = None
        #: Of the kept results that this call read or made: which ones they are, by name.
        self.used: dict[str, object] = {}

    def waiting(self) -> list[Tensor]:
        """What has to come to the host to know :meth:`content`; the checksums are started by the first call."""
        return self._started().sums.waiting()

    def arrived(self, numbers: Iterable[Tensor]) -> None:
        """The numbers behind :meth:`waiting`."""
        self._started().sums.arrived(numbers)

    def content(self, positions: tuple[int, ...]) -> Content | None:
        """What the arguments at ``positions`` hold; ``None`` where one of them cannot be read."""
        if self.why_not(positions):
            return None
        begun, pick = self._started(), self._watch.picks(positions)
        return Content(pick(self._known(begun)), pick(begun.survey.layouts), pick(begun.places))

    def why_not(self, positions: tuple[int, ...]) -> str:
        """Why there is no :meth:`content`; empty where there is."""
        obstacles = self._started().obstacles
        if not obstacles:
            return ""
        slots = self._watch.picks(positions)(range(len(self._values)))
        return next((obstacles[slot] for slot in slots if slot in obstacles), "")

    def _started(self) -> _Begun:
        if self._begun is None:
            self._begun = _Begun(self._values, self._watch.survey(self._values))
        return self._begun

    def _known(self, begun: _Begun) -> list[int | str]:
        if self._told is None:
            if begun.sums.waiting():
                begun.sums.arrived(together(begun.sums.waiting()))
            self._told = begun.told(self._values)
        return self._told


@dataclass(frozen=True)
class _Group:
    """Watched tensors of one device, which are read together.

    Attributes:
        slots: which they are, in the order of the watch.
        sizes: their bytes.
        scattered: which of them have gaps or overlap, by their place here.
    """

    device: torch.device
    slots: list[int]
    sizes: list[int]
    scattered: list[int]

    def memory(self, values: Sequence[Any]) -> tuple[list[int], Memory]:
        """Where the tensors lie, and the memory that is read: theirs, or a copy's of what is scattered."""
        tensors = [values[slot] for slot in self.slots]
        places = [tensor.data_ptr() for tensor in tensors]
        addresses = list(places)
        for place in self.scattered:
            tensors[place] = in_memory_order(tensors[place].detach())
            addresses[place] = tensors[place].data_ptr()
        return places, Memory(self.device, addresses, self.sizes, tensors, [1] * len(tensors))


@dataclass(frozen=True)
class _Survey:
    """How watched arguments of certain layouts are read.

    Attributes:
        layouts: of each argument, empty for a number.
        readings: of each tensor.
        groups: the tensors that are read, by device.
        blocked: why the others cannot be read, by their number.
        unchanged: whether values have these layouts still, told at once; it may say no where they have.
    """

    layouts: list[Layout]
    readings: list[Reading | None]
    groups: list[_Group]
    blocked: dict[int, str]
    unchanged: Callable[[Sequence[Any]], bool]

    @classmethod
    def of(cls, values: Sequence[Any], layouts: list[Layout], before: _Survey | None) -> _Survey:
        """A new one; what has the layout that it had ``before`` is not looked at again."""
        known = before.readings if before else [None] * len(values)
        readings = [
            None if not layout else old if old and old.layout == layout else Reading.of(value, layout)
            for value, layout, old in zip(values, layouts, known, strict=True)
        ]
        groups: dict[torch.device, _Group] = {}
        blocked: dict[int, str] = {}
        for slot, reading in enumerate(readings):
            if reading is not None and reading.obstacle:
                blocked[slot] = reading.obstacle
            elif reading is not None:
                device = values[slot].device
                group = groups.setdefault(device, _Group(device, [], [], []))
                group.scattered.extend([] if reading.in_order else [len(group.slots)])
                group.slots.append(slot)
                group.sizes.append(reading.size)
        return cls(layouts, readings, list(groups.values()), blocked, _unchanged(values, layouts, blocked))

    def obstacles(self, now: str) -> dict[int, str]:
        """Why no tensor can be read at the moment, by their numbers."""
        return {slot: now for slot, reading in enumerate(self.readings) if reading is not None}


class _Begun:
    """What is known of the watched arguments when their checksums are started, in the order of the watch.

    Attributes:
        survey: how they are read.
        places: where each tensor lies.
        obstacles: why an argument cannot be read, by its number.
        sums: the checksums of each group of the survey.
    """

    def __init__(self, values: Sequence[Any], survey: _Survey) -> None:
        self.survey, self.places, self.sums = survey, [0] * len(values), Checksums([])
        now = obstacle_now(group.device.type for group in survey.groups)
        if not now:
            try:
                self.sums = Checksums([self._memory(group, values) for group in survey.groups])
            except Exception as error:  # no memory for a copy, a kernel that does not compile: the call itself may run
                now = f"reading it failed: {error}"
        self.obstacles = survey.obstacles(now) if now else survey.blocked

    def _memory(self, group: _Group, values: Sequence[Any]) -> Memory:
        places, memory = group.memory(values)
        for slot, place in zip(group.slots, places, strict=True):
            self.places[slot] = place
        return memory

    def told(self, values: Sequence[Any]) -> list[int | str]:
        """The checksum of each tensor, the text of each number, once no number is waited for."""
        told: list[int | str] = [0 if isinstance(value, Tensor) else repr(value) for value in values]
        for group, sums in zip(self.survey.groups, self.sums.values(), strict=False):
            for slot, value in zip(group.slots, sums, strict=True):
                told[slot] = value
        return told


class Watch:
    """Whose content a driver asks for, and the check of the call that each thread is in.

    Args:
        positions: of the arguments, and of the program's own tensors behind them.
        keeps: whether anything is kept, be it from none of these.

    Attributes:
        watched: takes the watched arguments out of all of a call.
    """

    def __init__(self, positions: Iterable[int] = (), *, keeps: bool = False) -> None:
        self.positions = tuple(sorted(set(positions)))
        self._keeps = keeps or bool(self.positions)
        self._slots = {position: slot for slot, position in enumerate(self.positions)}
        self.watched = _picker(self.positions)
        self._survey: _Survey | None = None
        self._picks: dict[tuple[int, ...], _Pick] = {}
        self._calls = threading.local()
        self._told = False

    @contextmanager
    def call(self, args: Sequence[Any]) -> Iterator[None]:
        """The calling thread is in a call with these arguments while the context lasts."""
        before = self.current()
        self._calls.check = Check(args, self) if self._keeps else None
        try:
            yield
        finally:
            self._calls.check = before

    def current(self) -> Check | None:
        """The check of the call that this thread is in; ``None`` outside of one, or where nothing is kept."""
        found: Check | None = getattr(self._calls, "check", None)
        return found

    def survey(self, values: Sequence[Any]) -> _Survey:
        """How the watched arguments are read: as in an earlier call, where all layouts are the same."""
        known = self._survey
        if known is not None and known.unchanged(values):
            return known
        layouts = [layout_of(value) if isinstance(value, Tensor) else () for value in values]
        if known is None or known.layouts != layouts:
            known = self._survey = _Survey.of(values, layouts, known)
        return known

    def picks(self, positions: tuple[int, ...]) -> _Pick:
        """What takes the arguments at ``positions`` out of a list of the watched ones."""
        if positions not in self._picks:
            self._picks[positions] = _picker([self._slots[position] for position in positions])
        return self._picks[positions]

    def tell(self, reason: str) -> None:
        """Say once why results are not kept."""
        if not self._told:
            self._told = True
            log.info("results that could be kept between calls are computed in every call: of an input, %s", reason)


def _unchanged(values: Sequence[Any], layouts: Sequence[Layout], blocked: Collection[int]) -> Callable[..., bool]:
    """A quick check of whether other values have these layouts; numbers are of their layout whatever they are."""
    tensors = [slot for slot, layout in enumerate(layouts) if layout]
    numbers = [slot for slot, layout in enumerate(layouts) if not layout]
    if blocked or not tensors:
        return lambda _: False
    pick = _picker(tensors)
    guard = layout_guard(pick(values))
    return lambda now: guard(*pick(now)) and not any(isinstance(now[slot], Tensor) for slot in numbers)


def _picker(slots: Sequence[int]) -> _Pick:
    if len(slots) > 1:
        return itemgetter(*slots)
    return lambda values: tuple(values[slot] for slot in slots)
