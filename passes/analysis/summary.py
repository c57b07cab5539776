"""The facts about a program as remarks: the loop, every attention site, the role of every argument."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightint_compile.passes.analysis import roles
from lightint_compile.passes.analysis.attention_sites import AttentionSite, AttentionSites
from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind, at


def remarks(program: Program) -> tuple[Remark, ...]:
    """What was found out about ``program`` before any pass changed it. Computes every fact: it is for ``explain``."""
    return (*_loop(program), *map(_site, program.fact(AttentionSites)), *roles.remarks(program))


def _loop(program: Program) -> Iterator[Remark]:
    loop = program.fact(DenoisingLoop)
    args: dict[str, Any] = {"steps": len(loop.steps)}
    if loop.operator is not None:
        message = f"the loop {loop.operator.name} carries a latent"
        args = {"operator": loop.operator.name}
    elif loop.steps:
        first = loop.steps[0]
        numbers = [round(sum(step.scalars), 6) for step in loop.steps]
        message = (
            f"{len(loop.steps)} denoising steps, unrolled: the latent {first.carried_in.name} is carried, and updated "
            f"with {', '.join(map(str, numbers))} times what the network predicts"
        )
        args |= {"carried": [node.name for node in loop.carried], "scalars": numbers}
    else:
        message = f"no denoising loop: {loop.reason}"
    yield Remark(kind=RemarkKind.ANALYSIS, pass_name="denoising-loop", rule="loop", message=message, args=args)


def _site(site: AttentionSite) -> Remark:
    spans = ", ".join(map(str, site.key_spans)) or str(site.key_axis)
    if site.query_grid is not None:
        message = f"{site.kind}: queries {site.query_grid} attend to {spans}"
    else:
        message = f"{site.kind}: keys {spans}; no grid, because {site.reason}"
    args = {
        "query_grid": str(site.query_grid or ""),
        "key_grid": str(site.key_grid or ""),
        "spans": [str(span) for span in site.key_spans],
        "mask": str(site.mask_kind),
        "head_dim": str(site.head_dim),
    }
    return Remark(
        kind=RemarkKind.ANALYSIS,
        pass_name="attention-sites",
        rule=str(site.kind),
        message=message,
        args=args,
        **at(site.node),
    )
