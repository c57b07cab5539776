"""One graph's part of a report, as plain data made from a rewritten program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.fx as fx

from lightint_compile.passes.analysis.token_grid import Made, tokens_made
from lightint_compile.passes.ir.remarks import Remark, RemarkKind, generic_path, merged
from lightint_compile.reporting.graphs import Graphs
from lightint_compile.reporting.rundown import rundown

if TYPE_CHECKING:
    from lightint_compile.pipeline_run import Rewritten


@dataclass(frozen=True)
class PassRow:
    """One pass in numbers: places rewritten, near misses, seconds, and the graph's FLOPs before and after it."""

    name: str
    rewritten: int
    missed: int
    seconds: float
    numerics: str
    flops_before: int = 0
    flops_after: int = 0

    @property
    def found(self) -> int:
        """Places rewritten, and near misses."""
        return self.rewritten + self.missed


@dataclass(frozen=True)
class Section:
    """What happened to one graph.

    Attributes:
        name: the user's class or function name.
        pipeline: the passes as text; empty when the graph was left alone.
        options: the options that differ from their defaults.
        nodes_before, nodes_after: calls in the graph.
        passes: one row a pass, in the order they ran.
        remarks: repeated places folded into one with a count.
        measurements: seconds and counts known after compilation, by name (``"trace seconds"``, ``"cache hits"``).
        untouched: why the graph was handed on as it is; empty when the passes ran.
        predicted: milliseconds of a call on a named device, by device, kind of work, and before or after.
        runs: what the root graph runs, as pairs of a phase and its calls.
        tokens: results that are the tokens of a grid, which other graphs are told: (number, (frames, height, width)),
            with ``None`` for as many frames as there are, and text for a height or width that changes.
        source: makes or hands out the FX graphs, which are not part of the data; ``None`` where there are none.
    """

    name: str
    pipeline: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    nodes_before: int = 0
    nodes_after: int = 0
    passes: tuple[PassRow, ...] = ()
    remarks: tuple[Remark, ...] = ()
    measurements: Mapping[str, float] = field(default_factory=dict)
    untouched: str = ""
    runs: tuple[tuple[str, str], ...] = ()
    predicted: Mapping[str, float] = field(default_factory=dict)
    tokens: Made = ()
    source: Callable[[], Graphs] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, rewritten: Rewritten, measurements: Mapping[str, float] | None = None) -> Section:
        """The section of a rewritten program."""
        graphs = Graphs.of(rewritten)
        return cls(
            name=rewritten.program.name,
            pipeline=rewritten.pipeline,
            options=rewritten.options.to_dict(),
            nodes_before=_calls(rewritten.original.graph),
            nodes_after=_calls(rewritten.program.graph),
            passes=tuple(_rows(rewritten)),
            remarks=tuple(_readable(rewritten.remarks)),
            measurements=dict(measurements or {}),
            runs=rundown(rewritten.program.graph_module),
            tokens=tokens_made(rewritten.original),
            source=lambda: graphs,
        )

    @property
    def graphs(self) -> Graphs | None:
        """The FX graphs before and after; a warm start rewrites the captured graph once more to have them."""
        return self.source() if self.source is not None else None

    @property
    def graph(self) -> fx.GraphModule | None:
        """The rewritten FX graph."""
        return self.graphs.after if self.graphs else None

    @property
    def original(self) -> fx.GraphModule | None:
        """The FX graph as it was captured."""
        return self.graphs.before if self.graphs else None

    def with_remarks(self, remarks: Iterable[Remark]) -> Section:
        """This section with more remarks at the end; equal ones are folded together."""
        return dataclasses.replace(self, remarks=(*self.remarks, *_readable(tuple(remarks))))

    def with_remark(self, remark: Remark) -> Section:
        """This section with one more remark at the end."""
        return dataclasses.replace(self, remarks=(*self.remarks, remark))

    def with_measurements(self, measurements: Mapping[str, float]) -> Section:
        """This section with more (or newer) measurements."""
        return dataclasses.replace(self, measurements={**self.measurements, **measurements})

    @property
    def rewritten(self) -> int:
        """Places that were rewritten."""
        return sum(row.rewritten for row in self.passes)

    @property
    def missed(self) -> int:
        """Places that came near a rewrite and were left alone."""
        return sum(row.missed for row in self.passes)

    @property
    def flops(self) -> tuple[int, int]:
        """Floating-point operations before and after all passes; zero when no pass ran."""
        return (self.passes[0].flops_before, self.passes[-1].flops_after) if self.passes else (0, 0)

    def of_kind(self, kind: RemarkKind) -> list[Remark]:
        """The remarks of one kind, in order."""
        return [remark for remark in self.remarks if remark.kind is kind]

    def to_dict(self) -> dict[str, Any]:
        """The section as JSON-ready data, without the graphs."""
        return {
            "name": self.name,
            "pipeline": self.pipeline,
            "options": dict(self.options),
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "passes": [dataclasses.asdict(row) for row in self.passes],
            "remarks": [remark.to_dict() for remark in self.remarks],
            "measurements": dict(self.measurements),
            "untouched": self.untouched,
            "runs": [list(line) for line in self.runs],
            **({"predicted": dict(self.predicted)} if self.predicted else {}),
            **({"tokens": [[number, list(grid)] for number, grid in self.tokens]} if self.tokens else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Section:
        """The inverse of :meth:`to_dict`."""
        rows = tuple(PassRow(**row) for row in data["passes"])
        remarks = tuple(Remark.from_dict(remark) for remark in data["remarks"])
        runs = tuple((phase, said) for phase, said in data.get("runs", ()))
        tokens = tuple((number, tuple(grid)) for number, grid in data.get("tokens", ()))
        return cls(**{**data, "passes": rows, "remarks": remarks, "runs": runs, "tokens": tokens})


def _rows(rewritten: Rewritten) -> Iterable[PassRow]:
    from lightint_compile.passes.registry import pass_class

    for index, timing in enumerate(rewritten.timings):
        own = [remark for remark in rewritten.remarks if remark.pass_name == timing.name]
        yield PassRow(
            name=timing.name,
            rewritten=sum(r.count for r in own if r.kind is RemarkKind.APPLIED),
            missed=sum(r.count for r in own if r.kind is RemarkKind.MISSED),
            seconds=timing.seconds,
            numerics=str(pass_class(timing.name).numerics),
            flops_before=rewritten.flops[index],
            flops_after=rewritten.flops[index + 1],
        )


def _calls(graph: fx.Graph) -> int:
    return sum(node.op not in ("placeholder", "output", "get_attr") for node in graph.nodes)


def _readable(remarks: tuple[Remark, ...]) -> list[Remark]:
    """Repeated places folded, with ``blocks.*`` narrowed to the indices that occur (``blocks.0-29``)."""
    return [dataclasses.replace(row, module_path=_spelled(row, remarks)) for row in merged(remarks)]


def _spelled(row: Remark, remarks: Iterable[Remark]) -> str:
    if "*" not in row.module_path:
        return row.module_path
    same = [remark.module_path.split(".") for remark in remarks if _same_place(remark, row)]
    return ".".join(_range(column) for column in zip(*same, strict=True))


def _same_place(remark: Remark, row: Remark) -> bool:
    said = (remark.kind, remark.pass_name, remark.rule, remark.message)
    return said == (row.kind, row.pass_name, row.rule, row.message) and (
        generic_path(remark.module_path) == row.module_path
    )


def _range(parts: Iterable[str]) -> str:
    """``0-29`` for numbers without a gap, ``0,2,5`` for a few others, ``*`` for many; a name stays a name."""
    distinct = sorted(set(parts), key=lambda part: int(part) if part.isdigit() else -1)
    if len(distinct) == 1:
        return distinct[0]
    numbers = [int(part) for part in distinct]
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(distinct) if len(distinct) <= 6 else "*"
