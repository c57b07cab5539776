"""A traced run in Chrome's trace format, which Perfetto opens, with the report beside the events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lightint_compile.errors import StateError

if TYPE_CHECKING:
    from lightint_compile.reporting.report import Report


def events(report: Report) -> str:
    """The trace as JSON; the report's data stands under ``lightint``.

    Raises:
        StateError: no run was traced.
    """
    if report.trace is None:
        raise StateError(
            "no run was traced",
            why="the report is of a dry run, or of a run that was not recorded",
            fix="lightint_compile.report(compiled, run=lambda: compiled(*inputs), trace=True)",
        )
    return json.dumps({**json.loads(report.trace), "lightint": report.to_dict()})
