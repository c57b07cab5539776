"""adaptive-context: which earlier frames a chunk looks at is decided by where the camera goes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.fx as fx

from lightint_compile.errors import PassError
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.decisions.context import ContextGather, NoGather, find_gather
from lightint_compile.passes.decisions.plan import first_place
from lightint_compile.passes.decisions.points import PLAN, DecisionPoint, PlanPoint
from lightint_compile.passes.decisions.policy import Policy, check_overlap, check_rules
from lightint_compile.passes.decisions.resize import Resize, fresh_size, relied_on
from lightint_compile.passes.evaluate import size_of
from lightint_compile.passes.program import Program, tensor_of
from lightint_compile.passes.remarks import Numerics, Remark, RemarkKind, at
from lightint_compile.passes.rewriting import KEPT_META, Rewriter

aten = torch.ops.aten

TYPICAL = 12
"""Context frames that rules choose once a view was seen before. Later passes weigh costs by it: the first chunk that is
captured has four, and says nothing about the rollout."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveContext(Pass):
    """Replaces the model's own choice of context frames by a decision that the driver takes once a chunk.

    The number of frames becomes a size of its own, so one compiled program serves every decision. The model's own
    choice is dead code from then on. See ``docs/passes/adaptive-context.md``.

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

    def run(self, program: Program) -> PassResult:
        """Find the gather of context and put a decision in front of it."""
        if PLAN in dict(program.graph_module.named_children()):
            return PassResult(False)
        found = find_gather(program)
        if isinstance(found, ContextGather):
            policy = Policy(rules=self.rules, memory=found.memory, adapt_context=True, overlap=self.overlap)
            return PassResult(True, (_decide(program, found, policy),))
        return PassResult(False, (_missed(found),) if found else ())


def _decide(program: Program, found: ContextGather, policy: Policy) -> Remark:
    before = len(program.graph.nodes)
    remark_at = at(found.gathers[0])
    index = _plan(program, found, policy)
    rewriter = Rewriter(program, AdaptiveContext.name)
    with rewriter.at(index, rule="decision", after=True):
        count = rewriter.call(aten.sym_size.int, index, 0)
    rewriter.replace(found.index, index)
    for node in _sizes_of(program, found):
        node.replace_all_uses_with(count, propagate_meta=False)
        rewriter.erase_unused(node)
    dead = before + 3 - len(program.graph.nodes)
    renamed = Resize(program, found.size, index.meta["val"].shape[0]).below([index, count])
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=AdaptiveContext.name,
        rule=policy.rules,
        message=f"at most {found.memory} context frames: which ones is decided once a chunk, from the cameras",
        args={"memory": found.memory, "gathers": len(found.gathers), "nodes_dropped": dead, "nodes_renamed": renamed},
        numerics=Numerics.APPROXIMATE,
        **remark_at,
    )


def _plan(program: Program, found: ContextGather, policy: Policy) -> fx.Node:
    """The decision, as early as its operands allow, and the node of its first result, the frame numbers."""
    positions = tensor_of(found.index)
    assert positions is not None and isinstance(positions.shape[0], torch.SymInt)
    size = fresh_size(program, "__context_frames", found.memory, TYPICAL)
    condition = relied_on(positions.shape[0], size)
    if condition:
        raise PassError(
            "the graph was captured under a condition on the number of context frames",
            where=found.index.name,
            why=f"{condition} need not hold for what is decided",
        )
    program.graph_module.add_submodule(PLAN, DecisionPoint(PlanPoint(policy)))
    operands = (found.cameras, found.history)
    with program.graph.inserting_before(first_place(program.graph, operands)):
        plan = program.graph.call_module(PLAN, operands)
        index = program.graph.call_function(operator.getitem, (plan, 0))
    for node in (plan, index):
        node.meta.update({key: found.index.meta[key] for key in KEPT_META if key in found.index.meta})
    with positions.fake_mode:  # type: ignore[attr-defined]
        index.meta["val"] = torch.empty((size,), dtype=positions.dtype, device=positions.device)
    plan.meta["val"] = (index.meta["val"], None, None)
    return index


def _sizes_of(program: Program, found: ContextGather) -> list[fx.Node]:
    """Nodes that compute the number of context frames as a plain number."""
    return [
        node
        for node in program.calls()
        if isinstance(node.meta.get("val"), torch.SymInt) and size_of(node.meta["val"]) == found.size and node.users
    ]


def _missed(found: NoGather) -> Remark:
    return Remark(
        kind=RemarkKind.MISSED,
        pass_name=AdaptiveContext.name,
        rule="gather",
        message=found.reason,
        hint=found.hint,
        **at(found.node),
    )
