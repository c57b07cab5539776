"""The report: one object, readable by a person (``str``), by a program (``to_dict``) and in a debugger (``graph``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx

from lightint_compile.errors import InputError, StateError, did_you_mean
from lightint_compile.reporting.files import written
from lightint_compile.reporting.region import Region
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
        trace: what PyTorch's profiler recorded of a run, not part of the data.
    """

    sections: tuple[Section, ...]
    reproduce: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    chunks: tuple[Mapping[str, Any], ...] = ()
    path: Mapping[str, Any] = field(default_factory=dict)
    trace: str | None = field(default=None, compare=False, repr=False)

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

    def region(self, name: str) -> Region:
        """The region that a root calls ``name`` (``block_1``), with its graph; the first of several.

        Raises:
            InputError: no graph has such a region.
        """
        found = [
            Region(key, module, section.name)
            for section in self.sections
            if section.graph is not None
            for key, module in section.graph.named_children()
            if isinstance(module, fx.GraphModule) and module.meta.get("lightint", {}).get("kind") != "branch"
        ]
        chosen = next((region for region in found if region.name == name), None)
        if chosen is None:
            names = list(dict.fromkeys(region.name for region in found))
            fix = did_you_mean(name, names) if names else "no region was outlined"
            raise InputError(f"there is no region {name!r}", where="name", fix=fix)
        return chosen

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

        return written(path, render(self))

    def to_model_explorer(self, path: str | Path) -> Path:
        """Write the graphs for Google's Model Explorer: both sides, regions and branches, coloured by outcome.

        Raises:
            StateError: the report has no graph.
        """
        from lightint_compile.reporting.model_explorer import collection

        return written(path, collection(self))

    def to_dot(self, path: str | Path) -> Path:
        """Write the root of :attr:`graph` as ``.dot``, or as ``.svg`` by Graphviz' ``dot``.

        Raises:
            InputError: another suffix.
            StateError: the report has no graph, or ``dot`` is not there.
        """
        from lightint_compile.reporting.dot import drawn

        return written(path, drawn(self.graph, Path(path)))

    def print_readable(self, print_output: bool = True) -> str:
        """:attr:`graph` as text, after ``GraphModule.print_readable``, which has no remarks of ours.

        Every operation has its module and source line above it, and behind it its size and the pass that made it.
        """
        from lightint_compile.reporting.readable import readable

        text = readable(self.graph)
        if print_output:
            print(text)
        return text

    def to_perfetto(self, path: str | Path) -> Path:
        """Write the timeline of a traced run for ui.perfetto.dev: marks named ``lightint: ...`` beside the kernels.

        Raises:
            StateError: no run was traced.
        """
        from lightint_compile.reporting.perfetto import events

        return written(path, events(self))

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
