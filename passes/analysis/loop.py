"""The denoising loop: a latent carried from step to step and updated by a scheduler, found in the unrolled graph.

A scheduler step is elementwise: ``x + v * dsigma``, a blend of ``x`` with a prediction of the clean latent, a
correction by an earlier prediction. Multistep solvers weigh several predictions at once, stacked and summed
(:mod:`~passes.analysis.weighted_sums`); known frames may be put back (:mod:`~passes.analysis.pinned_frames`). So the
latents of all steps hang together through such operations on values of one shape; what enters them from elsewhere are
the network's predictions. The residual stream of a transformer has the same look; but its "steps" read different
weights, while every denoising step reads the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any, Self

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.analysis.pinned_frames import behind_pinned, pinned_frames
from lightint_compile.passes.analysis.weighted_sums import weighted_sum
from lightint_compile.passes.ir.fake_values import Size, hint_of, size_of
from lightint_compile.passes.ir.node_data import anonymous, described
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of

aten = torch.ops.aten

#: What schedulers compute with.
_ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.neg.default,
    aten.reciprocal.default,
    aten.lerp.Scalar,
    aten.lerp.Tensor,
    aten.where.self,
    aten.addcmul.default,
    aten.clamp.default,
    aten._to_copy.default,
    aten.clone.default,
}

_LOOPS = ("while_loop", "scan")

#: Chains examined in full; one that ends at an output comes first.
_CHAINS_TRIED = 8

#: The part of the weights that any two steps must have in common.
_SHARED_WEIGHTS = 0.5


@dataclass(frozen=True)
class LoopStep:
    """One step of the loop.

    Attributes:
        carried_in: the latent that the step starts from.
        carried_out: the latent that it hands on; after the last step the loop's result.
        predictions: the network's outputs for ``carried_in``: velocity, noise or clean latent, one a guidance branch.
        update: the scheduler's operations.
        scalars: the Python numbers in ``update``, in order: for an Euler step the difference of two sigmas.
        inputs: values from outside the loop that this step alone reads: its timestep, or what was made of it.
    """

    carried_in: fx.Node
    carried_out: fx.Node
    predictions: tuple[fx.Node, ...]
    update: tuple[fx.Node, ...]
    scalars: tuple[float, ...]
    inputs: tuple[fx.Node, ...]


@dataclass(frozen=True)
class DenoisingLoop:
    """The steps of the denoising loop, or why there are none.

    Attributes:
        steps: the unrolled steps in order; empty for a loop that is one operator, and where there is no loop.
        invariants: values from outside, weights apart, that every step reads.
        operator: the ``while_loop`` or ``scan`` node of a loop that was not unrolled.
        reason: why no loop was found; empty when one was.
        step_of: the step of every node that depends on the carried latent.
    """

    steps: tuple[LoopStep, ...] = ()
    invariants: tuple[fx.Node, ...] = ()
    operator: fx.Node | None = None
    reason: str = ""
    step_of: Mapping[fx.Node, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.steps) or self.operator is not None

    @property
    def carried(self) -> tuple[fx.Node, ...]:
        """The latent before every step, and the result of the last."""
        return (*(step.carried_in for step in self.steps), *(step.carried_out for step in self.steps[-1:]))

    @classmethod
    def analyse(cls, program: Program) -> Self:
        """Find the loop of a program."""
        for node in program.graph.nodes:
            if (
                node.op == "call_function"
                and getattr(node.target, "__name__", "") in _LOOPS
                and _carries(node, program)
            ):
                return cls(operator=node)
        reason = "no value is updated elementwise, again and again, by a network that reads it"
        given = [node for node in program.placeholders() if program.input_of(node).kind is InputKind.TENSOR]
        latents = {_shape(node) for node in (*given, *program.graph.output_node().all_input_nodes)}
        for chain in _candidates(program, latents):
            chain.settle()
            if len(chain.points) < 2:
                continue
            if chain.shares_weights():
                return cls(tuple(chain.steps()), tuple(chain.invariants()), None, "", chain.step_of)
            reason = f"what leads to {chain.end.name} is updated by different weights: a residual stream, not a loop"
        return cls(reason=reason)


def _carries(node: fx.Node, program: Program) -> bool:
    """Whether a loop operator hands on a tensor that looks like an output of the program."""
    outputs = {described(tensor_of(o), anonymous) for o in program.graph.output_node().all_input_nodes}
    carried = pytree.tree_leaves(node.args[1:])
    return any(isinstance(c, fx.Node) and described(tensor_of(c), anonymous) in outputs for c in carried)


def _candidates(program: Program, latents: Set[Any]) -> list[_Chain]:
    """Chains that may be a loop: those that end at an output, then those with most values that could be carried.

    What has none of the shapes of ``latents`` is a recurrence inside the network: its state is neither given nor
    returned. There is one for every block.
    """
    order = list(program.graph.nodes)
    position = {node: index for index, node in enumerate(order)}
    seen: set[fx.Node] = set()
    chains = []
    outputs = program.graph.output_node().all_input_nodes
    for node in [*outputs, *reversed(order)]:
        if node not in seen and node.target in _ELEMENTWISE and _may_be_latent(node) and _shape(node) in latents:
            chain = _Chain(program, node, position)
            seen |= chain.members
            chains.append(chain)
    likely = [chain for chain in chains if len(chain.points) > 1]
    return sorted(likely, key=lambda chain: (chain.end not in outputs, -len(chain.points)))[:_CHAINS_TRIED]


def _may_be_latent(node: fx.Node) -> bool:
    """Whether a value has axes enough for a latent: schedulers compute their coefficients elementwise too."""
    tensor = tensor_of(node)
    return tensor is not None and tensor.dim() > 1


def _together(end: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
    """The scheduler's operations that lead to ``end``, and the values of its shape that enter them."""
    members, entering, pending = {end}, set[fx.Node](), [end]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source in members or not _is_of_one_shape(source, end):
                continue
            if source.target in _ELEMENTWISE:
                members.add(source)
                pending.append(source)
            elif found := _arithmetic(source, end):
                members |= found
                pending += found
            elif not _is_made_like(source):
                entering.add(source)
    return members, entering


