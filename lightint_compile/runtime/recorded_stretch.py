"""One stretch of a driver: its forms, and what was recorded of each.

A stretch runs as it is written the first time that arguments of some kind are seen, so that everything in it is
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

from lightint_compile.errors import RankError
from lightint_compile.fallback import in_one_line, is_answered
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.runtime.cuda_recording import CudaRecording
from lightint_compile.runtime.staying import memory_of
from lightint_compile.runtime.stretch_arguments import Kinds, View, copied, once

if TYPE_CHECKING:
    from lightint_compile.runtime.stretch_replay import Replays

AS_WRITTEN, RECORD, PLAY = range(3)
"""What can be done with a stretch."""

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
class Form:
    """What is known of one form of a stretch's arguments.

    Attributes:
        sources: numbers of the recordings that gave arguments.
        places: where all tensors lay in the call before.
        number: of the recording.
        moving: positions of tensors that do not stay where they are.
        next: those that the next recording copies.
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
    next: set[int] = field(default_factory=set)
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

    def clear(self) -> int:
        """Forget the recording; its number, 0 where there is none."""
        if self.recording is None:
            return 0
        self.recording.forget()
        self.recording, self.copies, self.shown, self.own = None, {}, [], []
        return self.number

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
        self._forms: OrderedDict[Any, Form] = OrderedDict()
        self._compiled: OrderedDict[Any, dict[int, int]] = OrderedDict()
        self._kinds: Kinds | None = None
        self._fails = False

    def __call__(self, *args: Any) -> Any:
        """Run the stretch."""
        replays = self._replays
        if not replays.is_playing:
            return self._as_written(args)
        if self._kinds is None:
            self._kinds = Kinds(args)
        before, places, overwritten = self._versions(args), self._places(args), self._overwritten(args)
        sources, *compiled = self._kinds.form(args, places, replays.source_of)
        written = tuple((at, places[self._kinds.tensors.index(at)]) for at in sorted(overwritten))
        what = (replays.switches, *compiled, written)
        form = self._form((what, sources), what, places)
        action, reason = self._wanted(form, args, places, overwritten)
        if replays.consent is not None and not replays.consent.all_want(action):
            replays.disagreed()
            action, reason = AS_WRITTEN, "ranks wanted to do different things with it"
        if action == RECORD and form is not None:
            reason = self._record(form, args)
        if form is None or action == AS_WRITTEN or reason:
            return self._compiling(what, args, before, reason)
        return self._played(form, args, before)

    def _form(self, key: Any, what: Any, places: list[Any]) -> Form | None:
        """What is known of the form of a call; ``None`` where nothing like it was compiled yet."""
        form = self._forms.get(key)
        if form is None and what in self._compiled:
            form = self._forms[key] = Form(frozenset(key[1]) - {0}, places, writes=self._compiled[what])
            while len(self._forms) > SEEN:
                self._replays.drop(self._forms.popitem(last=False)[1])
        elif form is not None:
            self._forms.move_to_end(key)
        return form

    def _compiling(self, what: Any, args: Sequence[Any], before: Mapping[int, int], reason: str) -> Any:
        """Run as it is written, and remember that all of it is compiled and how often it writes."""
        found = self._as_written(args, reason)
        self._compiled[what] = {
            at: version - before[at] for at, version in self._versions(args).items() if at in before
        }
        while len(self._compiled) > SEEN:
            self._compiled.popitem(last=False)
        return found

    def _wanted(
        self, form: Form | None, args: Sequence[Any], places: list[Any], overwritten: set[int]
    ) -> tuple[int, str]:
        """What this rank would do, and why it would run as written."""
        if form is None or self._fails:
            return AS_WRITTEN, ""
        if form.call == self._replays.number:
            return AS_WRITTEN, "it was called once more in the same call"
        if form.fits(places):
            return PLAY, ""
        reason = self._why_not(form, args, places, overwritten)
        return (AS_WRITTEN, reason) if reason else (RECORD, "")

    def _places(self, args: Sequence[Any]) -> list[Any]:
        assert self._kinds is not None
        if self._replays.consent is None:
            return self._kinds.places(args)
        return self._kinds.named(args, self._replays.source_of, self._replays.staying)

    def recordings(self) -> list[Recording]:
        """Those that there are."""
        return [form.recording for form in list(self._forms.values()) if form.recording is not None]

    def held(self) -> int:
        """Bytes that they and what is copied for them take."""
        copies = (copy for form in list(self._forms.values()) for copy in list(form.copies.values()))
        return sum(each.held for each in self.recordings()) + sum(copy.nbytes for copy in copies)

    def forget(self) -> None:
        """Forget all forms."""
        forms, self._forms = self._forms, OrderedDict()
        self._compiled.clear()
        for form in forms.values():
            self._replays.drop(form)

    def without_readers(self, number: int) -> list[Form]:
        """The forms that read what a recording gave, which are forgotten here."""
        readers = [key for key, form in self._forms.items() if number in form.sources]
        return [self._forms.pop(key) for key in readers]

    def _as_written(self, args: Sequence[Any], reason: str = "") -> Any:
        self._replays.told.ran_as_written(reason)
        return self._function(*args)

    def _versions(self, args: Sequence[Any]) -> dict[int, int]:
        """How often arguments that are written to were written to so far; who kept something of them looks at that."""
        return {at: args[at]._version for at in self._written if not args[at].is_inference()}

    def _played(self, form: Form, args: Sequence[Any], before: Mapping[int, int]) -> Any:
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

    def _why_not(self, form: Form, args: Sequence[Any], places: list[Any], overwritten: set[int]) -> str:
        """Why a form cannot be recorded for what lies where it does now; empty where it can."""
        form.next = self._moving(form, args, places, overwritten)
        form.places = places
        if not form.next.isdisjoint(overwritten):
            return "what it writes to lay elsewhere than before"
        if sum(args[at].nbytes for at in form.next) > COPIED:
            return "too much of what it reads lay elsewhere than before"
        if form.waits > self._replays.number:
            return "there was no memory left for a recording"
        if form.attempts == ATTEMPTS and form.plays < PAID:
            return f"what it reads lay elsewhere than in {ATTEMPTS} recordings"
        return "" if self._has_room(form) else f"{FORMS} other forms of its arguments are recorded and in use"

    def _moving(self, form: Form, args: Sequence[Any], places: list[Any], overwritten: set[int]) -> set[int]:
        """Positions of arguments that are not read where they lie now."""
        assert self._kinds is not None
        replays, sized = self._replays, self._kinds.sized
        given = {at for at in sized if replays.is_written(args[at])}
        kept = given | {at for at in sized if replays.staying.serial_of(args[at]) is not None}
        if replays.consent is not None:
            return set(sized) - kept
        lay = zip(self._kinds.tensors, places, form.places, strict=True)
        # Each place that is written to has a form of its own.
        form.moving |= {at for at, now, before in lay if now != before} - given - overwritten - self._kinds.weights
        return form.moving | ({at for at in sized if args[at].nbytes <= SMALL} - kept - overwritten)

    def _overwritten(self, args: Sequence[Any]) -> set[int]:
        """Positions of arguments whose memory is written to, whichever of them names it."""
        if not self._written:
            return set()
        assert self._kinds is not None
        memories = {memory_of(args[at]) for at in self._written} - {0}
        return {at for at in self._kinds.tensors if memory_of(args[at]) in memories}

    def _record(self, form: Form, args: Sequence[Any]) -> str:
        """Record a form, which may be recorded; why that failed, if it did."""
        self._make_room(form)
        self._replays.drop(form)
        if self._any(self._replays.held_by_all() * SHARE > _memory_beside(args)):
            return self._too_full(form)
        failure, recording = self._attempt(form, args, form.next)
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

    def _attempt(self, form: Form, args: Sequence[Any], moving: set[int]) -> tuple[Exception | None, Recording | None]:
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

    def _too_full(self, form: Form) -> str:
        form.waits = self._replays.number + IDLE
        return "there was no memory left for a recording"

    def _given_up(self, failure: Exception | None) -> str:
        """The stretch is not recorded any more; ``failure`` is that of another rank where it is ``None``."""
        self._fails = True
        if failure is None:
            if self._replays.strict:
                raise RankError(
                    "another rank could not record a stretch", why="it says why", fix="leave out cuda_graphs"
                )
            return "another rank could not record it"
        if self._replays.strict or not is_answered(failure):
            raise failure
        self._replays.failure = _not_recorded(failure)
        return "it could not be recorded"

    def _keep(self, form: Form, recording: Recording) -> None:
        assert self._kinds is not None
        form.recording = recording
        form.attempts, form.plays = 1 if form.plays >= PAID else form.attempts + 1, 0
        self._replays.told.recorded += 1
        form.lies(form.places, [place for place, at in enumerate(self._kinds.tensors) if at not in form.copies])
        outputs = zip(recording.outputs, form.shown, strict=True)
        recording.outputs = [value if view is None else None for value, view in outputs]
        form.own = [*_tensors(recording.outputs), *form.copies.values()]
        form.number = self._replays.holds(form.own)

    def _has_room(self, form: Form) -> bool:
        """Whether there is room for one more recording, or one that was not played for long makes it."""
        others = self._recorded_besides(form)
        return len(others) < FORMS or self._replays.number - others[0].call >= IDLE

    def _make_room(self, form: Form) -> None:
        others = self._recorded_besides(form)
        if len(others) >= FORMS:
            self._replays.drop(others[0])

    def _recorded_besides(self, form: Form) -> list[Form]:
        return [each for each in self._forms.values() if each.recording is not None and each is not form]


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
