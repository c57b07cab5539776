"""Running a pattern at one node."""

from __future__ import annotations

from collections.abc import Iterator

import torch.fx as fx

from lightint_compile.passes.ir.matching.pattern import Pattern, Trial
from lightint_compile.passes.ir.matching.result import Failure, MatchResult


def match(pattern: Pattern, node: fx.Node) -> MatchResult:
    """The first way in which ``pattern`` fits at ``node``, or the attempt that got furthest, with its reason."""
    trial = Trial()
    for solved in pattern.solve(node, trial):
        return MatchResult(solved.bindings, solved.tags, solved.nodes)
    if trial.best:
        return trial.best[0]
    return MatchResult(failure=Failure("pattern", node, lambda: f"{node} does not fit"))


def matches(pattern: Pattern, node: fx.Node) -> Iterator[MatchResult]:
    """Every way in which ``pattern`` fits at ``node``, in the order of its alternatives."""
    for solved in pattern.solve(node, Trial()):
        yield MatchResult(solved.bindings, solved.tags, solved.nodes)
