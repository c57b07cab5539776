"""What ``accelerate`` gives back: what was done, what became of it, and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from lightint_compile.acceleration.compiled_call import CompiledCall
from lightint_compile.capture.memos import Memo
from lightint_compile.compiled import decisions as decisions_of
from lightint_compile.compiled import report as report_of
from lightint_compile.errors import LightintError, StateError
from lightint_compile.integrations.loop import Loop
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.reporting import Report
from lightint_compile.reporting.breaks import ACCELERATE
from lightint_compile.reporting.section import Section
from lightint_compile.runtime.decision import Decision


class Accelerated:
    """A model or pipeline while it is accelerated. As a context manager it undoes that at the end."""

    def __init__(self, name: str, calls: Mapping[str, CompiledCall], loop: Loop | None) -> None:
        self._name, self._calls, self._loop = name, dict(calls), loop
        self._report: Report | LightintError | None = None
        self._decisions: list[Decision] = []

    @property
    def is_active(self) -> bool:
        """Whether it was not undone yet."""
        return self._report is None

    def report(self) -> Report:
        """What lightint did to every module that was called, what was opened and what keeps its decorator.

        After :meth:`undo` it is the report as of then.

        Raises:
            StateError: no module was called.
            PassError: as of :func:`lightint_compile.report`.
        """
        found = self._reported() if self._report is None else self._report
        if isinstance(found, LightintError):
            raise found
        return found

    def decisions(self) -> list[Decision]:
        """The decisions of the rollout that ran last, chunk by chunk: the pipeline's loop's, or else the model's own.

        The list is empty where nothing was decided, or nothing ran. After :meth:`undo` they are those of then.
        """
        return list(self._decisions) if self._report is not None else self._decided()

    def undo(self) -> None:
        """Leave everything as it was: modules, decorators and the pipeline's loop. Compiled code stays with torch.

        Raises:
            StateError: it was undone already.
        """
        if not self.is_active:
            raise StateError(f"{self._name} is not accelerated any more", where="undo", why="undo() was called before")
        self._report, self._decisions = self._reported(), self._decided()
        if self._loop is not None:
            self._loop.undo()
        for call in self._calls.values():
            call.undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_active:
            self.undo()

    def __str__(self) -> str:
        if not self.is_active:
            return f"{self._name}: not accelerated any more"
        where = ", ".join(filter(None, self._calls)) or "in place"
        said = dict.fromkeys(remark.message for remark in self._remarks())
        return "\n".join([f"{self._name}: accelerated ({where})", *(f"  {message}" for message in said)])

    def _remarks(self) -> list[Remark]:
        calls = self._calls.values()
        found = [remark for call in calls for remark in (*call.opened.remarks(), *map(_of_memo, call.memos))]
        if self._loop is not None:
            found.append(
                Remark(kind=RemarkKind.ANALYSIS, pass_name=ACCELERATE, rule="rollout", message=self._loop.what)
            )
        return found

    def _reported(self) -> Report | LightintError:
        """The report of all modules that were called, the remarks on the whole in its first section."""
        sections: list[Section] = []
        failure: LightintError | None = None
        for call in self._calls.values():
            sections += [call.failure] if call.failure is not None else []
            try:
                sections += report_of(call.module).sections
            except LightintError as error:
                failure = error if failure is None or not isinstance(error, StateError) else failure
        if failure is not None and (not sections or not isinstance(failure, StateError)):
            return failure
        sections[:1] = [sections[0].with_remarks(self._remarks())]
        return dataclasses.replace(Report.of(*sections), reproduce="lightint_compile.accelerate(...).report()")

    def _decided(self) -> list[Decision]:
        if self._loop is not None and self._loop.decisions:
            return list(self._loop.decisions)
        for call in self._calls.values():
            try:
                found = decisions_of(call.module)
            except StateError:
                continue
            if found:
                return found
        return []


def _of_memo(memo: Memo) -> Remark:
    """What became of a memo in a dictionary of a Python module, or of what looks like one."""
    rule, became, hint = "kept-memo", f"asked as it is, so a new key compiles anew: {memo.why}", ""
    if not memo.why:
        rule, became = "memo-left-out", "left out of what is compiled, which computes its entries itself"
    elif not memo.is_named:
        hint = f'where an entry follows from its key and from weights: accelerate(..., memos=["{memo.name}"])'
    message = f"{memo.name} is {became}"
    return Remark(
        kind=RemarkKind.ANALYSIS, pass_name=ACCELERATE, rule=rule, message=message, hint=hint, source=memo.source
    )
