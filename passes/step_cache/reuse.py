"""The result of a reused step, and what computed steps must return for it: one class for each strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.fx as fx

from lightint_compile.passes.analysis.loop_marks import MarkedStep
from lightint_compile.passes.step_cache.branch_bodies import Side
from lightint_compile.passes.step_cache.extrapolation import (
    EXTRAPOLATE,
    RESIDUAL,
    extrapolation,
    number,
    residual,
    weight_of,
)
from lightint_compile.passes.step_cache.steps import StepBody


@dataclass(frozen=True)
class Past:
    """What is known of the steps computed so far, as nodes.

    Attributes:
        latest: what the latest computed step gave: its predictions, or its last block's output.
        first: its first block's output, where drift is watched or a residual is taken.
        line: its sigma, and prediction and sigma of the computed step before it, where predictions are extrapolated;
            after the first step of a loop only its sigma.
    """

    latest: tuple[fx.Node, ...]
    first: tuple[fx.Node, ...] = ()
    line: tuple[fx.Node, ...] = ()

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All of it, in a fixed order."""
        return (*self.latest, *self.first, *self.line)

    def like(self, nodes: Sequence[fx.Node]) -> Past:
        """The same parts, made of ``nodes`` instead; a line that was a single sigma is complete from now on."""
        split = len(self.latest) + len(self.first)
        return Past(tuple(nodes[: len(self.latest)]), tuple(nodes[len(self.latest) : split]), tuple(nodes[split:]))


class Hold:
    """A reused step gives the predictions of the latest computed one.

    Args:
        watched: whether the first block's output is kept, for drift checks.

    Attributes:
        runs_first_block: whether every guarded step runs its first block before it is decided.
    """

    def __init__(self, steps: Sequence[MarkedStep], bodies: Sequence[StepBody], watched: bool) -> None:
        self.steps, self.bodies = steps, bodies
        self.runs_first_block = watched

    def prepare(self, root: fx.GraphModule) -> Past:
        """Add to ``root`` what the strategy needs; what is known after the first step."""
        body = self.bodies[0]
        return Past(self.kept(body), self.first(body))

    def kept(self, body: StepBody) -> tuple[fx.Node, ...]:
        """What later steps need of a computed one, besides its first block's output."""
        return body.predictions

    def first(self, body: StepBody) -> tuple[fx.Node, ...]:
        """The first block's output, where it is needed."""
        return (body.first,) if self.runs_first_block and body.first is not None else ()

    def predictions(self, step: int, past: Past, side: Side) -> list[fx.Node]:
        """The predictions of a reused step, from the past."""
        return [side.clone(node) for node in past.latest]

    def kept_by_reuse(self, past: Past, side: Side) -> list[fx.Node]:
        """The past after a reused step: it stays what it was."""
        return [side.clone(node) for node in past.nodes]

    def kept_by_compute(self, step: int, past: Past, side: Side) -> list[fx.Node]:
        """The past after a computed step, which becomes its latest."""
        body = self.bodies[step]
        return [side.clone(node) for node in (*self.kept(body), *self.first(body))]


class Extrapolate(Hold):
    """A reused step gives the line in sigma through the latest two computed predictions; one alone is held.

    It needs one prediction and one scalar a step, the difference of two sigmas.
    """

    def prepare(self, root: fx.GraphModule) -> Past:
        """See :meth:`Hold.prepare`."""
        past, prediction = super().prepare(root), self.bodies[0].predictions[0]
        root.add_submodule(EXTRAPOLATE, extrapolation(prediction.meta["val"]))
        with root.graph.inserting_after(prediction):
            line = (number(root.graph, self._sigma(0), prediction.meta["val"]),)
        return Past(past.latest, past.first, line)

    def predictions(self, step: int, past: Past, side: Side) -> list[fx.Node]:
        """See :meth:`Hold.predictions`."""
        if len(past.line) < 2:
            return super().predictions(step, past, side)
        (latest,) = past.latest
        latest_at, previous, previous_at = map(side.of, past.line)
        weight = weight_of(side.graph, side.number(self._sigma(step), latest), latest_at, previous_at)
        return [side.region(EXTRAPOLATE, (side.of(latest), previous, weight), latest)]

    def kept_by_reuse(self, past: Past, side: Side) -> list[fx.Node]:
        """See :meth:`Hold.kept_by_reuse`."""
        kept = super().kept_by_reuse(past, side)
        if len(past.line) == 1:  # a line through one value twice holds it
            kept += [side.clone(past.latest[0]), side.number(self._sigma(0) - 1.0, past.latest[0])]
        return kept

    def kept_by_compute(self, step: int, past: Past, side: Side) -> list[fx.Node]:
        """See :meth:`Hold.kept_by_compute`."""
        sigma = side.number(self._sigma(step), past.latest[0])
        before = [sigma, side.clone(past.latest[0]), side.clone(past.line[0])]
        return super().kept_by_compute(step, past, side) + before

    def _sigma(self, step: int) -> float:
        """The sigma of a step less that of the first: the sum of the Euler steps between."""
        return float(sum(sum(each.scalars) for each in self.steps[:step]))


class Residual(Hold):
    """A reused step adds the latest computed residual between first and last block to its own first block's output.

    What follows the last block runs as the model has it. The idea is that of first-block caches (ParaAttention).
    """

    def __init__(self, steps: Sequence[MarkedStep], bodies: Sequence[StepBody], watched: bool) -> None:
        super().__init__(steps, bodies, True)

    def prepare(self, root: fx.GraphModule) -> Past:
        """See :meth:`Hold.prepare`."""
        past = super().prepare(root)
        root.add_submodule(RESIDUAL, residual(past.latest[0].meta["val"]))
        return past

    def kept(self, body: StepBody) -> tuple[fx.Node, ...]:
        """See :meth:`Hold.kept`."""
        assert body.last is not None
        return (body.last,)

    def predictions(self, step: int, past: Past, side: Side) -> list[fx.Node]:
        """See :meth:`Hold.predictions`."""
        body = self.bodies[step]
        operands = [side.of(node) for node in (*self.first(body), *past.first, *past.latest)]
        (last,) = self.kept(body)
        side.put(last, side.region(RESIDUAL, operands, last))
        side.copy(body.closing)
        return [side.of(node) for node in body.predictions]


REUSES: Mapping[str, type[Hold]] = {"hold": Hold, "extrapolate": Extrapolate, "residual": Residual}
"""The strategies by name."""
