"""An attention site: everything that says what is attended to what, found in the graph and proved by axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.axes import (
    Atom,
    Axes,
    Axis,
    AxisError,
    all_atoms,
    atoms,
    broadcast,
    fresh_axes,
)
from lightint_compile.passes.canonicalize_attention.chain import (
    MaskPart,
    Probabilities,
    Step,
    chains_above,
    follow,
    probabilities_below,
)
from lightint_compile.passes.canonicalize_attention.contraction import Contraction, contraction_of
from lightint_compile.passes.canonicalize_attention.layout import is_layout, transfer
from lightint_compile.passes.canonicalize_attention.paths import Path, path_to
from lightint_compile.passes.canonicalize_attention.readers import live_readers
from lightint_compile.passes.canonicalize_attention.spellings import SOFTMAX
from lightint_compile.passes.ir.matching import MatchError, MatchResult, match
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten


@dataclass
class Site:
    """One attention, in any form.

    Attributes:
        rule: the spelling, for the remark.
        query, key, value: from the tensor worth keeping down to what the product reads.
        query_axis, key_axis, depth_axis, value_axis: what is attended from and to, what is summed, what is returned.
        batch: the remaining atoms of the result, in its order.
        scale: the constant that multiplies the product of the sources.
        masks: what is done to the scores.
        causal: a query sees the keys up to its own position (top left aligned).
        outputs: the attention's result and its layout operations down to the first other reader, with their axes.
        interior: the nodes that disappear; no other node may read them.
        axes: the axes of every node of the region.
        nan_rows: a query with every key masked gives NaN in the original and zero in the operator.
        key_is_left: the product is key times query.
        spelled, fused: how the site is written; one of them is set.
    """

    rule: str
    query: Path
    key: Path
    value: Path
    query_axis: Axis
    key_axis: Axis
    depth_axis: Axis
    value_axis: Axis
    batch: Axis
    scale: float | None
    masks: tuple[MaskPart, ...]
    outputs: list[tuple[fx.Node, Axes]]
    causal: bool = False
    interior: tuple[fx.Node, ...] = ()
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    nan_rows: bool = False
    key_is_left: bool = False
    spelled: Spelled | None = None
    fused: Fused | None = None

    @property
    def result(self) -> fx.Node:
        """The node that computes the attention's result."""
        return self.outputs[0][0]


@dataclass(frozen=True)
class Spelled:
    """How a site that is not one fused call is written."""

    scores: Contraction
    steps: tuple[Step, ...]
    softmax: MatchResult
    probabilities: Probabilities
    product: Contraction


@dataclass(frozen=True)
class Fused:
    """A site that is one fused call already.

    Attributes:
        order: the permutation that puts an operand as batch, heads, tokens, width; ``None`` when it is so already.
        scale: the call's own, ``None`` for one over the root of head_dim.
    """

    node: fx.Node
    order: tuple[int, ...] | None
    scale: float | None
    grouped: bool


def spelled_site(node: fx.Node) -> Site | None:
    """The site whose softmax ends at ``node``; ``None`` when no softmax ends there.

    Raises:
        MatchError: a softmax that is not, or not provably, part of an attention.
    """
    softmax = match(SOFTMAX, node)
    if not softmax:
        return None
    error: MatchError | None = None
    below = None
    try:
        for product, steps in chains_above(softmax["x"]):
            below = below or probabilities_below(node)
            try:
                return _assemble(softmax, product, steps, below)
            except MatchError as failed:
                error = error or failed
    except MatchError as barred:
        error = error or barred
    assert error is not None
    raise error


def _assemble(softmax: MatchResult, product: fx.Node, steps: tuple[Step, ...], below: Probabilities) -> Site:
    spelled = Spelled(contraction_of(product), steps, softmax, below, contraction_of(below.product))
    _check_readers(spelled)
    try:
        return _interpret(spelled)
    except AxisError as error:
        reason = f"the axes do not fit an attention: {error}"
        raise MatchError("axes", below.product, reason, "write F.scaled_dot_product_attention") from error


