"""FLOPs of a WorldPlay rollout by stage and kind, counted on the rewritten graphs at full size; no weights, no GPU.

The model is traced on the meta device at two small depths. Blocks between the first and the last are alike, so FLOPs
are a straight line in the depth, and the line gives the full depth: exactly, except for modulation on a row a frame,
which may lie on either side of a step's branch. ``--depths`` with three numbers checks it on the third. Decisions are
those that the rules take along the camera path; a step that the camera allows to be reused counts as reused, as its
drift check is not known without values.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.fx as fx

from lightint_compile import capture
from lightint_compile.bench.counting import MODULATION, ChunkCounter, Work, total
from lightint_compile.errors import OptionError
from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs
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
NAMES = ("noise", "history", "extrinsics", "intrinsics", "actions", "image", "text", "glyphs", "vision")
_OF_TEXT = frozenset({"text", "glyphs", "vision"})
_FRAMES = {"history": 2, "extrinsics": 1, "intrinsics": 1, "actions": 1}


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


class Traces:
    """The programs of one model on the meta device, captured once each and copied for every variant."""

    def __init__(self, config: WorldPlayConfig, text_tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self._config, self._text_tokens, self._dtype = config, text_tokens, dtype
        self._captured: dict[tuple[int, bool], Program] = {}

    def program(self, depth: int, with_history: bool) -> Program:
        """A copy of the program with ``depth`` blocks, for the first chunk or for all later ones."""
        if (depth, with_history) not in self._captured:
            config = dataclasses.replace(self._config, depth=depth)
            with torch.device("meta"):
                chunk = WorldPlayChunk(config).to(self._dtype).eval().requires_grad_(False)
            args = tuple(self.inputs(40 if with_history else 0).values())
            dynamic = _FRAMES if with_history else {}
            with torch.no_grad():
                captured = capture.trace(chunk, args, dynamic=dynamic)
            self._captured[depth, with_history] = captured
        return self._captured[depth, with_history].snapshot()

    def inputs(self, history: int) -> dict[str, Any]:
        """Arguments by name after ``history`` latent frames."""
        made = example_inputs(self._config, history, device="meta", dtype=self._dtype, text_tokens=self._text_tokens)[0]
        return dict(zip(NAMES, made, strict=True))


def count(traces: Traces, variant: Variant, depth: int, decisions: Sequence[Decision]) -> list[Work]:
    """FLOPs of each chunk at ``depth`` blocks.

    Raises:
        PassError: a pass failed.
    """
    counters = _counters(traces, variant, depth)
    works = []
    for decision in decisions:
        dense = 0 < decision.chunk < variant.dense_chunks
        inputs = traces.inputs(4 * decision.chunk)
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
        return ChunkCounter(done.program, partial(_of, stages_of(done.program)), lambda path: "mod" in path.lower())

    return _Lazily(make)


def _of(stages: Mapping[fx.Node, str], node: fx.Node) -> str:
    return stages[node]


def stages_of(program: Program) -> dict[fx.Node, str]:
    """What each node of the root is part of, by what it is made from; what neither has belongs to its first reader."""
    sources: dict[fx.Node, frozenset[str]] = {}
    for node in program.graph.nodes:
        own = {program.input_of(node).path} & {"noise", "history", *_OF_TEXT} if node.op == "placeholder" else set()
        made_from = [source for source in node.all_input_nodes if not is_scalar(source)]
        sources[node] = frozenset(own).union(*(sources[source] for source in made_from))
    stages: dict[fx.Node, str] = {}
    for node in reversed(program.graph.nodes):
        if "noise" in sources[node]:
            stages[node] = "denoise"
        elif "history" in sources[node]:
            stages[node] = "prefill"
        elif sources[node]:
            stages[node] = "text"
        else:
            stages[node] = "prefill" if any(stages.get(user) == "prefill" for user in node.users) else "denoise"
    return stages


def rollout(
    traces: Traces, variant: Variant, trajectory: str, latents: int, depths: Sequence[int], full_depth: int
) -> Rollout:
    """FLOPs of a rollout at ``full_depth``, from counts at ``depths``.

    Raises:
        AssertionError: a third depth is not on the line through the first two.
    """
    decisions = decide(trajectory, latents, variant.decided_by, 20, variant.age, variant.kept_frames)
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


def main(arguments: Sequence[str]) -> None:
    """Count and print; ``lightint bench flops`` calls this."""
    options = _parser().parse_args(arguments)
    config, text = (WorldPlayConfig.hy_8b_480p(), 119) if options.size == "8b-480p" else (WorldPlayConfig.demo(), 12)
    for name in options.variants:
        if name not in VARIANTS:
            raise OptionError(f"there is no variant {name!r}", where="--variants", fix=f"known: {', '.join(VARIANTS)}")
    traces = Traces(config, text)
    found = {
        name: rollout(traces, VARIANTS[name], options.trajectory, options.latents, options.depths, options.full_depth)
        for name in options.variants
    }
    for row in table(found):
        print(row)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({name: _as_data(each) for name, each in found.items()}, file, indent=1)


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


def _as_data(each: Rollout) -> list[dict[str, Any]]:
    return [
        {**decision.to_dict(), "flops": {f"{stage} {kind}": flops for (stage, kind), flops in sorted(work.items())}}
        for decision, work in zip(each.decisions, each.chunks, strict=True)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightint bench flops", description=__doc__)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--size", default="8b-480p", choices=("demo", "8b-480p"))
    parser.add_argument("--trajectory", default="left-31,right-32")
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--depths", nargs="+", type=int, default=[2, 3], help="traced; a third one checks the line")
    parser.add_argument("--full-depth", type=int, default=54)
    parser.add_argument("--json", default="", help="write chunks and decisions as JSON")
    return parser
