"""context-reuse: frames that stay in the context keep their keys and values from chunk to chunk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from lightint_compile.passes.analysis.attention_sites import AttentionSites
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.context_reuse.cuts import Cut, find_cuts
from lightint_compile.passes.context_reuse.fresh_rows import rows_of
from lightint_compile.passes.context_reuse.rewrite import Reuse, inputs_of, placed_before, policy_of
from lightint_compile.passes.context_reuse.scope import Scope, scope_of, sources
from lightint_compile.passes.ir.decision_points import KeepPoint, point_of
from lightint_compile.passes.ir.flops import bytes_of_value
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind, at

HOSTED = 1 << 24
"""Bytes on the host that are checked in every chunk at most, where the model runs on a device."""


@dataclass(frozen=True, kw_only=True)
class ContextReuse(Pass):
    """Computes keys and values of fresh context frames only, and joins them with what earlier chunks kept.

    Kept is what comes before positions: rotary tables and camera matrices of this chunk are applied to all of it again.
    A frame is kept for as long as it is the same frame under the same prompt and weights, and not older than ``age``;
    the newest frames are always fresh, and so are all frames after the first one that is not kept. The idea goes beyond
    the published method, which rebuilds all of the context in every chunk. See ``docs/passes/context-reuse.md``.

    Attributes:
        age: most chunks for which values are kept; 0 computes all of them in every chunk.
        drift: relative change of kept values, tile by tile, found when they are computed again, from which they are
            kept for half as long; ``none`` does not look.
        kept_frames: most frames whose values are held, which costs memory; by default as many as the model gathers.
            With more, clips that are gathered again after a while need not be computed again.
        kept_bytes: most bytes that the held values take, of one prompt; the first frames of the context that fit are
            kept, and the others are computed in every chunk. By default there is no bound.
    """

    name: ClassVar[str] = "context-reuse"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE
    age: int = 4
    drift: float | None = 0.25
    kept_frames: int | None = None
    kept_bytes: int | None = None

    def __post_init__(self) -> None:
        self.check_not_negative("age", "drift", "kept_frames", "kept_bytes")

    def run(self, program: Program) -> PassResult:
        """Find what can be kept, and keep it; with ``age`` 0 leave everything as it is."""
        if self.age == 0 or _keeps_already(program):
            return PassResult(False)
        scope = scope_of(program)
        if scope is None:
            return PassResult(False, tuple(_without_decision(program)))
        cuts = find_cuts(program, scope)
        rows = rows_of(program, scope, cuts) if cuts else _nothing(scope)
        if not isinstance(rows, Miss):
            where = _late_source(program, scope) or _weights_on_host(program, cuts, scope)
            rows = where or self._too_large(cuts) or rows
        if isinstance(rows, Miss):
            return PassResult(False, (rows.remark(self.name, "keep"),))
        inputs = inputs_of(program, cuts, scope)
        remark_at = at(cuts[0].node)
        before = len(rows)
        policy = dataclasses.replace(
            policy_of(program, scope.plan),
            age=self.age,
            drift=self.drift,
            kept_frames=self.kept_frames,
            fitting=self._fitting(cuts),
        )
        Reuse(program, scope, cuts, rows, inputs, policy, self.name).rewrite()
        return PassResult(True, (self._applied(cuts, before, len(inputs), remark_at),))

    def _fitting(self, cuts: list[Cut]) -> int | None:
        return None if self.kept_bytes is None else self.kept_bytes // sum(cut.frame_bytes for cut in cuts)

    def _too_large(self, cuts: list[Cut]) -> Miss | None:
        if self._fitting(cuts) != 0:
            return None
        size = sum(cut.frame_bytes for cut in cuts)
        reason = f"the values of a frame take {size} bytes, and {self.kept_bytes} may be kept"
        return Miss(cuts[0].node, reason, f"give kept_bytes of {size} for each frame")

    def _applied(self, cuts: list[Cut], rows: int, inputs: int, remark_at: dict[str, Any]) -> Remark:
        return Remark(
            kind=RemarkKind.APPLIED,
            pass_name=self.name,
            rule="keep",
            message=f"{len(cuts)} keys and values of context frames are kept for at most {self.age} chunks",
            args={"values": len(cuts), "operations": rows, "inputs_watched": inputs, "age": self.age},
            numerics=Numerics.APPROXIMATE,
            **remark_at,
        )


def _keeps_already(program: Program) -> bool:
    return any(isinstance(point_of(program.graph_module, node), KeepPoint) for node in program.graph.nodes)


def _without_decision(program: Program) -> list[Remark]:
    sites = program.fact(AttentionSites).sites
    if not sites:
        return []
    reason = "which frames are context is not decided at run time, so nothing says which of them stay"
    fix = "run adaptive-context in front; where it runs, its own remarks say why it decides nothing here"
    miss = Miss(sites[0].node, reason, fix)
    return [miss.remark(ContextReuse.name, "keep")]


def _nothing(scope: Scope) -> Miss:
    return Miss(scope.index, "no attention reads keys or values that are a projection of the context's tokens")


def _weights_on_host(program: Program, cuts: list[Cut], scope: Scope) -> Miss | None:
    """In every chunk all that kept values depend on is read, which takes a host longer than making them again."""
    values = [node.meta["val"] for node in inputs_of(program, cuts, scope)]
    size = sum(bytes_of_value(value) for value in values if value.device.type == "cpu")
    if cuts[0].node.meta["val"].device.type == "cpu" or size < HOSTED:
        return None
    reason = f"{size / 1e9:.3g} GB of what they depend on lie on the host, where a check takes longer"
    return Miss(cuts[0].node, reason, "keep the model's weights on the device")


def _late_source(program: Program, scope: Scope) -> Miss | None:
    """The plan looks at everything that is read for each frame, so all of it must be there when it is asked."""
    write = next((node for node in program.graph.nodes if node in scope.chosen and is_write(node)), None)
    if write is not None:
        return Miss(write, "what depends on the chosen frames is written to an input", "return it instead")
    frames = [node for node, _ in sources(scope)]
    if placed_before(program.graph, frames, scope.plan):
        return None
    return Miss(scope.plan, "what belongs to a frame is computed after the decision", "give it as an input")
