"""The recordings of one driver's stretches: who may play them, and what becomes of what they give.

What a recording gives is overwritten by its next play. So nothing of it leaves a call: what the driver returns, and
what is kept between calls, is copied out.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakSet

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.runtime.rank_consent import Consent
from lightint_compile.runtime.recorded_stretch import Form, RecordedStretch
from lightint_compile.runtime.staying import Staying, memory_of
from lightint_compile.runtime.stretch_arguments import Source
from lightint_compile.torch_compat import is_observed
from lightint_compile.torch_switches import of_kernels

NOWHERE: Source = (0, 0)

DISAGREEMENTS = 8
"""Stretches on which ranks differ before all of them begin anew."""

MODELS = 8
"""Models of which ranks remember where their weights lie."""


@dataclass
class Told:
    """What stretches did so far.

    Attributes:
        recorded, played: how often.
        as_written: how often one ran call by call.
        reasons: why it did, where it was not for the first time.
    """

    recorded: int = 0
    played: int = 0
    as_written: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def ran_as_written(self, reason: str) -> None:
        """One did."""
        self.as_written += 1
        if reason:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def remark(self, held: int) -> Remark:
        """The same for a report."""
        message = f"{self.recorded} stretches were recorded as CUDA graphs, which hold {held / 1e9:.2f} GB, and played "
        message += f"{self.played} times; {self.as_written} times one ran call by call"
        reasons = sorted(self.reasons.items(), key=lambda each: -each[1])
        message += "".join(f", {count} of them because {reason}" for reason, count in reasons)
        return Remark(kind=RemarkKind.ANALYSIS, pass_name="backend", rule="cuda-graphs", message=message)


class Replays:
    """The recordings of one driver.

    Args:
        group: of the collectives in it; empty where there are none.
        strict: what cannot be recorded raises.

    Attributes:
        consent: what ranks that share the program say; ``None`` where none do.
        staying: what stays from call to call.
        told: what was done so far.
        failure: what is said of work that could not be recorded.
        switches: what chooses kernels in the call at hand.
        number: of the call at hand.
    """

    _all: ClassVar[WeakSet[Replays]] = WeakSet()

    def __init__(self, *, group: str = "", strict: bool = False) -> None:
        self._all.add(self)
        self.strict = strict
        self.consent = Consent(group) if group else None
        self.staying = Staying()
        self.told = Told()
        self.failure: Remark | None = None
        self.switches, self.number = "", 0
        self._stretches: list[RecordedStretch] = []
        self._lock, self._owner = threading.Lock(), 0
        self._sources: dict[int, Source] = {}
        self._numbers = itertools.count(1)
        self._disagreements = 0
        self._weights: list[tuple[int, ...]] = []

    def stretch(self, function: Callable[..., Any], written: Collection[int]) -> RecordedStretch:
        """What the driver calls in place of ``function``, which writes to its arguments at these positions."""
        self._stretches.append(RecordedStretch(self, function, written))
        return self._stretches[-1]

    @contextmanager
    def call(self, args: Sequence[Any], is_watched: bool) -> Iterator[None]:
        """A call of the driver; one at a time plays recordings, and none whose operators somebody wants to see."""
        may = not (is_watched or is_observed() or _is_being_recorded()) and self._lock.acquire(blocking=False)
        outer = self._owner
        try:
            plays = self._all_may(may, args)
            if may or outer == threading.get_ident():  # a call inside of another one plays nothing
                self._owner = threading.get_ident() if plays else 0
            if plays:
                self.number += 1
                self.switches = of_kernels()
            yield
        finally:
            if may:
                self._owner = 0
                self._lock.release()
            elif outer == threading.get_ident():
                self._owner = outer

    @property
    def is_playing(self) -> bool:
        """Whether this thread is in a call that may play recordings."""
        return self._owner == threading.get_ident()

    def _all_may(self, may: bool, args: Sequence[Any]) -> bool:
        """Whether all ranks may; where something of one lies elsewhere than before, all of them begin anew."""
        moved = may and self.staying.arrive(args)
        if self.consent is None:
            return may
        weights = tuple(value.data_ptr() for value in args if isinstance(value, torch.nn.Parameter))
        may_not, are_others = self.consent.any_says([not may, moved or weights not in self._weights])
        if may_not:
            return False
        if are_others or self._disagreements >= DISAGREEMENTS:
            known = self._weights if self._disagreements < DISAGREEMENTS else []
            self._weights, self._disagreements = [*known[1 - MODELS :], weights], 0
            for stretch in self._stretches:
                stretch.forget()
        return True

    def source_of(self, value: Any) -> Source:
        """The recording that writes where a value lies, and which of its tensors that is."""
        return self._sources.get(memory_of(value), NOWHERE) if self._sources and isinstance(value, Tensor) else NOWHERE

    def is_written(self, value: Any) -> bool:
        """Whether a recording writes where a value lies."""
        return self.source_of(value) is not NOWHERE

    def copied_out(self, values: Any) -> Any:
        """``values`` with copies of those tensors that a later play would overwrite; they share what those share."""
        if not self._sources:
            return values
        flat, form = pytree.tree_flatten(values)
        named = Counter(memory_of(value) for value in flat if self.is_written(value) and not _is_of_bits(value))
        shared: dict[tuple[int, torch.dtype], Tensor] = {}

        def own(value: Any) -> Any:
            if not self.is_written(value):
                return value
            place = memory_of(value), value.dtype
            fills = value.nbytes == value.untyped_storage().nbytes() and all(value.stride())
            if _is_of_bits(value) or (named[place[0]] == 1 and fills):
                return value.clone()
            if place not in shared:
                shared[place] = _whole(value).clone()
            return shared[place].as_strided(value.shape, value.stride(), value.storage_offset())

        return pytree.tree_unflatten(map(own, flat), form)

    def outside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which may keep what it is given, and give what it keeps."""

        def called(*args: Any, **named: Any) -> Any:
            args, named = self.copied_out((args, named))
            found = function(*args, **named)
            if self.is_playing:
                for value in found if isinstance(found, (tuple, list)) else [found]:
                    if isinstance(value, Tensor):
                        self.staying.met(value)
            return found

        return called

    def holds(self, tensors: Sequence[Tensor]) -> int:
        """A recording writes to these tensors from now on; its number."""
        number = next(self._numbers)
        places = ((memory_of(tensor), (number, at)) for at, tensor in enumerate(tensors))
        self._sources.update((memory, source) for memory, source in places if memory)
        return number

    def drop(self, form: Form) -> None:
        """A form is forgotten, and with its recording all that reads what that gave."""
        waiting = [form]
        while waiting:
            if number := waiting.pop().clear():
                self._sources = {memory: source for memory, source in self._sources.items() if source[0] != number}
                waiting += [each for stretch in self._stretches for each in stretch.without_readers(number)]

    def disagreed(self) -> None:
        """Ranks did not want the same of a stretch; after some times all of them begin anew."""
        self._disagreements += 1

    def remarks(self) -> list[Remark]:
        """What the report says of calls so far."""
        found = [] if self.failure is None else [self.failure]
        return [*found, self.told.remark(self.held())] if self.number else found

    def held(self) -> int:
        """Bytes of device memory that recordings keep."""
        return sum(stretch.held() for stretch in self._stretches)

    @classmethod
    def held_by_all(cls) -> int:
        """The same of all drivers."""
        return sum(each.held() for each in list(cls._all))

    def forget(self) -> None:
        """Give back all that recordings hold, unless a call is under way."""
        if self._lock.acquire(blocking=False):
            try:
                for stretch in self._stretches:
                    stretch.forget()
            finally:
                self._lock.release()


def _is_being_recorded() -> bool:
    """Whether the caller records this call as a whole."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _is_of_bits(value: Tensor) -> bool:
    """Whether a tensor is a conjugate or a negative that nobody has computed, which is no view by sizes alone."""
    return value.is_conj() or value.is_neg()


def _whole(value: Tensor) -> Tensor:
    """All of the memory that a tensor is in."""
    return value.as_strided((value.untyped_storage().nbytes() // value.itemsize,), (1,), 0)
