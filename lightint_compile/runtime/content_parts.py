"""How the watched arguments of a call are read: in parts, each surveyed once and compared in later calls.

A device reads at the speed of its memory, and nothing is read whose layout and place have not been looked at. So what
the host looks at hides behind what the device reads: the few largest tensors, which are half of the bytes, are started
alone, and the many others are looked at meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from lightint_compile.kernels.checksum import Memory, in_memory_order
from lightint_compile.runtime.content_sums import Checksums, Layout, Reading, layout_of, obstacle_now
from lightint_compile.torch_compat import layout_guard

Pick: TypeAlias = Callable[[Sequence[Any]], tuple[Any, ...]]
_T = TypeVar("_T")

FIRST = 0.5
"""Of the bytes on a device, those of the largest tensors that are started alone."""

WORTH = 1 << 28
"""Bytes on a device that take longer to read than the host takes for another launch."""


@dataclass(frozen=True)
class Group:
    """Tensors of one device, which are read together.

    Attributes:
        slots: which they are, in the order of the part.
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
        places = list(map(Tensor.data_ptr, tensors))
        addresses = list(places)
        for place in self.scattered:
            tensors[place] = in_memory_order(tensors[place].detach())
            addresses[place] = tensors[place].data_ptr()
        return places, Memory(self.device, addresses, self.sizes, tensors, [1] * len(tensors))

    def largest(self) -> list[int]:
        """The slots of the fewest tensors that make up :data:`FIRST`; none where one launch serves all as well."""
        wanted = FIRST * sum(self.sizes)
        if sum(self.sizes) < WORTH:
            return []
        first = []
        for size, slot in sorted(zip(self.sizes, self.slots, strict=True), key=itemgetter(0), reverse=True):
            if wanted <= 0:
                break
            first.append(slot)
            wanted -= size
        return first


@dataclass(frozen=True)
class Survey:
    """How arguments of certain layouts are read.

    Attributes:
        layouts: of each argument, empty for a number.
        readings: of each tensor.
        groups: the tensors that are read, by device.
        blocked: why the others cannot be read, by their number.
        unchanged: whether values have these layouts still, told at once; it may say no where they have.
    """

    layouts: list[Layout]
    readings: list[Reading | None]
    groups: list[Group]
    blocked: dict[int, str]
    unchanged: Callable[[Sequence[Any]], bool]

    @classmethod
    def of(cls, values: Sequence[Any], layouts: list[Layout], before: Survey | None) -> Survey:
        """A new one; what has the layout that it had ``before`` is not looked at again."""
        known = before.readings if before else [None] * len(values)
        readings = [
            None if not layout else old if old and old.layout == layout else Reading.of(value, layout)
            for value, layout, old in zip(values, layouts, known, strict=True)
        ]
        groups: dict[torch.device, Group] = {}
        blocked: dict[int, str] = {}
        for slot, reading in enumerate(readings):
            if reading is not None and reading.obstacle:
                blocked[slot] = reading.obstacle
            elif reading is not None:
                device = values[slot].device
                group = groups.setdefault(device, Group(device, [], [], []))
                group.scattered.extend([] if reading.in_order else [len(group.slots)])
                group.slots.append(slot)
                group.sizes.append(reading.size)
        return cls(layouts, readings, list(groups.values()), blocked, _unchanged(values, layouts, blocked))

    def obstacles(self, now: str) -> dict[int, str]:
        """Why no tensor can be read at the moment, by their numbers."""
        return {slot: now for slot, reading in enumerate(self.readings) if reading is not None}


class Part:
    """Watched arguments that are looked at and started together.

    Attributes:
        slots: which they are, in the order of the watch.
        pick: takes them out of all watched arguments.
    """

    def __init__(self, slots: Iterable[int]) -> None:
        self.slots = tuple(slots)
        self.pick = picker(self.slots)
        self._known: Survey | None = None

    def survey(self, values: Sequence[Any]) -> Survey:
        """How the part's arguments are read: as in an earlier call, where all layouts are the same."""
        known = self._known
        if known is not None and known.unchanged(values):
            return known
        layouts = [layout_of(value) if isinstance(value, Tensor) else () for value in values]
        if known is None or known.layouts != layouts:
            known = self._known = Survey.of(values, layouts, known)
        return known


