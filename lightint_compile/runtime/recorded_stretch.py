"""One stretch of a driver: its forms, and what was recorded of each.

A stretch runs as it is written the first time that arguments of some form are seen, so that everything in it is
compiled; it is recorded the second time, and played from then on. A form is what a recording bakes in of its arguments
but for where they lie: numbers, sizes and strides, whose weights they are, which recordings gave them, and switches
that choose kernels.

Weights, what other stretches gave, and tensors that stay from call to call are read where they were when the recording
was made: where they lie elsewhere, the stretch is recorded again. Other arguments are copied in front of each play, but
for large ones that lie where they lay, and for what is written to. Ranks that share a program copy all others, so that
what one does never depends on its addresses.
"""

from __future__ import annotations

import logging
import operator
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightint_compile.fallback import in_one_line, is_answered
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.runtime.cuda_recording import CudaRecording
from lightint_compile.runtime.staying import memory_of
from lightint_compile.runtime.stretch_arguments import Kinds, View, copied, once

if TYPE_CHECKING:
    from lightint_compile.runtime.stretch_replay import Replays

log = logging.getLogger("lightint_compile.runtime")

FORMS = 16
"""Forms of one stretch that are recorded at once."""

IDLE = 64
"""Calls after which a form that was not played makes room for another, and after which memory is asked for again."""

SEEN = 64
"""Forms of one stretch that are remembered as seen."""

ATTEMPTS = 3
"""How often one form is recorded: arguments that lie elsewhere in every call are copied from the second time on."""

PAID = 8
"""Plays after which a recording was worth it, so that another of its form does not count as one more attempt."""

SMALL = 64 * 2**20
"""Bytes up to which an argument is copied wherever it lies: what comes from outside of a driver seldom lies still."""

COPIED = 512 * 2**20
"""Bytes that are copied in front of a play at most. Copying more would cost what the host saves."""

SHARE = 3
"""Recordings hold no more than one in so many bytes of a device, those of all drivers together."""


class Recording(Protocol):
    """What :class:`CudaRecording` is."""

    outputs: Any
    held: int

    def play(self, copies: Sequence[Tensor], originals: Sequence[Tensor]) -> None:
        """Bring the originals to their copies, and do the work that was recorded."""

    def forget(self) -> None:
        """Give back what it holds."""


RECORDER: Callable[[Callable[..., Sequence[Any]], Sequence[Any]], Recording] = CudaRecording
"""Records ``function(*args)``."""


@dataclass
class _Form:
    """What is known of one form of a stretch's arguments.

    Attributes:
        sources: numbers of the recordings that gave arguments.
        places: where all tensors lay in the call before.
        number: of the recording.
        moving: positions of tensors that do not stay where they are.
        attempts: how often it was recorded in a row without much use.
        waits: until this call, as there was no memory.
        plays: of the latest recording.
        call: in which it was played last.
        writes: how often the stretch writes to arguments, by their positions.
        copies: what moving tensors are copied to, by their positions.
        shown: for each output how it is a view of an argument; ``None`` for what was made.
        own: what the recording writes to and nobody else does.
    """

    sources: frozenset[int]
    places: list[Any]
    number: int = 0
    moving: set[int] = field(default_factory=set)
    attempts: int = 0
    waits: int = 0
    plays: int = 0
    call: int = 0
    writes: dict[int, int] = field(default_factory=dict)
    recording: Recording | None = None
    copies: dict[int, Tensor] = field(default_factory=dict)
    shown: list[View | None] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)
    _there: Callable[[Sequence[Any]], Any] = field(default=len)
    _lay: Any = None

    def lies(self, places: Sequence[Any], fixed: Collection[int]) -> None:
        """Of all tensors those of ``fixed`` are read where they are now."""
        self._there = operator.itemgetter(*fixed) if fixed else len
        self._lay = self._there(places)

    def fits(self, places: Sequence[Any]) -> bool:
        """Whether all that is read where it lay still lies there."""
        return self.recording is not None and bool(self._there(places) == self._lay)


