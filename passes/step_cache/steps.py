"""One denoising step in a root graph: the nodes from a latent to a prediction, cut behind the first and last block."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from lightint_compile.passes.analysis.loop_marks import MarkedStep
from lightint_compile.passes.ir.decision_points import is_region_call, point_of
from lightint_compile.passes.ir.node_queries import MEMO, with_sources
from lightint_compile.passes.ir.program import tensor_of


@dataclass(frozen=True)
class StepBody:
    """The nodes of one step.

    Attributes:
        head: from the latent to the output of the first block, in order; empty when there is no block.
        tail: the rest, in order.
        first: the first block's output, which the next block reads; ``None`` when there is no block.
        predictions: the last nodes of the step.
        last: the last block's output, of the shape and dtype of ``first``; ``None`` when the predictions depend on more
            than it, or nothing is between the two.
        closing: the part of the tail that makes the predictions from ``last``, in order.
    """

    head: tuple[fx.Node, ...]
    tail: tuple[fx.Node, ...]
    first: fx.Node | None
    predictions: tuple[fx.Node, ...]
    last: fx.Node | None = None
    closing: tuple[fx.Node, ...] = ()

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Head and tail."""
        return (*self.head, *self.tail)

    def leaks(self, tail_only: bool) -> fx.Node | None:
        """A node besides the predictions that something after the step reads; ``tail_only`` lets the head be read."""
        inside = set(self.nodes)
        for node in self.tail if tail_only else self.nodes:
            if node not in self.predictions and any(user not in inside for user in node.users):
                return node
        return None


def bodies_of(root: fx.GraphModule, steps: Sequence[MarkedStep]) -> tuple[StepBody, ...]:
    """The bodies of a loop's steps.

    A region may make the first latent's input and the context's keys together, so the first latent seems to lead to the
    context's blocks too. The first step's first block is therefore the one that gives what those of the others give.
    """
    others = [body_of(root, step) for step in steps[1:]]
    like = next((body.first for body in others if body.first is not None), None)
    return (body_of(root, steps[0], like), *others)


def body_of(root: fx.GraphModule, step: MarkedStep, like: fx.Node | None = None) -> StepBody:
    """The body of a step: what depends on its latent and leads to its predictions, and what only that reads.

    ``like`` is the output of another step's first block; this one's then has the same shape and dtype.
    """
    order = list(root.graph.nodes)
    dynamic = _below({step.carried_in}, order) & with_sources(step.predictions)
    inside = _with_private_sources(root, dynamic)
    calls = [node for node in order if node in dynamic]
    first, last = _block_output(root, calls, like), _block_output(root, calls[::-1])
    head = _with_elements(with_sources([first]) & inside) if first is not None else set()
    tail = tuple(node for node in order if node in inside and node not in head)
    closing = _closing(root, first, last, step.predictions, tail)
    return StepBody(
        tuple(node for node in order if node in head),
        tail,
        first,
        step.predictions,
        last if closing else None,
        closing,
    )


def _closing(
    root: fx.GraphModule,
    first: fx.Node | None,
    last: fx.Node | None,
    predictions: tuple[fx.Node, ...],
    tail: tuple[fx.Node, ...],
) -> tuple[fx.Node, ...]:
    """What makes the predictions from the last block's output; empty when a block is needed for it besides."""
    if first is None or last is None or last is first or last not in tail or not _alike(first, last):
        return ()
    needed, waiting = set[fx.Node](), list(predictions)
    while waiting:
        node = waiting.pop()
        if node is not last and node in tail and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    if any(_is_block(root, node) for node in needed) or needed.isdisjoint(last.users):
        return ()
    return tuple(node for node in tail if node in needed)


def _alike(left: fx.Node, right: fx.Node) -> bool:
    one, other = tensor_of(left), tensor_of(right)
    assert one is not None and other is not None
    if one.dtype != other.dtype or one.ndim != other.ndim:
        return False
    return all(statically_known_true(mine == its) for mine, its in zip(one.shape, other.shape, strict=True))


def _with_elements(nodes: Set[fx.Node]) -> set[fx.Node]:
    """``nodes`` and every element read from their results: results as a whole must not cross a border."""
    return {*nodes, *(user for node in nodes for user in node.users if _reads_a_tuple(user))}


def _below(starts: Set[fx.Node], order: Iterable[fx.Node]) -> set[fx.Node]:
    """Everything that depends on one of ``starts``."""
    found: set[fx.Node] = set()
    for node in order:
        if node.op != "output" and any(source in starts or source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _with_private_sources(root: fx.GraphModule, body: Set[fx.Node]) -> set[fx.Node]:
    """``body`` and the nodes that nothing else reads: constants, and what is made from them."""
    inside = set(body)
    for node in reversed(root.graph.nodes):
        fixed = node.op in ("placeholder", "output", "get_attr") or node.meta.get(MEMO) or point_of(root, node)
        if not fixed and node.users and all(user in inside for user in node.users):
            inside.add(node)
    return inside - {node for node in inside - body if _reads_a_tuple(node) and node.args[0] not in inside}


def _reads_a_tuple(node: fx.Node) -> bool:
    """Whether a node takes an element out of a call's results; the results as a whole must not cross a border."""
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node)


def _block_output(root: fx.GraphModule, calls: Iterable[fx.Node], like: fx.Node | None = None) -> fx.Node | None:
    """The tensor that the first of ``calls`` with attention hands to another call; ``None`` where there is none.

    With ``like`` it is the first such call that hands on a tensor of the same shape and dtype.
    """
    for block in (node for node in calls if _is_block(root, node)):
        handed = [user for user in block.users if _feeds_a_call(root, user) and tensor_of(user) is not None]
        fitting = handed if like is None else [user for user in handed if _alike(user, like)]
        if fitting or like is None:
            return max(fitting, key=_rank, default=None)
    return None


def _is_block(root: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls a region that attends."""
    if not is_region_call(root, node):
        return False
    region = root.get_submodule(str(node.target))
    assert isinstance(region, fx.GraphModule)
    return any(map(_is_attention, region.graph.nodes))


def _is_attention(node: fx.Node) -> bool:
    return "attention" in str(node.target) and isinstance(node.target, torch._ops.OpOverload)


def _feeds_a_call(root: fx.GraphModule, node: fx.Node) -> bool:
    return any(is_region_call(root, user) for user in node.users)


def _rank(node: fx.Node) -> int:
    tensor = tensor_of(node)
    assert tensor is not None
    return tensor.dim()