def _arithmetic(node: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Operations of a scheduler that end in ``node`` and are not elementwise; empty where it is none of those known."""
    is_latent = partial(_is_of_one_shape, end=end)
    return weighted_sum(node, is_latent) or pinned_frames(node, is_latent) or behind_pinned(node, is_latent)


def _is_of_one_shape(source: fx.Node, end: fx.Node) -> bool:
    """Whether an operand of elementwise operations has the shape of their result, in whatever terms it is stated.

    Broadcasting leaves an axis equal or one, so that a size that was seen to be equal, and not one, always is.
    """
    given, made = tensor_of(source), tensor_of(end)
    if given is None or made is None or given.dim() != made.dim():
        return False
    pairs = zip(given.shape, made.shape, strict=True)
    return all(str(a) == str(b) or hint_of(a) == hint_of(b) != 1 for a, b in pairs)


def _is_made_like(node: fx.Node) -> bool:
    """Whether a node reads its input for the shape only: noise and constants are not the network's answer."""
    return str(getattr(node.target, "_opname", "")).endswith("_like")


def _shape(node: fx.Node) -> Any:
    tensor = tensor_of(node)
    return None if tensor is None else tuple([_written(size_of(size)) for size in tensor.shape])


@lru_cache(maxsize=4096)
def _written(size: Size) -> str:
    return str(size)


class _Chain:
    """The values that may be carried to ``end``: those that both a scheduler and a network read.

    Attributes:
        points: the latents in front of the steps, in order.
        members: the scheduler's operations that lead to ``end``.
        step_of: for every node that depends on one of ``points``, the last one it depends on.
    """

    def __init__(self, program: Program, end: fx.Node, position: Mapping[fx.Node, int]) -> None:
        self._program, self.end = program, end
        self._order = position.keys()
        self.members, self._entering = _together(end)
        candidates = sorted(self.members | self._entering, key=position.__getitem__)
        self.points = [node for node in candidates if node is not end and self._is_read_twice(node)]
        self.step_of: dict[fx.Node, int] = {}

    def settle(self) -> None:
        """Keep the points that a network answers: something made from the point, and from no later one, comes back."""
        while True:
            self.step_of = self._last_point_before()
            answered = {self.step_of[node] for node in self._entering if node in self.step_of}
            if len(answered) == len(self.points):
                return
            self.points = [point for number, point in enumerate(self.points) if number in answered]

    def _is_read_twice(self, node: fx.Node) -> bool:
        inside = [user in self.members for user in node.users]
        return any(inside) and not all(inside)

    def _last_point_before(self) -> dict[fx.Node, int]:
        number = {point: index for index, point in enumerate(self.points)}
        last: dict[fx.Node, int] = {}
        for node in self._order:
            reached = [max(last.get(s, -1), number.get(s, -1)) for s in node.all_input_nodes]
            if node.op != "output" and max(reached, default=-1) >= 0:
                last[node] = max(reached)
        return last

    def shares_weights(self) -> bool:
        """Whether the steps read the same weights; values without any weights are taken to be a loop."""
        kinds = {entry.name: entry.kind for entry in self._program.inputs}
        read: list[set[fx.Node]] = [set() for _ in self.points]
        for node, step in self.step_of.items():
            read[step].update(s for s in node.all_input_nodes if kinds.get(s.name) is InputKind.PARAMETER)
        common, union = set.intersection(*read), set.union(*read)
        return len(common) >= _SHARED_WEIGHTS * len(union)

    def steps(self) -> Iterator[LoopStep]:
        """The steps in order."""
        single = self._outer_inputs
        for number, point in enumerate(self.points):
            update = [n for n in self._order if n in self.members and self.step_of.get(n) == number]
            yield LoopStep(
                carried_in=point,
                carried_out=self.points[number + 1] if number + 1 < len(self.points) else self.end,
                predictions=tuple(n for n in self._order if n in self._entering and self.step_of.get(n) == number),
                update=tuple(update),
                scalars=tuple(number for node in update for number in _numbers(node)),
                inputs=tuple(source for source, readers in single.items() if readers == {number}),
            )

    def invariants(self) -> Iterator[fx.Node]:
        """Outer values that every step reads."""
        every = set(range(len(self.points)))
        return (source for source, readers in self._outer_inputs.items() if readers == every)

    @cached_property
    def _outer_inputs(self) -> dict[fx.Node, set[int]]:
        """The steps that read each value from outside the loop, weights apart."""
        weights = {e.name for e in self._program.inputs if e.kind in (InputKind.PARAMETER, InputKind.BUFFER)}
        carried = set(self.points)
        readers: dict[fx.Node, set[int]] = defaultdict(set)
        for node, step in self.step_of.items():
            for source in node.all_input_nodes:
                outer = source not in self.step_of and source not in carried and source.name not in weights
                if outer and tensor_of(source) is not None:
                    readers[source].add(step)
        return readers


def _numbers(node: fx.Node) -> Sequence[float]:
    leaves: Iterable[Any] = pytree.tree_leaves((node.args, node.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, float)]
