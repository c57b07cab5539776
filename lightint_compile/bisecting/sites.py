"""Which site of a pass makes results differ: the values of a graph before and after the pass, compared one by one.

A node that the pass kept has its name in both graphs. The first of them whose value differs comes from a site; with
its value of before put back, the run goes on to the next. What is found is checked by its effect: with all these values
put back, the results are good again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.bisecting.judging import distance
from lightint_compile.passes.ir.decision_points import is_outlined
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.provenance import made_by
from lightint_compile.passes.ir.remarks import module_path_of, source_of

MOST = 64
"""Sites that are told at most."""


@dataclass(frozen=True)
class Site:
    """A place where a value is another than before the pass.

    Attributes:
        node: the first node behind the site that the pass kept.
        made: what the pass made for it, as rules; empty where only operands changed.
        module_path, source: where the user wrote it.
        error: relative error of its value, with those of the sites before it put back.
    """

    node: str
    made: tuple[str, ...]
    module_path: str
    source: str
    error: float

    def __str__(self) -> str:
        place = " at ".join(filter(None, (self.module_path, self.source))) or self.node
        rules = f" [{', '.join(self.made)}]" if self.made else ""
        return f"{place}{rules}: {self.node} differs by {self.error:.3g}"


def can_be_compared(program: Program) -> bool:
    """Whether a program is one graph of operators, so that every value of it can be looked at."""
    return not is_outlined(program.graph_module, program.graph) and not any(
        node.op == "call_module" for node in program.graph.nodes
    )


def sites_of(before: Program, after: Program, args: Sequence[Any], least: float) -> list[Site]:
    """The places where a pass makes a value differ by more than ``least``, in order.

    Args:
        args: of the graph.
    """
    known = _Values(before.graph_module).of(args)
    return _Compared(after.graph_module, known, least).sites(args)


class _Values(fx.Interpreter):
    """A run that keeps every value; writes to inputs go to copies."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found: dict[str, Any] = {}

    def of(self, args: Sequence[Any]) -> dict[str, Any]:
        with torch.no_grad():
            self.run(*map(_copy, args))
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n.name] = pytree.tree_map(_copy, value)
        return value


class _Compared(fx.Interpreter):
    """A run that puts values of before in the place of those that differ."""

    def __init__(self, module: fx.GraphModule, known: Mapping[str, Any], least: float) -> None:
        super().__init__(module)
        self._known, self._least = known, least
        self._found: list[Site] = []

    def sites(self, args: Sequence[Any]) -> list[Site]:
        with torch.no_grad():
            self.run(*map(_copy, args))
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "call_function" or n.name not in self._known or made_by(n):
            return value
        error = distance(pytree.tree_leaves(self._known[n.name]), pytree.tree_leaves(value))
        if error <= self._least:
            return value
        if len(self._found) < MOST:
            self._found.append(Site(n.name, _rules(n), module_path_of(n), source_of(n), error))
        return pytree.tree_map(_copy, self._known[n.name])


def _rules(node: fx.Node) -> tuple[str, ...]:
    """What the nodes that a pass made in front of ``node`` are called; those behind kept nodes belong to these."""
    found: dict[str, None] = {}
    pending = list(node.all_input_nodes)
    seen = set(pending)
    while pending:
        source = pending.pop()
        mark = made_by(source)
        if not mark:
            continue
        found[" ".join(filter(None, (str(mark.get("pass", "")), str(mark.get("rule", "")))))] = None
        fresh = [each for each in source.all_input_nodes if each not in seen]
        seen.update(fresh)
        pending += fresh
    return tuple(found)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
