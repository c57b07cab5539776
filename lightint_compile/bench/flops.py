"""FLOPs of a rollout by stage and kind, counted on the rewritten graphs at full size; no weights, no GPU.

The model is traced on the meta device at two small depths. Blocks between the first and the last are alike, or their
kinds have the same share at both depths. So FLOPs are a straight line in the depth, and the line gives the full depth:
exactly, except for modulation on a row a frame, which may lie on either side of a step's branch. A third ``--depth``
checks it. Decisions are those that the rules take along the camera path; a step that the camera allows to be reused
counts as reused, as its drift check is not known without values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.fx as fx

from lightint_compile import capture
from lightint_compile.bench.about import write
from lightint_compile.bench.counting import MODULATION, ChunkCounter, Work, total
from lightint_compile.bench.depths import check_depths, default_depths
from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.models.registry import LARGE, world_model
from lightint_compile.models.world_model import WorldModel, turn_and_back
from lightint_compile.options import LightintOptions
from lightint_compile.options.presets import PRESETS
from lightint_compile.passes.ir.node_queries import is_scalar
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.path_decisions import decide
from lightint_compile.pipeline_run import rewrite
from lightint_compile.runtime.decision import Decision

STAGES = ("prefill", "denoise", "text")
KINDS = ("attention", "linear", MODULATION)


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        options: of the compilation whose graphs are counted.
        decided_by: the preset whose rules decide along the path.
        dense_chunks: first chunks that run without sparse attention, whatever the options say.
        age, kept_frames: most chunks for which keys and values of a context frame are kept, and of how many frames.
    """

    options: Mapping[str, Any]
    decided_by: str = "exact"
    dense_chunks: int = 0
    age: int = 0
    kept_frames: int = 0

    @classmethod
    def keeping(cls, age: int, kept_frames: int) -> Variant:
        """The preset ``all`` with keys and values of ``kept_frames`` frames kept for ``age`` chunks."""
        options = {"preset": "all", "age": age, "kept_frames": kept_frames}
        return cls(options, "all", age=age, kept_frames=kept_frames)


_RELEASE = ("adaptive-context", "sparse-attention", "outline-regions", "step-cache")

VARIANTS: dict[str, Variant] = {
    "off": Variant({"passes": ""}),
    "exact": Variant({"preset": "exact"}),
    "release": Variant(
        {"passes": ",".join(f"{name}{{{PRESETS['published'].settings.get(name, '')}}}" for name in _RELEASE)},
        "published",
        dense_chunks=3,
    ),
    "published": Variant({"preset": "published"}, "published"),
    "all": Variant({"preset": "all"}, "all"),
    "all, kept 4 chunks": Variant.keeping(4, 20),
    "all, kept 16 chunks": Variant.keeping(16, 64),
}
"""``release``: the rules of the Light Interaction release alone, dense first chunks included, no rewrite of ours."""

PUBLISHED = {"off": 29.2, "release": 9.2}
"""PFLOP that the analysis of the release gives for the 8B 480p size along ``left-31,right-32``."""


