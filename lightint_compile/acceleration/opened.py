"""Functions that are traced although ``torch.compiler.disable`` stands on them, for as long as anybody asks for it.

The decorator is the process's: two models may share a function. It comes off for the first that asks, and goes back
when the last is done, or as soon as the function turns out not to trace, for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lightint_compile.capture.disabled import Disabled
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.reporting.breaks import ACCELERATE
from lightint_compile.torch_marks import take_disable_off


@dataclass
class _State:
    """One function.

    Attributes:
        put_back: puts the decorator back; ``None`` once it is.
        users: how many asked for the function to be traced.
        reason: why the decorator went back while somebody asked.
    """

    put_back: Callable[[], None] | None
    users: int = 0
    reason: str = ""

    def close(self, reason: str = "") -> None:
        if self.put_back is not None:
            self.put_back()
            self.put_back, self.reason = None, reason


_states: dict[Any, _State] = {}
_lock = threading.Lock()


class Opened:
    """The functions that one model asked for."""

    def __init__(self, found: Iterable[Disabled]) -> None:
        found = list(found)
        self._own = tuple(each for each in found if each.is_own)
        self._foreign = tuple(each for each in found if not each.is_own and not each.is_open)
        with _lock:
            for each in self._own:
                state = _states.get(each.function) or _State(take_disable_off(each.function))
                state.users += 1
                _states[each.function] = state

    def __bool__(self) -> bool:
        """Whether any function is open."""
        return any(True for _ in self._open())

    def close_those_at(self, places: Iterable[tuple[str, int]], reason: str) -> bool:
        """Put the decorator back on the innermost open function that holds one of these lines, the outermost first.

        Returns:
            Whether there was one.
        """
        for file, line in reversed(list(places)):
            held = [each for each in self._open() if each.contains(file, line)]
            for each in held:
                with _lock:
                    _states[each.function].close(reason)
            if held:
                return True
        return False

    def undo(self) -> None:
        """Stop asking; decorators go back where nobody else does."""
        with _lock:
            for each in self._own:
                state = _states[each.function]
                state.users -= 1
                if not state.users:
                    state.close()
                    del _states[each.function]
        self._own = self._foreign = ()

    def remarks(self) -> list[Remark]:
        """What became of each function."""
        return [
            *(self._remark_of(each) for each in self._own),
            *(_kept(each, f"it is the code of {_library(each)}, which the model uses") for each in self._foreign),
        ]

    def _open(self) -> Iterator[Disabled]:
        return (each for each in self._own if _states[each.function].put_back is not None)

    def _remark_of(self, each: Disabled) -> Remark:
        state = _states[each.function]
        if state.put_back is None:
            return _kept(each, state.reason)
        return _told(each, "opened", "is traced: its torch.compiler.disable is off until undo()")


def _kept(each: Disabled, why: str) -> Remark:
    message = f"keeps its torch.compiler.disable: {why.rstrip('.')}. Graphs end at each call of it."
    return _told(each, "kept-disabled", message)


def _told(each: Disabled, rule: str, what: str) -> Remark:
    message = f"{each.name} {what}"
    return Remark(kind=RemarkKind.ANALYSIS, pass_name=ACCELERATE, rule=rule, message=message, source=each.source)


def _library(each: Disabled) -> str:
    return str(getattr(each.original, "__module__", "")).partition(".")[0] or "a library"