def interior_of(spelled: Spelled) -> tuple[fx.Node, ...]:
    """Every node from the scores to the probabilities."""
    between = [node for step in spelled.steps for node in step.nodes]
    inner = [spelled.scores.node, *between, *spelled.softmax.nodes, *spelled.probabilities.nodes]
    return tuple(dict.fromkeys(inner))


def _check_readers(spelled: Spelled) -> None:
    """Nothing but the attention may read what the fused operator never makes."""
    interior = interior_of(spelled)
    allowed = {*interior, spelled.product.node}
    for node in interior:
        for reader in live_readers(node):
            if reader not in allowed:
                raise _read_elsewhere(node, reader)


def _read_elsewhere(node: fx.Node, reader: fx.Node) -> MatchError:
    reason = f"{node.name} is also read by {reader.name}: a fused attention never makes it"
    return MatchError("scores-escape", node, reason, "do not return or reuse the attention scores")


def _interpret(spelled: Spelled) -> Site:
    scores, product = spelled.scores, spelled.product
    left, right = path_to(scores.left, scaled=True), path_to(scores.right, scaled=True)
    score_axes, depth = scores.axes(left.interpret(), right.interpret())
    depth_axis = _only(depth, scores.node, "the product of query and key")
    steps = follow(scores.node, score_axes, spelled.steps)
    softmax_axes = list(steps.axes.values())[-1]
    key_axis = softmax_axes[int(spelled.softmax["dim"])]
    is_swapped = _key_is_left(scores, score_axes, key_axis)
    query, key = (right, left) if is_swapped else (left, right)
    axes = steps.axes | _follow_down(spelled.probabilities.nodes, softmax_axes)
    value, weights_left = _value_operand(spelled)
    weights = axes[spelled.probabilities.nodes[-1]]
    value_axes = value.interpret()
    out_axes, summed = product.axes(*((weights, value_axes) if weights_left else (value_axes, weights)))
    _check_summed(_only(summed, product.node, "the product with the value"), key_axis, product.node)
    query_axis = _own_axis(scores, score_axes, left=not is_swapped)
    value_axis = _own_axis(product, out_axes, left=not weights_left)
    masks = steps.masks if scores.added is None else (_added(scores, score_axes, steps.factor), *steps.masks)
    site = Site(
        rule=_rule(spelled),
        query=query,
        key=key,
        value=value,
        query_axis=query_axis,
        key_axis=key_axis,
        depth_axis=depth_axis,
        value_axis=value_axis,
        batch=(),
        scale=scores.factor * steps.factor * query.factor() * key.factor(),
        masks=masks,
        outputs=outputs_of(product.node, out_axes),
        interior=interior_of(spelled),
        axes=axes,
        nan_rows=_may_give_nan(spelled, masks),
        key_is_left=is_swapped,
        spelled=spelled,
    )
    settle(site)
    return site


def settle(site: Site) -> None:
    """Resolve the axes, find the batch, and check that every tensor has only the axes it may have.

    Raises:
        MatchError: an axis plays two parts, or a tensor has an axis of its own.
    """
    parts = {
        "query": atoms(site.query_axis),
        "key": atoms(site.key_axis),
        "head_dim": atoms(site.depth_axis),
        "value": atoms(site.value_axis),
    }
    site.query_axis, site.key_axis, site.depth_axis, site.value_axis = parts.values()
    named = [atom for axis in parts.values() for atom in axis]
    if len(set(named)) != len(named):
        raise MatchError("axes", site.result, "one axis is both attended from and attended to, or summed and kept")
    out = [atom for axis in site.outputs[0][1] for atom in atoms(axis)]
    site.batch = tuple(atom for atom in out if atom not in named)
    batch = set(site.batch)
    for path, own in (
        (site.query, ("query", "head_dim")),
        (site.key, ("key", "head_dim")),
        (site.value, ("key", "value")),
    ):
        _check_axes(path.operand, path.axes[-1], batch.union(*(parts[name] for name in own)))
    for mask in site.masks:
        _check_axes(mask.node, mask.axes, batch.union(parts["query"], parts["key"]))