@dataclass
class Rollout:
    """Decisions and FLOPs chunk by chunk."""

    decisions: list[Decision]
    chunks: list[Work] = field(default_factory=list)

    @property
    def work(self) -> Work:
        """Of all chunks."""
        return sum(self.chunks, Counter())

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain data, a chunk each; :meth:`from_dict` takes it back."""
        return [
            {**decision.to_dict(), "flops": {f"{stage} {kind}": flops for (stage, kind), flops in sorted(work.items())}}
            for decision, work in zip(self.decisions, self.chunks, strict=True)
        ]

    @classmethod
    def from_dict(cls, data: Sequence[Mapping[str, Any]]) -> Self:
        """The inverse of :meth:`to_dict`, also after a way through JSON."""
        made = cls([])
        for each in data:
            made.decisions.append(Decision.from_dict({key: each[key] for key in each if key != "flops"}))
            work = {tuple(key.split(" ")): flops for key, flops in each["flops"].items()}
            made.chunks.append(cast(Work, Counter(work)))
        return made


class Traces:
    """The programs of one model on the meta device, captured once each and copied for every variant."""

    def __init__(self, model: WorldModel, dtype: torch.dtype = torch.bfloat16) -> None:
        self.model, self._dtype = model, dtype
        self._captured: dict[tuple[int, bool], Program] = {}

    def program(self, depth: int, with_history: bool) -> Program:
        """A copy of the program with ``depth`` blocks, for the first chunk or for all later ones."""
        if (depth, with_history) not in self._captured:
            chunk = self.model.at_depth(depth).module("meta", self._dtype)
            args = tuple(self.inputs(self.model.example_history if with_history else 0).values())
            dynamic = self.model.frame_axes if with_history else {}
            with torch.no_grad():
                captured = capture.trace(chunk, args, dynamic=dynamic)
            self._captured[depth, with_history] = captured
        return self._captured[depth, with_history].snapshot()

    def inputs(self, history: int) -> dict[str, Any]:
        """Arguments by name after ``history`` latent frames."""
        return self.model.example_inputs(history, "meta", self._dtype)


def count(traces: Traces, variant: Variant, depth: int, decisions: Sequence[Decision]) -> list[Work]:
    """FLOPs of each chunk at ``depth`` blocks.

    Raises:
        PassError: a pass failed.
    """
    counters = _counters(traces, variant, depth)
    works = []
    for decision in decisions:
        dense = 0 < decision.chunk < variant.dense_chunks
        inputs = traces.inputs(traces.model.spec.frames(decision.chunk))
        works.append(counters[decision.chunk > 0, dense].count(inputs, decision))
    return works


class _Lazily(dict[tuple[bool, bool], ChunkCounter]):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: tuple[bool, bool]) -> ChunkCounter:
        self[key] = self._make(*key)
        return self[key]


def _counters(traces: Traces, variant: Variant, depth: int) -> Mapping[tuple[bool, bool], ChunkCounter]:
    """Counters by whether there is a history, and whether attention stays dense; rewritten when first asked for."""

    def make(with_history: bool, dense: bool) -> ChunkCounter:
        options = LightintOptions.from_mapping({**variant.options, "strict": True})
        left_out = ("sparse-attention",) if dense or not with_history else ()
        done = rewrite(traces.program(depth, with_history), options, leave_out=left_out)
        assert not any(remark.kind is RemarkKind.FAILURE for remark in done.remarks)
        stages = stages_of(done.program, traces.model.roles)
        return ChunkCounter(done.program, partial(_of, stages), lambda path: "mod" in path.lower())

    return _Lazily(make)


def _of(stages: Mapping[fx.Node, str], node: fx.Node) -> str:
    return stages[node]


def stages_of(program: Program, roles: Mapping[str, str]) -> dict[fx.Node, str]:
    """What each node of the root is part of, by the roles of what it is made from.

    What has no source with such a role belongs to its first reader.
    """
    sources: dict[fx.Node, frozenset[str]] = {}
    for node in program.graph.nodes:
        role = roles.get(program.input_of(node).path, "") if node.op == "placeholder" else ""
        own = {role} & {"latent", "context", "text"}
        made_from = [source for source in node.all_input_nodes if not is_scalar(source)]
        sources[node] = frozenset(own).union(*(sources[source] for source in made_from))
    stages: dict[fx.Node, str] = {}
    for node in reversed(program.graph.nodes):
        if "latent" in sources[node]:
            stages[node] = "denoise"
        elif "context" in sources[node]:
            stages[node] = "prefill"
        elif sources[node]:
            stages[node] = "text"
        else:
            stages[node] = "prefill" if any(stages.get(user) == "prefill" for user in node.users) else "denoise"
    return stages


def rollout(
    traces: Traces, variant: Variant, trajectory: str, latents: int | None, depths: Sequence[int], full_depth: int
) -> Rollout:
    """FLOPs of a rollout at ``full_depth``, from counts at ``depths``.

    Raises:
        AssertionError: a third depth is not on the line through the first two.
    """
    rules = (variant.decided_by, None, variant.age, variant.kept_frames)
    decisions = decide(trajectory, latents, *rules, model=traces.model)
    counted = [count(traces, variant, depth, decisions) for depth in depths]
    low, high, *more = counted
    for depth, works in zip(depths[2:], more, strict=True):
        expected = [line(a, b, depths, depth) for a, b in zip(low, high, strict=True)]
        off = max(abs(total(a) / total(b) - 1) for a, b in zip(works, expected, strict=True))
        assert off < 1e-3, f"FLOPs at {depth} blocks are not on the line through {depths[:2]}"
    return Rollout(decisions, [line(a, b, depths, full_depth) for a, b in zip(low, high, strict=True)])


def line(low: Work, high: Work, depths: Sequence[int], depth: int) -> Work:
    """Work at ``depth`` on the line through the first two of ``depths``."""
    blocks = depths[1] - depths[0]
    return Counter({key: low[key] + (high[key] - low[key]) * (depth - depths[0]) // blocks for key in low | high})


def run(
    *,
    model: str = LARGE,
    variants: Sequence[str] = (),
    trajectory: str | None = None,
    latents: int | None = None,
    depths: Sequence[int] = (),
    json_file: Path | None = None,
) -> None:
    """Count and print.

    Args:
        variants: rows of the table; all of :data:`VARIANTS` unless given.
        trajectory: the camera path; a turn to the left and back unless given.
        latents: latent frames of it that are counted; all unless given.
        depths: numbers of blocks that are traced; a third one checks the line through the first two. 2 and 3 unless
            given, or 4 and 6 where blocks are of two kinds.
        json_file: where chunks and decisions are written.

    Raises:
        OptionError: there is no such variant, or the depths make no line to the model's own.
        InputError: there is no such model, or the path does not fit.
    """
    chosen = world_model(model)
    for name in variants:
        if name not in VARIANTS:
            raise OptionError(f"there is no variant {name!r}", where="--variant", fix=did_you_mean(name, VARIANTS))
    depths = depths or default_depths(chosen, (2, 3))
    if len(set(depths)) < max(2, len(depths)):
        raise OptionError("a line needs two depths", where="--depth", fix="give two or three, each another")
    check_depths(chosen, depths, "--depth")
    traces, trajectory = Traces(chosen), trajectory or turn_and_back(chosen.spec)
    found = {
        name: rollout(traces, VARIANTS[name], trajectory, latents, depths, chosen.depth)
        for name in variants or VARIANTS
    }
    for row in table(found):
        print(row)
    if json_file:
        write(json_file, {"model": model, "variants": {name: each.to_dict() for name, each in found.items()}}, "cpu")


def table(found: Mapping[str, Rollout]) -> Iterator[str]:
    """Lines of a Markdown table in PFLOP: attention / linear / modulation of each stage, then totals."""
    yield "| | prefill | denoise | text | total | attention | context frames | chunks that reuse steps |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, each in found.items():
        work = each.work
        cells = [" / ".join(_peta(total(work, stage, kind)) for kind in KINDS) for stage in STAGES]
        share = total(work, kind="attention") / total(work)
        frames = sum(_context_frames(name, decision) for decision in each.decisions)
        reusing = sum(bool(decision.reused_steps) for decision in each.decisions)
        yield f"| {name} | {' | '.join(cells)} | **{_peta(total(work))}** | {share:.0%} | {frames} | {reusing} |"


def _context_frames(name: str, decision: Decision) -> int:
    return len(decision.context_frames)


def _peta(flops: int) -> str:
    return f"{flops / 1e15:.2f}"
