"""What an adapter of a pipeline's loop is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from lightint_compile.integrations.loop_rules import LoopRules
from lightint_compile.runtime.decision import Decision

Around: TypeAlias = Callable[[Callable[[], Any], dict[str, Any]], Any]
"""Stands around calls of a module: takes the call, ready to be made or left out, and its keyword arguments."""


class Calls(Protocol):
    """The calls of one module."""

    def intercept(self, around: Around) -> None:
        """Let every call of the module go through ``around``."""


class Loop(Protocol):
    """An adapter that is installed in a pipeline.

    Attributes:
        what: what it found and does, one sentence for the report.
    """

    what: str

    @property
    def decisions(self) -> list[Decision]:
        """The decisions of the latest rollout, chunk by chunk."""

    def undo(self) -> None:
        """Leave the pipeline as it was."""


Adapter: TypeAlias = Callable[[Any, Mapping[str, Calls], LoopRules], Loop | None]
"""Takes a pipeline, the calls of its compiled modules by name, and how to decide. It installs itself and gives a
:class:`Loop`, or gives ``None`` for a pipeline that it is not made for. Rules that are false decide nothing: the
pipeline's loop is left alone then, and only its calls may be prepared."""
