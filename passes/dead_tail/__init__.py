"""Removes and reports work whose result is not read: a prefill needs keys and values, not its last tokens.

Of what is read in part, rows that nothing reads are not computed: padding, and positions whose prediction is dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.fx as fx

from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.dead_tail.rows import cut_rows
from lightint_compile.passes.ir.effects import live_nodes
from lightint_compile.passes.ir.flops import flops_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, module_path_of, source_of


@dataclass(frozen=True, kw_only=True)
class DeadTail(Pass):
    """Removes pure computations that no output depends on, and rows of those on which it depends in part.

    Side effects, and what they need, stay.
    """

    name: ClassVar[str] = "dead-tail"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, program: Program) -> PassResult:
        """See :meth:`~passes.base.Pass.run`."""
        dead = _dead(program.graph)
        remarks = tuple(_remarks(dead))
        for node in reversed(dead):
            program.graph.erase_node(node)
        cut = cut_rows(program, self.name, _block)
        return PassResult(bool(dead or cut), (*remarks, *cut))


def _dead(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that nothing observable depends on, in graph order."""
    live = set(live_nodes(graph))
    return [node for node in graph.nodes if node not in live]


def _remarks(dead: Iterable[fx.Node]) -> Iterator[Remark]:
    """One remark for each repeated module that loses products."""
    groups: dict[str, list[fx.Node]] = defaultdict(list)
    for node in dead:
        if flops_of(node):
            groups[_block(module_path_of(node))].append(node)
    for module_path, nodes in groups.items():
        counts = Counter(str(getattr(node.target, "overloadpacket", node.target)).split(".")[-1] for node in nodes)
        names = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        yield Remark(
            kind=RemarkKind.APPLIED,
            pass_name=DeadTail.name,
            rule="unread",
            message=f"removed, nothing reads the result: {names}",
            module_path=module_path,
            source=source_of(nodes[0]),
            args=dict(counts),
            flops_before=sum(map(flops_of, nodes)),
            flops_after=0,
            numerics=Numerics.EXACT,
        )


def _block(module_path: str) -> str:
    """``blocks.3`` for ``blocks.3.attn1.to_q``: the outermost numbered module, or the whole path."""
    parts = module_path.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else module_path
