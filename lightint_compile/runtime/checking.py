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

from lightint_compile.runtime.checksums import Checksums, Layout, layout_of, why_unreadable
from lightint_compile.runtime.transfer import together

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
        positions: those that kept results come from.
    """

    def __init__(self, args: Sequence[Any], positions: Sequence[int]) -> None:
        self._args, self._positions = args, positions
        self._sums: Checksums | None = None
        self._marks: dict[int, tuple[int | str, Layout, int]] | None = None
        self._unreadable: dict[int, str] = {}
        self._tensors: list[int] = []
        #: Of the kept results that this call read or made: which ones they are, by name.
        self.used: dict[str, object] = {}

    def waiting(self) -> list[Tensor]:
        """What has to come to the host to know :meth:`content`; the checksums are started by the first call."""
        return self._started().waiting()

    def arrived(self, numbers: Iterable[Tensor]) -> None:
        """The numbers behind :meth:`waiting`."""
        self._started().arrived(numbers)

    def content(self, positions: Sequence[int]) -> Content | None:
        """What the arguments at ``positions`` hold; ``None`` where one of them cannot be read."""
        marks = self._known()
        if self._unreadable and any(each in self._unreadable for each in positions):
            return None
        found = [marks[each] for each in positions]
        return Content(*map(tuple, zip(*found, strict=True))) if found else Content((), (), ())  # type: ignore[arg-type]

    def why_not(self, positions: Sequence[int]) -> str:
        """Why there is no :meth:`content`."""
        return next((self._unreadable[each] for each in positions if each in self._unreadable), "")

    def _started(self) -> Checksums:
        if self._sums is None:
            tensors = [each for each in self._positions if isinstance(self._args[each], Tensor)]
            reasons = {each: why_unreadable(self._args[each]) for each in tensors}
            self._unreadable = {each: reason for each, reason in reasons.items() if reason}
            self._sums = self._begun([each for each in tensors if each not in self._unreadable])
        return self._sums

    def _begun(self, tensors: list[int]) -> Checksums:
        try:
            found = Checksums([self._args[each] for each in tensors])
            self._tensors = tensors
            return found
        except RuntimeError as error:  # such as no memory for a copy of what lies scattered: the call itself may fit
            self._unreadable |= dict.fromkeys(tensors, f"reading it failed: {error}")
            return Checksums([])

    def _known(self) -> dict[int, tuple[int | str, Layout, int]]:
        if self._marks is None:
            sums = self._started()
            if sums.waiting():
                sums.arrived(together(sums.waiting()))
            numbers = (each for each in self._positions if not isinstance(self._args[each], Tensor))
            self._marks = {each: (_told(self._args[each]), (), 0) for each in numbers}
            for each, value in zip(self._tensors, sums.values(), strict=True):
                tensor = self._args[each]
                self._marks[each] = value, layout_of(tensor), tensor.data_ptr()
        return self._marks


class Watch:
    """Whose content a driver asks for, and the check of the call that each thread is in.

    Args:
        positions: of the arguments, and of the program's own tensors behind them.
    """

    def __init__(self, positions: Iterable[int] = ()) -> None:
        self.positions = tuple(sorted(set(positions)))
        self._calls = threading.local()
        self._told = False

    @contextmanager
    def call(self, args: Sequence[Any]) -> Iterator[None]:
        """The calling thread is in a call with these arguments while the context lasts."""
        before = self.current()
        self._calls.check = Check(args, self.positions) if self.positions else None
        try:
            yield
        finally:
            self._calls.check = before

    def current(self) -> Check | None:
        """The check of the call that this thread is in; ``None`` outside of one, or where nothing is kept."""
        found: Check | None = getattr(self._calls, "check", None)
        return found

    def tell(self, reason: str) -> None:
        """Say once why results are not kept."""
        if not self._told:
            self._told = True
            log.info("results that could be kept between calls are computed in every call: of an input, %s", reason)


def _told(value: Any) -> str:
    """A number of a call as text: ``1``, ``1.0`` and ``True`` differ, and so do ``0.0`` and ``-0.0``."""
    return repr(value)