def _check_axes(node: fx.Node, axes: Axes, allowed: set[Atom]) -> None:
    if not all_atoms(axes) <= allowed:
        raise MatchError("axes", node, f"{node.name} has an axis that is neither batch, query, key nor head_dim")


def _only(axes: Sequence[Axis], node: fx.Node, what: str) -> Axis:
    if len(axes) != 1:
        raise MatchError(
            "einsum-form", node, f"{what} sums {len(axes)} axes, attention sums one", "merge or move the axis"
        )
    return axes[0]


def _key_is_left(scores: Contraction, score_axes: Axes, key_axis: Axis) -> bool:
    """Whether the left operand is the key: the one that alone has the axis that softmax normalises."""
    wanted = atoms(key_axis)
    for letter, axis in zip(scores.out_letters, score_axes, strict=True):
        if wanted and atoms(axis) == wanted:
            in_left, in_right = letter in scores.left_letters, letter in scores.right_letters
            if in_left != in_right:
                return in_left
    raise MatchError(
        "softmax-axis",
        scores.node,
        "softmax normalises an axis that is not the key's alone",
        "normalise the last axis of query @ key.transpose(-2, -1)",
    )


def _own_axis(product: Contraction, out: Axes, *, left: bool) -> Axis:
    """The innermost axis of the result that only one operand has; empty when there is none (one query, no axis)."""
    own, other = product.left_letters, product.right_letters
    if not left:
        own, other = other, own
    found = [
        axis for letter, axis in zip(product.out_letters, out, strict=True) if letter in own and letter not in other
    ]
    return found[-1] if found else ()


def _check_summed(summed: Axis, key_axis: Axis, node: fx.Node) -> None:
    if atoms(summed) != atoms(key_axis):
        reason = "the product with the value sums an axis other than the one softmax normalises"
        raise MatchError("softmax-axis", node, reason, "softmax over the key axis: softmax(scores, dim=-1) @ value")


def _value_operand(spelled: Spelled) -> tuple[Path, bool]:
    """The path to the value, and whether the probabilities are the product's left operand."""
    product, weights = spelled.product, spelled.probabilities.nodes[-1]
    if product.left is weights and product.right is weights:
        raise MatchError("axes", product.node, "the probabilities are multiplied with themselves")
    if product.added is not None or product.factor != 1.0:
        raise MatchError("chain", product.node, "baddbmm adds to or scales the attention's result", "use bmm, then add")
    is_left = product.left is weights
    return path_to(product.right if is_left else product.left, scaled=False), is_left


def _follow_down(nodes: Sequence[fx.Node], axes: Axes) -> dict[fx.Node, Axes]:
    trace = {nodes[0]: axes}
    for node in nodes[1:]:
        axes = transfer(node, axes)
        trace[node] = axes
    return trace


def outputs_of(result: fx.Node, axes: Axes) -> list[tuple[fx.Node, Axes]]:
    """The result and the layout operations that are its only reader, one after another."""
    found = [(result, axes)]
    while len(readers := live_readers(found[-1][0])) == 1:
        reader = readers[0]
        if not is_layout(reader):
            break
        try:
            found.append((reader, transfer(reader, found[-1][1])))
        except AxisError:
            break
    return found


def _added(scores: Contraction, axes: Axes, factor: float) -> MaskPart:
    """What baddbmm adds, as a bias."""
    assert scores.added is not None
    value = tensor_of(scores.added)
    assert value is not None

    own = fresh_axes(tuple(value.shape))
    broadcast(axes, own)
    return MaskPart(scores.added, "bias", own, scores.added_factor * factor)


def _may_give_nan(spelled: Spelled, masks: tuple[MaskPart, ...]) -> bool:
    zeroed = spelled.probabilities.zeroes_nan or spelled.softmax.tags["softmax"] == "safe_softmax"
    return bool(masks) and not zeroed


def _rule(spelled: Spelled) -> str:
    names = [spelled.scores.node, spelled.product.node]
    kinds = [str(getattr(node.target, "__name__", node.target)).split(".")[0] for node in names]
    return "-".join((kinds[0], spelled.softmax.tags["softmax"].replace("_", "-"), kinds[1]))