class Begun:
    """What is known of the watched arguments once their checksums are started, in the order of the watch.

    Args:
        values: all of them.
        parts: how they are divided; each is started before the next is looked at.

    Attributes:
        layouts: of each argument, empty for a number.
        places: where each tensor lies.
        obstacles: why an argument cannot be read, by its number.
    """

    def __init__(self, values: Sequence[Any], parts: Sequence[Part]) -> None:
        started = [_Started(part, part.pick(values)) for part in parts]
        self.layouts: list[Layout] = [()] * len(values)
        self.places, self.obstacles = [0] * len(values), dict[int, str]()
        for each in started:
            _put(self.layouts, each.part.slots, each.survey.layouts)
            _put(self.places, each.read, each.places)
            self.obstacles |= {each.part.slots[slot]: why for slot, why in each.obstacles.items()}
        self._told: list[int | str] = [0 if isinstance(value, Tensor) else repr(value) for value in values]
        self._started = started

    @property
    def surveys(self) -> list[Survey]:
        """How the arguments of each part are read."""
        return [each.survey for each in self._started]

    def waiting(self) -> list[Tensor]:
        """What must come to the host before :meth:`told`."""
        return [sums for each in self._started for sums in each.sums.waiting()]

    def arrived(self, numbers: Iterable[Tensor]) -> None:
        """The numbers behind :meth:`waiting`, in their order."""
        left = iter(numbers)
        for each in self._started:
            each.sums.arrived(list(islice(left, len(each.sums.waiting()))))

    def told(self) -> list[int | str]:
        """The checksum of each tensor, the text of each number, once no number is waited for."""
        for each in self._started:
            _put(self._told, each.read, list(chain.from_iterable(each.sums.values())))
        return self._told


class _Started:
    """A part whose checksums are started.

    Attributes:
        read: the slots of what is read, group by group.
        places: where these tensors lie.
        obstacles: why an argument of the part cannot be read, by its number there.
    """

    def __init__(self, part: Part, values: Sequence[Any]) -> None:
        self.part, self.survey = part, part.survey(values)
        groups, now = self.survey.groups, obstacle_now(group.device.type for group in self.survey.groups)
        try:
            memories = [] if now else [group.memory(values) for group in groups]
            self.sums = Checksums([memory for _, memory in memories])
        except Exception as error:  # no memory for a copy, a kernel that does not compile: the call itself may run
            now, memories, self.sums = f"reading it failed: {error}", [], Checksums([])
        self.obstacles = self.survey.obstacles(now) if now else self.survey.blocked
        self.places = [place for places, _ in memories for place in places]
        self.read = [] if now else [part.slots[slot] for group in groups for slot in group.slots]


def divided(whole: Survey) -> list[Part]:
    """What was surveyed as a whole in two parts, the largest and the others; none where that does not pay."""
    first = {slot for group in whole.groups for slot in group.largest()}
    others = [slot for slot in range(len(whole.layouts)) if slot not in first]
    return [Part(sorted(first)), Part(others)] if first and others else []


def picker(slots: Sequence[int]) -> Pick:
    """What takes the values in these places out of a list."""
    if len(slots) > 1:
        return itemgetter(*slots)
    return lambda values: tuple(values[slot] for slot in slots)


def _put(into: list[_T], slots: Sequence[int], values: Sequence[_T]) -> None:
    for slot, value in zip(slots, values, strict=True):
        into[slot] = value


def _unchanged(values: Sequence[Any], layouts: Sequence[Layout], blocked: Collection[int]) -> Callable[..., bool]:
    """A quick check of whether other values have these layouts; numbers are of their layout whatever they are."""
    tensors = [slot for slot, layout in enumerate(layouts) if layout]
    numbers = [slot for slot, layout in enumerate(layouts) if not layout]
    if blocked or not tensors:
        return lambda _: False
    pick = picker(tensors)
    guard = layout_guard(pick(values))
    return lambda now: guard(*pick(now)) and not any(isinstance(now[slot], Tensor) for slot in numbers)
