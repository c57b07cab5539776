"""What the calls of a driver take, stage by stage, with a mark for every region in a profiler's trace.

On a CUDA device time is taken between events on the current stream, so nothing waits in between; else by the host's
clock. Stages are those of the driver's source: ``step 2`` for what it calls ``step_2_block_7``.
"""

from __future__ import annotations

import linecache
import re
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from lightint_compile.errors import StateError
from lightint_compile.lowering.driver import Driver

MARK = "lightint"
"""What the names of marks in a trace begin with."""

REST = "rest"
"""Stage of regions that are in none, and of the host's work between them."""

_STAGE = re.compile(r"^(step_\d+|prefill)(?=_|$)")
_CALL = re.compile(r"^\s*(\w+) = self\.")


@dataclass
class Call:
    """One call of a driver.

    Attributes:
        chunk: the chunk that was decided last when it ended; ``None`` where nothing is decided.
        spans: a stage and its milliseconds, or the events that tell them, in order.
        whole: the same of the whole call.
    """

    chunk: int | None = None
    spans: list[tuple[str, Any]] = field(default_factory=list)
    whole: Any = 0.0

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds by stage; what is in no region is the rest. Waits for the device."""
        told: dict[str, float] = {}
        for stage, span in self.spans:
            told[stage] = told.get(stage, 0.0) + _read(span)
        rest = _read(self.whole) - sum(told.values())
        return {**told, REST: told.get(REST, 0.0) + max(rest, 0.0)}


@dataclass
class Trace:
    """What a profiler recorded, as Chrome's trace events in JSON; ``None`` until it is over, or where none ran."""

    text: str | None = None


@contextmanager
def profiled(wanted: bool) -> Iterator[Trace]:
    """Record what runs meanwhile, where that is ``wanted``: marks, operators and kernels.

    Raises:
        StateError: another run is recorded; the profiler is the process's.
    """
    trace = Trace()
    if not wanted:
        yield trace
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with _alone([torch.profiler.profile]), torch.profiler.profile(activities=activities) as profile:
        yield trace
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        trace.text = path.read_text(encoding="utf-8")


class Watchable(Protocol):
    """Something whose calls can be watched."""

    def watched_calls(self, watcher: Callable[..., Any]) -> AbstractContextManager[None]:
        """See :meth:`Driver.watched_calls`."""


class _Underway(threading.local):
    """The calls that are under way in a thread, the innermost last."""

    def __init__(self) -> None:
        self.calls: list[Call] = []


_lock = threading.Lock()
_measured: weakref.WeakSet[object] = weakref.WeakSet()
"""What is timed or recorded now."""


@contextmanager
def _alone(subjects: Sequence[object]) -> Iterator[None]:
    """Nobody else measures these while the context lasts: the calls of one run would be among those of the other."""
    with _lock:
        if not _measured.isdisjoint(subjects):
            why = "it is timed or traced by another report(..., run=...), or by this one around it"
            fix = "measure one run after the other; modules of one class may share what is compiled"
            raise StateError("a run is being measured already", where="run", why=why, fix=fix)
        _measured.update(subjects)
    try:
        yield
    finally:
        with _lock:
            _measured.difference_update(subjects)


class RunTimer:
    """Times every call of some drivers while it is :meth:`on`, whichever thread makes it.

    Attributes:
        calls: in the order in which they ended.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.calls: list[Call] = []
        self._cuda = device is not None and device.type == "cuda"
        self._underway = _Underway()

    @contextmanager
    def on(self, drivers: Sequence[Driver], others: Sequence[Watchable] = ()) -> Iterator[None]:
        """Time these drivers while the context lasts, and the calls of others as a whole.

        Raises:
            StateError: one of them is timed already.
        """
        with _alone([*drivers, *others]), ExitStack() as stack:
            for other in others:
                stack.enter_context(other.watched_calls(self.whole))
            for driver in drivers:
                stack.enter_context(driver.watched(self._region))
                stack.enter_context(driver.watched_points(self._point))
                stack.enter_context(driver.watched_calls(lambda *call, driver=driver: self._call(driver, *call)))
            yield

    def whole(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``, timed as one call."""
        return self._whole(Call(), function, *args)

    def _whole(self, call: Call, function: Callable[..., Any], *args: Any) -> Any:
        self._underway.calls.append(call)
        try:
            result, call.whole = self._timed(f"{MARK}: call", function, *args)
        finally:
            self._underway.calls.pop()
        self.calls.append(call)
        return result

    def _call(self, driver: Driver, forward: Callable[..., Any], *args: Any) -> Any:
        call = Call()
        result = self._whole(call, forward, *args)
        made = driver.decisions.made
        call.chunk = made[-1].chunk if made else None
        return result

    def _region(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        called = _call_name(sys._getframe(1), name)
        return self._span(stage_of(called), f"{called} ({name})", function, *args)

    def _point(self, name: str, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return self._span("decide" if name == "plan" else stage_of(name), name, function, *args, **more)

    def _span(self, stage: str, mark: str, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        result, span = self._timed(f"{MARK}: {mark}", function, *args, **more)
        if self._underway.calls:
            self._underway.calls[-1].spans.append((stage, span))
        return result

    def _timed(self, mark: str, function: Callable[..., Any], *args: Any, **more: Any) -> tuple[Any, Any]:
        with torch.profiler.record_function(mark):
            if not self._cuda:
                start = time.perf_counter()
                result = function(*args, **more)
                return result, 1e3 * (time.perf_counter() - start)
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            result = function(*args, **more)
            last.record()
            return result, (first, last)


def stage_of(call: str) -> str:
    """``step 2`` of ``step_2_block_7``, ``prefill`` of ``prefill_block_0``; :data:`REST` for others."""
    found = _STAGE.match(call.removeprefix("reuse_"))
    return found[1].replace("_", " ") if found else REST


def _call_name(frame: Any, region: str) -> str:
    """What the driver's source calls the result at the line that runs now."""
    found = _CALL.match(linecache.getline(frame.f_code.co_filename, frame.f_lineno))
    return found[1] if found else region


def _read(span: Any) -> float:
    if not isinstance(span, tuple):
        return float(span)
    first, last = span
    last.synchronize()
    return float(first.elapsed_time(last))
