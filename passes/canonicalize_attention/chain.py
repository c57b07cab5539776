"""From the softmax up to the product of query and key, and down to the product with the value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.axes import Axes, broadcast, fresh_axes
from lightint_compile.passes.canonicalize_attention.contraction import is_contraction
from lightint_compile.passes.canonicalize_attention.layout import is_layout, transfer
from lightint_compile.passes.canonicalize_attention.readers import live_readers
from lightint_compile.passes.canonicalize_attention.spellings import SCORE_STEP
from lightint_compile.passes.ir.matching import MatchError, MatchResult, matches, number_of
from lightint_compile.passes.ir.op_arguments import arguments
from lightint_compile.passes.ir.op_families import is_cast
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

#: Scores at or below this are as good as -inf next to any other: a float32 this large swallows what it is added to.
_SWALLOWING = -1e9


@dataclass(frozen=True)
class MaskPart:
    """One thing done to the scores that depends on the place.

    Attributes:
        node: the mask: float for ``bias``, boolean for ``keep`` (true where kept) and ``fill`` (true where filled).
        kind: ``bias``, ``keep`` or ``fill``.
        factor: a bias is multiplied by this before it joins the scaled scores.
        swallow: a filled score is the lowest finite number, not -inf.
        axes: the mask's axes among the axes of the scores.
    """

    node: fx.Node
    kind: str
    axes: Axes
    factor: float = 1.0
    swallow: bool = False


@dataclass(frozen=True)
class Step:
    """One step of the chain: the node, the nodes it takes with it, and what it does."""

    node: fx.Node
    kind: str
    nodes: tuple[fx.Node, ...]
    factor: float = 1.0
    mask: fx.Node | None = None
    value: float = 0.0


def chains_above(scores: fx.Node) -> Iterator[tuple[fx.Node, tuple[Step, ...]]]:
    """Every way up from the softmax's argument to a product: the product, and the steps from there down.

    There are several where both operands of an addition are products (a relative position bias made by a product).

    Raises:
        MatchError: the way is barred; after the ways that lead somewhere have been tried.
    """
    if is_contraction(scores):
        yield scores, ()
        return
    barred: list[MatchError] = []
    for before, step in _steps_at(scores):
        try:
            for product, steps in chains_above(before):
                yield product, (*steps, step)
        except MatchError as error:
            error.depth += 1
            barred.append(error)
    raise max(barred, key=lambda error: error.depth) if barred else _barred(scores)


def _steps_at(node: fx.Node) -> Iterator[tuple[fx.Node, Step]]:
    if node.op != "call_function":
        return
    if is_layout(node) or is_cast(node):
        before = node.args[0]
        if tensor_of(before) is not None:
            yield before, Step(node, "layout", (node,))  # type: ignore[misc]
        return
    for found in matches(SCORE_STEP, node):
        yield found["x"], _step(node, found)


def _step(node: fx.Node, found: MatchResult) -> Step:
    kind = found.tags["step"]
    if kind == "scale":
        factor = found["factor"]
        return Step(node, kind, found.nodes, factor if found.tags["scaling"] == "times" else 1.0 / factor)
    factor = -1.0 if kind == "penalty" else 1.0
    return Step(node, kind, found.nodes, factor, found.bindings.get("mask"), found.bindings.get("value", 0.0))


def _barred(node: fx.Node) -> MatchError:
    """Why the chain ends at a node that is not a product."""
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        return MatchError(
            "scale-not-constant",
            node,
            "the scores are scaled by a tensor",
            "multiply the query by it before the product",
        )
    if node.target in (aten.tanh.default,):
        return MatchError(
            "softcap", node, "the scores pass through tanh", "fused attention has no soft cap; leave it out"
        )
    if node.target in (aten.dropout.default,):
        return MatchError("dropout", node, "dropout is active on the scores", "call model.eval()")
    if node.target in (aten.masked_fill.Scalar, aten.where.self):
        return MatchError("fill-not-constant", node, "the scores are replaced by a tensor's values", "fill with -inf")
    reason = f"{name} stands between the product and the softmax"
    return MatchError("chain", node, reason, f"apply {name} to the query or the key, or after the attention")


@dataclass(frozen=True)
class Followed:
    """What the steps make of the product.

    Attributes:
        axes: the axes after each step; the last entry is the softmax's argument.
        factor: the constant that multiplies the product.
    """

    axes: dict[fx.Node, Axes]
    masks: tuple[MaskPart, ...]
    factor: float


def follow(product: fx.Node, axes: Axes, steps: tuple[Step, ...]) -> Followed:
    """Walk from the product, whose axes are given, down to the softmax.

    Raises:
        AxisError: a view or a mask does not fit the axes.
        MatchError: a mask that an attention operator cannot apply.
    """
    trace, masks = {product: axes}, []
    for index, step in enumerate(steps):
        later = math.prod(other.factor for other in steps[index + 1 :] if other.kind == "scale")
        if step.kind == "layout":
            axes = transfer(step.node, axes)
        elif step.mask is not None:
            masks.append(_mask_part(step, later))
            axes = broadcast(axes, masks[-1].axes)
        trace[step.node] = axes
    return Followed(trace, tuple(masks), math.prod(step.factor for step in steps if step.kind == "scale"))


def _mask_part(step: Step, later: float) -> MaskPart:
    assert step.mask is not None
    value = tensor_of(step.mask)
    assert value is not None
    axes = fresh_axes(tuple(value.shape))
    if step.kind in ("bias", "penalty"):
        return MaskPart(step.mask, "bias", axes, step.factor * later)
    if value.dtype != torch.bool:
        raise MatchError("mask-not-boolean", step.node, f"the mask is {value.dtype}", "compare it with zero first")
    if later < 0:
        raise MatchError("negative-scale", step.node, "the scores are multiplied by a negative number after masking")
    return MaskPart(step.mask, "keep" if step.kind == "keep" else "fill", axes, swallow=_swallows(step))


def _swallows(step: Step) -> bool:
    """Whether the fill is a lowest finite number (true) or -inf (false).

    Raises:
        MatchError: it is neither, so that masked keys still take part.
    """
    if step.value == float("-inf"):
        return False
    value = tensor_of(step.node)
    assert value is not None
    if step.value <= max(_SWALLOWING, torch.finfo(value.dtype).min / 2):
        return True
    reason = f"masked scores become {step.value:g}, which still takes part in the softmax"
    raise MatchError("fill-takes-part", step.node, reason, "fill with float('-inf')")


@dataclass(frozen=True)
class Probabilities:
    """The way from the softmax down to the product with the value."""

    nodes: tuple[fx.Node, ...]
    product: fx.Node
    zeroes_nan: bool


def probabilities_below(softmax: fx.Node) -> Probabilities:
    """Follow the softmax's only reader down to a product.

    Raises:
        MatchError: the probabilities are read elsewhere as well, or something other than a product reads them.
    """
    nodes, zeroes = [softmax], False
    while True:
        readers = live_readers(nodes[-1])
        if len(readers) != 1:
            raise _escapes(nodes[-1], readers)
        reader = readers[0]
        if is_contraction(reader):
            return Probabilities(tuple(nodes), reader, zeroes)
        if reader.target is aten.nan_to_num.default and number_of(arguments(reader)["nan"] or 0.0) == 0.0:
            zeroes = True
        elif not (is_layout(reader) or is_cast(reader)):
            raise _blocked(reader)
        nodes.append(reader)


def _escapes(node: fx.Node, readers: list[fx.Node]) -> MatchError:
    if not readers:
        return MatchError("unused", node, "nobody reads the probabilities")
    where = "the output" if any(reader.op == "output" for reader in readers) else readers[-1].name
    reason = f"the probabilities are also read by {where}: a fused attention never makes them"
    return MatchError("probabilities-escape", node, reason, "do not return or reuse the attention weights")


def _blocked(reader: fx.Node) -> MatchError:
    if reader.op == "output":
        return MatchError("no-value", reader, "the probabilities are returned", "do not return the attention weights")
    if reader.target is aten.dropout.default:
        return MatchError("dropout", reader, "dropout is active on the probabilities", "call model.eval()")
    name = str(getattr(reader.target, "__name__", reader.target)).split(".")[0]
    reason = f"{name} stands between the softmax and the product with the value"
    return MatchError("probabilities-changed", reader, reason, f"apply {name} to the value or to the result")