class RecordedStretch:
    """A stretch: called like the function that it is made of.

    Args:
        written: positions of the arguments that it writes to.
    """

    def __init__(self, replays: Replays, function: Callable[..., Any], written: Collection[int]) -> None:
        self._replays, self._function, self._written = replays, function, frozenset(written)
        self._forms: OrderedDict[Any, _Form] = OrderedDict()
        self._kinds: Kinds | None = None
        self._fails = False

    def __call__(self, *args: Any) -> Any:
        """Run the stretch."""
        if not self._replays.is_playing or self._fails:
            return self._as_written(args)
        if self._kinds is None:
            self._kinds = Kinds(args)
        replays = self._replays
        places = self._places(args)
        written = tuple((at, places[self._kinds.tensors.index(at)]) for at in sorted(self._overwritten(args)))
        key = (replays.switches, *self._kinds.form(args, places, replays.source_of), written)
        before, form = self._versions(args), self._forms.get(key)
        if form is None:
            found, form = self._as_written(args), _Form(frozenset(key[1]) - {0}, places)
            form.writes = {at: version - before[at] for at, version in self._versions(args).items()}
            self._see(key, form)
            return found
        if form.call == self._replays.number:
            return self._as_written(args, "it was called once more in the same call")
        self._forms.move_to_end(key)
        reason = "" if form.fits(places) else self._recorded(form, args, places)
        return self._as_written(args, reason) if reason else self._played(form, args, before)

    def _places(self, args: Sequence[Any]) -> list[Any]:
        assert self._kinds is not None
        if self._replays.consent is None:
            return self._kinds.places(args)
        return self._kinds.named(args, self._replays.source_of, self._replays.staying)

    def recordings(self) -> list[Recording]:
        """Those that there are."""
        return [form.recording for form in self._forms.values() if form.recording is not None]

    def held(self) -> int:
        """Bytes that they and what is copied for them take."""
        copies = (copy for form in self._forms.values() for copy in form.copies.values())
        return sum(each.held for each in self.recordings()) + sum(copy.nbytes for copy in copies)

    def forget(self) -> None:
        """Forget all forms."""
        forms, self._forms = self._forms, OrderedDict()
        for form in forms.values():
            self._drop(form)

    def forget_readers(self, number: int) -> None:
        """Forget the forms that read what a recording gave."""
        readers = [key for key, form in self._forms.items() if number in form.sources]
        for key in readers:
            if (form := self._forms.pop(key, None)) is not None:
                self._drop(form)

    def _as_written(self, args: Sequence[Any], reason: str = "") -> Any:
        self._replays.told.ran_as_written(reason)
        return self._function(*args)

    def _see(self, key: Any, form: _Form) -> None:
        self._forms[key] = form
        while len(self._forms) > SEEN:
            _, oldest = self._forms.popitem(last=False)
            self._drop(oldest)

    def _versions(self, args: Sequence[Any]) -> dict[int, int]:
        """How often arguments that are written to were written to so far; who kept something of them looks at that."""
        return {at: args[at]._version for at in self._written if not args[at].is_inference()}

    def _played(self, form: _Form, args: Sequence[Any], before: Mapping[int, int]) -> Any:
        assert form.recording is not None
        form.call = self._replays.number
        form.recording.play(list(map(once, form.copies.values())), [once(args[at].detach()) for at in form.copies])
        self._replays.told.played += 1
        form.plays += 1
        for at, writes in form.writes.items():
            for _ in range(before[at] + writes - args[at]._version if at in before else 0):
                torch.autograd.graph.increment_version(args[at])
        outputs = zip(form.recording.outputs, form.shown, strict=True)
        return tuple(value if view is None else view.of(args) for value, view in outputs)

    def _recorded(self, form: _Form, args: Sequence[Any], places: list[Any]) -> str:
        """Record a form for what lies where it does now; why that cannot be, if it cannot."""
        moving, overwritten = self._moving(form, args, places), self._overwritten(args)
        form.places = places
        if not moving.isdisjoint(overwritten):
            return "what it writes to lay elsewhere than before"
        if sum(args[at].nbytes for at in moving) > COPIED:
            return "too much of what it reads lay elsewhere than before"
        if form.waits > self._replays.number:
            return "there was no memory left for a recording"
        if form.attempts == ATTEMPTS and form.plays < PAID:
            return f"what it reads lay elsewhere than in {ATTEMPTS} recordings"
        if not self._makes_room():
            return f"{FORMS} other forms of its arguments are recorded and in use"
        self._drop(form)
        form.attempts = 1 if form.plays >= PAID else form.attempts + 1
        form.plays = 0
        return self._record(form, args, moving)

    def _moving(self, form: _Form, args: Sequence[Any], places: list[Any]) -> set[int]:
        """Positions of arguments that are not read where they lie now."""
        assert self._kinds is not None
        replays, sized = self._replays, self._kinds.sized
        given = {at for at in sized if replays.source_of(args[at])}
        kept = given | {at for at in sized if replays.staying.serial_of(args[at]) is not None}
        if replays.consent is not None:
            return set(sized) - kept
        lay = zip(self._kinds.tensors, places, form.places, strict=True)
        overwritten = self._overwritten(args)  # a form of its own for each place
        form.moving |= {at for at, now, before in lay if now != before} - given - overwritten - self._kinds.weights
        return form.moving | ({at for at in sized if args[at].nbytes <= SMALL} - kept - overwritten)

    def _overwritten(self, args: Sequence[Any]) -> set[int]:
        """Positions of arguments whose memory is written to, whichever of them names it."""
        if not self._written:
            return set()
        assert self._kinds is not None
        memories = {memory_of(args[at]) for at in self._written}
        return {at for at in self._kinds.tensors if memory_of(args[at]) in memories}

    def _record(self, form: _Form, args: Sequence[Any], moving: set[int]) -> str:
        if self._any(self._replays.held_by_all() * SHARE > _memory_beside(args)):
            return self._too_full(form)
        failure, recording = self._attempt(form, args, moving)
        if not self._any(failure is not None):
            assert recording is not None
            self._keep(form, recording)
            return ""
        form.copies, form.shown = {}, []
        if recording is not None:
            recording.forget()
        return self._too_full(form) if self._any(_is_memory(failure)) else self._given_up(failure)

    def _any(self, own: bool) -> bool:
        """Whether something holds on any of the ranks that share the program."""
        consent = self._replays.consent
        return own if consent is None else consent.any_says([own])[0]

    def _attempt(self, form: _Form, args: Sequence[Any], moving: set[int]) -> tuple[Exception | None, Recording | None]:
        assert self._kinds is not None
        given, recording = list(args), None
        fixed = [at for at in self._kinds.tensors if at not in moving]
        try:
            form.copies = {at: copied(args[at]) for at in sorted(moving)}
            for at, copy in form.copies.items():
                given[at] = copy
            recording = RECORDER(self._function, given)
            form.shown = [View.found(value, args, fixed) for value in recording.outputs]
            return None, recording
        except Exception as error:
            return error, recording

    def _too_full(self, form: _Form) -> str:
        form.waits = self._replays.number + IDLE
        return "there was no memory left for a recording"

    def _given_up(self, failure: Exception | None) -> str:
        """The stretch is not recorded any more; ``failure`` is that of another rank where it is ``None``."""
        self._fails = True
        if failure is None:
            return "another rank could not record it"
        if self._replays.strict or not is_answered(failure):
            raise failure
        self._replays.failure = _not_recorded(failure)
        return "it could not be recorded"

    def _keep(self, form: _Form, recording: Recording) -> None:
        assert self._kinds is not None
        form.recording = recording
        self._replays.told.recorded += 1
        form.lies(form.places, [place for place, at in enumerate(self._kinds.tensors) if at not in form.copies])
        outputs = zip(recording.outputs, form.shown, strict=True)
        recording.outputs = [value if view is None else None for value, view in outputs]
        form.own = [*_tensors(recording.outputs), *form.copies.values()]
        form.number = self._replays.holds(form.own)

    def _makes_room(self) -> bool:
        """Whether there is room for one more recording, which is made of one that was not played for long."""
        recorded = [form for form in self._forms.values() if form.recording is not None]
        if len(recorded) < FORMS:
            return True
        if self._replays.number - recorded[0].call < IDLE:
            return False
        self._drop(recorded[0])
        return True

    def _drop(self, form: _Form) -> None:
        if form.recording is None:
            return
        form.recording.forget()
        form.recording, form.copies, form.shown, form.own = None, {}, [], []
        self._replays.holds_no_more(form.number)


def _not_recorded(failure: Exception) -> Remark:
    """What is said of work that cannot be recorded: an operator of the user's may wait for the device."""
    message = f"a stretch cannot be recorded as a CUDA graph, and runs call by call: {in_one_line(failure)}"
    log.warning("%s", message)
    return Remark(kind=RemarkKind.MISSED, pass_name="backend", rule="cuda-graphs", message=message)


def _is_memory(failure: Exception | None) -> bool:
    return isinstance(failure, torch.OutOfMemoryError)


def _memory_beside(args: Sequence[Any]) -> float:
    """Bytes that the device of some arguments has."""
    device = next((value.device for value in args if isinstance(value, Tensor) and value.is_cuda), None)
    return float("inf") if device is None else float(torch.cuda.get_device_properties(device).total_memory)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
