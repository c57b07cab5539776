"""adaptive-context: the earlier frames that a chunk attends to are chosen by where the camera goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from lightint_compile.passes.adaptive_context.context_input import ContextInput, find_context_input
from lightint_compile.passes.adaptive_context.gathered_context import ContextGather, counts_of, find_gather
from lightint_compile.passes.adaptive_context.memory_frames import AskedFrames, decide_on_frames, find_asked_frames
from lightint_compile.passes.adaptive_context.subset import decide_on_input
from lightint_compile.passes.analysis.world import intrinsics_of
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.chunk_plan import insert_plan
from lightint_compile.passes.ir.decision_points import PLAN
from lightint_compile.passes.ir.decision_policy import Policy, check_overlap, check_rules
from lightint_compile.passes.ir.fresh_sizes import Resize, check_unconditional, fresh_size
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind, at
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.world_spec import StatedWorld

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class AdaptiveContext(StatedWorld, Pass):
    """Replaces the model's own choice of context frames by a decision that the driver takes once a chunk.

    The number of frames becomes a symbol, so one compiled program serves every decision. The model's own choice is dead
    code from then on. See ``docs/passes/adaptive-context.md``.

    What is known of the world (:class:`~lightint_compile.passes.ir.world_spec.StatedWorld`) may be stated besides.

    Attributes:
        rules: ``adaptive``, or ``published`` for the constants of the Light Interaction release.
        overlap: overlap from which a view counts as seen before; ``None`` leaves it to the rules.
    """

    name: ClassVar[str] = "adaptive-context"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE
    rules: str = "adaptive"
    overlap: float | None = None

    def __post_init__(self) -> None:
        check_rules(self.rules, f"{self.name}{{rules}}")
        check_overlap(self.overlap, f"{self.name}{{overlap}}")
        self.world()

    def run(self, program: Program) -> PassResult:
        """Find the gather of context and put a decision in front of it."""
        if PLAN in dict(program.graph_module.named_children()):
            return PassResult(False)
        intrinsics = intrinsics_of(program, self)
        found = find_gather(program, self)
        if isinstance(found, ContextGather):
            policy = Policy.of(found.world, rules=self.rules, adapt_context=True, overlap=self.overlap)
            return PassResult(True, (_decide(program, found, policy, intrinsics),))
        given = find_context_input(program, self) if found is None else None
        if isinstance(given, ContextInput):
            policy = Policy.of(given.world, rules=self.rules, adapt_context=True, overlap=self.overlap, given=True)
            told = decide_on_input(program, given, policy, intrinsics)
            return PassResult(
                True, (_applied(policy, at(given.context), _which("context frames that are given"), **told),)
            )
        asked = find_asked_frames(program, self)
        if asked is not None:
            return self._of_single_frames(program, asked, intrinsics)
        missed = found or given
        return PassResult(False, (missed.remark(self.name, "gather"),) if missed else ())

    def _of_single_frames(self, program: Program, asked: AskedFrames, intrinsics: fx.Node | None) -> PassResult:
        policy = Policy.of(asked.world, rules=self.rules, adapt_context=True, overlap=self.overlap)
        told, where = at(asked.memory.index), asked.memory.frames
        followed = decide_on_frames(program, asked, policy, intrinsics, self.name)
        if isinstance(followed, Miss):
            return PassResult(False, (followed.remark(self.name, "memory"),))
        which = _which(f"{where} remembered frames")
        return PassResult(True, (_applied(policy, told, which, remembered=where, followed=followed),))


def _decide(program: Program, found: ContextGather, policy: Policy, intrinsics: fx.Node | None) -> Remark:
    before = len(program.graph.nodes)
    remark_at = at(found.gathers[0])
    index = _plan(program, found, policy, intrinsics)
    coming = {} if found.coming is None else {"coming": str(found.coming)}
    rewriter = Rewriter(program, AdaptiveContext.name)
    with rewriter.at(index, rule="decision", after=True):
        count = rewriter.call(aten.sym_size.int, index, 0)
    rewriter.replace(found.index, index)
    for node in counts_of(program, found.size):
        node.replace_all_uses_with(count, propagate_meta=False)
        rewriter.erase_unused(node)
    dead = before + 3 - len(program.graph.nodes)
    renamed = Resize(program, {found.size: index.meta["val"].shape[0]}).below([index, count])
    which = _which(f"at most {policy.memory} context frames")
    return _applied(
        policy, remark_at, which, gathers=len(found.gathers), nodes_dropped=dead, nodes_renamed=renamed, **coming
    )


def _which(frames: str) -> str:
    return f"{frames}: which ones are read is decided once a chunk, from the cameras"


def _applied(policy: Policy, where: dict[str, Any], message: str, **args: Any) -> Remark:
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=AdaptiveContext.name,
        rule=policy.rules,
        message=message,
        args={"memory": policy.memory, "given": policy.given, **args},
        numerics=Numerics.APPROXIMATE,
        **where,
    )


def _plan(program: Program, found: ContextGather, policy: Policy, intrinsics: fx.Node | None) -> fx.Node:
    """The decision, as early as its operands allow, and the node of its first result, the frame numbers."""
    positions = tensor_of(found.index)
    assert positions is not None
    size = fresh_size(program, "context_frames", policy.memory, policy.typical_context)
    check_unconditional({found.size: size}, found.index)
    operands = (found.cameras, found.history)
    return insert_plan(program, policy, operands, size, positions, found.index, found.coming, intrinsics)
