"""What the steps of a denoising loop outside of the program share: it depends on neither the latent nor the timestep.

A pipeline calls a compiled transformer once a step. Between two of these calls cameras, actions and conditioning images
stay what they are. Nothing says so, and nothing has to: a kept result is found by the content of what it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.fx as fx

from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.analysis.roles import Role, Roles
from lightint_compile.passes.hoist_invariants.text_memo import WORTH, nodes_from
from lightint_compile.passes.ir.flops import bytes_of_value, flops_of, program_flops
from lightint_compile.passes.ir.input_writes import written_buffers
from lightint_compile.passes.ir.memo_cost import objection
from lightint_compile.passes.ir.node_queries import MEMO, STEPS
from lightint_compile.passes.ir.program import InputKind, Program
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind

MOST_BYTES = 8 << 30
"""Results that take more memory are computed in every call."""


def mark_steps(program: Program, pass_name: str) -> Iterator[Remark]:
    """Set ``meta["memo"] = "steps"`` on what the steps of an outer loop share, in a program that is one step.

    One step is what has a latent and a timestep, and no loop of its own. What depends on text or sizes alone has its
    mark already.
    """
    steady, constant = _sources(program)
    if not steady:
        return
    paths = {node: entry.path for entry, node in zip(program.inputs, program.placeholders(), strict=True)}
    nodes = [node for node in nodes_from(program, set(steady), set(constant)) if not node.meta.get(MEMO)]
    flops = sum(map(flops_of, nodes))
    if flops <= WORTH * program_flops(program)["total"]:
        return
    read = {producer for node in nodes for producer in node.all_input_nodes}
    given, weights = ([node for node in paths if node in kind & read] for kind in (steady, constant))
    told = f"what depends on {', '.join(paths[node] for node in given)} and on neither the latent nor the timestep is"
    why, hint = _objection(nodes, weights, given)
    if not why:
        for node in nodes:
            node.meta[MEMO] = STEPS
    yield Remark(
        kind=RemarkKind.MISSED if why else RemarkKind.APPLIED,
        pass_name=pass_name,
        rule="step-memo",
        message=f"{told} {why or 'kept between the steps of the loop that calls this'}",
        hint=hint,
        args={"inputs": [paths[node] for node in given], "operations": len(nodes)},
        flops_before=flops,
        flops_after=None if why else 0,
        numerics=Numerics.EXACT,
    )


def _objection(nodes: list[fx.Node], weights: list[fx.Node], given: list[fx.Node]) -> tuple[str, str]:
    inside = set(nodes)
    kept = sum(bytes_of_value(node.meta["val"]) for node in nodes if any(user not in inside for user in node.users))
    if kept > MOST_BYTES:
        return f"computed in every call: keeping it takes {kept / 1e9:.3g} GB", ""
    return objection(nodes, weights, given)


def _sources(program: Program) -> tuple[set[fx.Node], set[fx.Node]]:
    """Inputs that may stay what they are from step to step, none where the program is no step; and weights.

    The latent, timesteps, and caches that the program writes to change with every step. So may what has no role and the
    rank of a latent, but then checking it is all that is lost.
    """
    roles = program.fact(Roles)
    steady, constant = set[fx.Node](), set[fx.Node]()
    if not (roles.paths(Role.LATENT) and roles.paths(Role.TIMESTEP)):
        return steady, constant
    loop = program.fact(DenoisingLoop)
    if len(loop.steps) > 1 or loop.operator is not None:
        return steady, constant
    written = written_buffers(program.graph)
    for entry, node in zip(program.inputs, program.placeholders(), strict=True):
        if node in written:
            continue
        if entry.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            constant.add(node)
        elif entry.kind is InputKind.TENSOR and roles.of(entry.path) not in (Role.LATENT, Role.TIMESTEP, Role.CONTEXT):
            steady.add(node)
    return steady, constant
