"""The report: one object, readable by a person (``str``), by a program (``to_dict``) and in a debugger (``graph``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx

from lightint_compile.errors import InputError, StateError
from lightint_compile.reporting.section import Section

if TYPE_CHECKING:
    from lightint_compile.pipeline_run import Rewritten

SCHEMA = 1
"""Version of the dictionary form; raised when a reader of the old form would misread the new one."""


@dataclass(frozen=True)
class Report:
    """What the compiler did to one module, with one section for each graph; graph breaks make several.

    Attributes:
        sections: in the order the graphs were captured.
        reproduce: how to get this report again, as a command or an expression.
        versions: of lightint and torch, by name.
        chunks: the decisions of the rollout that ran last, chunk by chunk, as data: ``Decision.to_dict`` with the
            latent frames [first, end) of the chunk, milliseconds by stage where a run was timed, and errors where a
            budget is set.
        path: the cameras of these chunks from above, as lists over latent frames (``x``, ``z``, ``heading`` in
            radians); empty where no cameras are at hand.
    """

    sections: tuple[Section, ...]
    reproduce: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    chunks: tuple[Mapping[str, Any], ...] = ()
    path: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *rewritten: Rewritten | Section,
        measurements: Mapping[str, float] | None = None,
        reproduce: str = "",
    ) -> Report:
        """The report of rewritten programs, or of sections; ``measurements`` belong to all of them."""
        sections = tuple(r if isinstance(r, Section) else Section.of(r, measurements) for r in rewritten)
        return cls(sections, reproduce or _expression(sections), _versions())

    @property
    def graph(self) -> fx.GraphModule:
        """The rewritten FX graph; where there are several, the largest (``sections`` has each)."""
        return _present(self._largest().graph)

    @property
    def original(self) -> fx.GraphModule:
        """The FX graph as it was captured, of the same section as :attr:`graph`."""
        return _present(self._largest().original)

    @property
    def rewritten(self) -> int:
        """Places that were rewritten, in all graphs."""
        return sum(section.rewritten for section in self.sections)

    @property
    def missed(self) -> int:
        """Near misses: places that a pass began to match and left alone, in all graphs."""
        return sum(section.missed for section in self.sections)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data under ``"schema": 1``; graphs are left out."""
        return {
            "schema": SCHEMA,
            "versions": dict(self.versions),
            "reproduce": self.reproduce,
            "graphs": [section.to_dict() for section in self.sections],
            **({"chunks": [dict(chunk) for chunk in self.chunks], "path": dict(self.path)} if self.chunks else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of :meth:`to_dict`; another schema is an :class:`~lightint_compile.errors.InputError`."""
        if data.get("schema") != SCHEMA:
            raise InputError(
                "this is not a report of this version",
                where="schema",
                why=f"expected {SCHEMA}, it is {data.get('schema')!r}",
                fix="make the report again",
            )
        sections = tuple(Section.from_dict(section) for section in data["graphs"])
        ran = {"chunks": tuple(data.get("chunks", ())), "path": data.get("path", {})}
        return cls(sections, data["reproduce"], tuple(data["versions"].items()), **ran)

    def to_html(self, path: str | Path) -> Path:
        """Write the report as one HTML file that needs no network, with its graphs where it has them."""
        from lightint_compile.reporting.page import render

        Path(path).write_text(render(self), encoding="utf-8")
        return Path(path)

    def __str__(self) -> str:
        from lightint_compile.reporting.text import render

        return render(self)

    def _largest(self) -> Section:
        if not self.sections:
            raise StateError("the report has no graph", why="nothing was captured", fix="call the module once")
        return max(self.sections, key=lambda section: section.nodes_before)


def _present(graph: fx.GraphModule | None) -> fx.GraphModule:
    if graph is None:
        raise StateError("the report carries no graph", why="it was read from data, or the graph was not captured")
    return graph


def _expression(sections: tuple[Section, ...]) -> str:
    options = dict(sections[0].options) if sections else {}
    given = f", options={options!r}" if options else ""
    return f"lightint_compile.explain(model, *inputs{given})"


def _versions() -> tuple[tuple[str, str], ...]:
    from lightint_compile import __version__

    return (("lightint", __version__), ("torch", str(torch.__version__)))
