"""What a call is given, told by content: whether kept results belong to it.

A driver knows which of its arguments kept results come from. The first that asks in a call has all of them checked at
once: their checksums join the one transfer of a chunk where the program decides something, and are a transfer of their
own elsewhere. Neither the identity of a tensor nor its version says that it is unchanged: writes through ``.data``,
NumPy, DLPack or another process raise no version.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightint_compile.runtime.content_parts import Begun, Part, Pick, Survey, divided, picker
from lightint_compile.runtime.content_sums import Layout
from lightint_compile.runtime.device_to_host import together

log = logging.getLogger("lightint_compile.runtime")


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
        self._begun: Begun | None = None
        self._told: list[int | str] | None = None
        #: Of the kept results that this call read or made: which ones they are, by name.
        self.used: dict[str, object] = {}

    def waiting(self) -> list[Tensor]:
        """What has to come to the host to know :meth:`content`; the checksums are started by the first call."""
        return self._started().waiting()

    def arrived(self, numbers: Iterable[Tensor]) -> None:
        """The numbers behind :meth:`waiting`."""
        self._started().arrived(numbers)

    def content(self, positions: tuple[int, ...]) -> Content | None:
        """What the arguments at ``positions`` hold; ``None`` where one of them cannot be read."""
        if self.why_not(positions):
            return None
        begun, pick = self._started(), self._watch.picks(positions)
        layouts, places = pick(begun.layouts), pick(begun.places)  # while the device reads
        return Content(pick(self._known(begun)), layouts, places)

    def why_not(self, positions: tuple[int, ...]) -> str:
        """Why there is no :meth:`content`; empty where there is."""
        obstacles = self._started().obstacles
        if not obstacles:
            return ""
        slots = self._watch.picks(positions)(range(len(self._values)))
        return next((obstacles[slot] for slot in slots if slot in obstacles), "")

    def _started(self) -> Begun:
        if self._begun is None:
            self._begun = self._watch.begun(self._values)
        return self._begun

    def _known(self, begun: Begun) -> list[int | str]:
        if self._told is None:
            if waiting := begun.waiting():
                begun.arrived(together(waiting))
            self._told = begun.told()
        return self._told


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
        self.watched = picker(self.positions)
        self._parts = [Part(range(len(self.positions)))]
        self._seen: Survey | None = None
        self._picks: dict[tuple[int, ...], Pick] = {}
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

    def begun(self, values: Sequence[Any]) -> Begun:
        """The checksums of the watched arguments, started; what is seen of them as a whole says how to divide them."""
        parts = self._parts
        begun = Begun(values, parts)
        if begun.waiting() and len(parts) == 1 and begun.surveys[0] is not self._seen:
            self._seen = begun.surveys[0]
            self._parts = divided(self._seen) or parts
        return begun

    def picks(self, positions: tuple[int, ...]) -> Pick:
        """What takes the arguments at ``positions`` out of a list of the watched ones."""
        if positions not in self._picks:
            self._picks[positions] = picker([self._slots[position] for position in positions])
        return self._picks[positions]

    def tell(self, reason: str) -> None:
        """Say once why results are not kept."""
        if not self._told:
            self._told = True
            log.info("results that could be kept between calls are computed in every call: of an input, %s", reason)
