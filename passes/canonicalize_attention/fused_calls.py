"""Attention that is one call already: PyTorch's operators and the custom operators of flash attention packages."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.attention import Dialect, dialect_of
from lightint_compile.passes.canonicalize_attention.axes import (
    Axes,
    AxisError,
    atoms,
    broadcast,
    equal,
    fresh,
    fresh_axes,
    size_of,
    unify,
)
from lightint_compile.passes.canonicalize_attention.chain import MaskPart
from lightint_compile.passes.canonicalize_attention.paths import path_to
from lightint_compile.passes.canonicalize_attention.site import Fused, Site, outputs_of, settle
from lightint_compile.passes.ir.matching import MatchError
from lightint_compile.passes.ir.op_arguments import arguments
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import quotient

aten = torch.ops.aten


def fused_site(node: fx.Node) -> Site | None:
    """The site that one fused call makes; ``None`` for any other node.

    Raises:
        MatchError: the call does what plain attention does not (dropout, a window), or another of its outputs is read.
    """
    dialect = dialect_of(node)
    if dialect is None:
        return None
    given = arguments(node)
    _check_neutral(node, dialect, given)
    try:
        return _interpret(node, dialect, given)
    except AxisError as error:
        raise MatchError("axes", node, f"the axes of the fused call do not fit: {error}") from error


def _check_neutral(node: fx.Node, dialect: Dialect, given: dict[str, Any]) -> None:
    for name, allowed in dialect.neutral:
        value = given.get(name)
        if value is not None and value not in (0, *allowed):
            raise MatchError(name.replace("_", "-"), node, f"the fused call has {name}={value}", f"leave {name} out")


def _interpret(node: fx.Node, dialect: Dialect, given: dict[str, Any]) -> Site:
    paths = [path_to(given[name], scaled=name != dialect.value) for name in (dialect.query, dialect.key, dialect.value)]
    query, key, value = (_reordered(path.interpret(), dialect.order) for path in paths)
    batch, grouped = _meet(query, key, value, bool(given.get("enable_gqa")) or dialect.order is not None)
    out = (*batch, query[-2], value[-1])
    if dialect.causal_at_end and given.get(dialect.causal) and not equal(size_of(query[-2]), size_of(key[-2])):
        raise MatchError(
            "causal-at-end", node, "the causal triangle ends at the last key", "pass a mask to F.sdpa instead"
        )
    scale = given.get(dialect.scale)
    factor = paths[0].factor() * paths[1].factor()
    if factor != 1.0 and scale is None:
        scale = _default_scale(query[-1])
    total = scale if factor == 1.0 else _times(scale, factor, node)
    result = _result(node)
    site = Site(
        rule=_rule(node),
        query=paths[0],
        key=paths[1],
        value=paths[2],
        query_axis=query[-2],
        key_axis=key[-2],
        depth_axis=query[-1],
        value_axis=value[-1],
        batch=(),
        scale=total,
        masks=_masks(given.get(dialect.mask), (*batch, query[-2], key[-2])),
        outputs=outputs_of(result, _reordered(out, dialect.order)),
        causal=bool(given.get(dialect.causal)),
        interior=(node,),
        fused=Fused(node, dialect.order, scale, grouped),
    )
    settle(site)
    return site


def _rule(node: fx.Node) -> str:
    name: str = node.target._schema.name  # type: ignore[union-attr]
    return name.split("::")[1].strip("_").replace("_", "-")


def _reordered(axes: Axes, order: tuple[int, ...] | None) -> Axes:
    return axes if order is None else tuple(axes[dim] for dim in order)


def _meet(query: Axes, key: Axes, value: Axes, may_group: bool) -> tuple[Axes, bool]:
    """Learn which axes are shared; the batch and head axes, and whether key and value have fewer heads."""
    unify(query[-1], key[-1], asserted=True)
    unify(key[-2], value[-2], asserted=True)
    grouped = may_group and len(query) > 2 and not equal(size_of(query[-3]), size_of(key[-3]))
    if not grouped:
        return broadcast(broadcast(query[:-2], key[:-2]), value[:-2]), False
    copies = quotient(size_of(query[-3]), size_of(key[-3]))
    if copies is None:
        raise AxisError(f"{size_of(query[-3])} query heads are no known multiple of {size_of(key[-3])} key heads")
    unify(query[-3], (*atoms(key[-3]), *fresh(copies)))
    if atoms(key[-3]):
        unify(key[-3], value[-3])
    return (*broadcast(broadcast(query[:-3], key[:-3]), value[:-3]), query[-3]), True


def _default_scale(depth: Any) -> float | None:
    size = size_of(depth)
    return 1.0 / math.sqrt(size) if isinstance(size, int) else None


def _times(scale: float | None, factor: float, node: fx.Node) -> float:
    if scale is None:
        raise MatchError("scale-not-constant", node, "the default scale depends on a symbolic head_dim", "give scale=")
    return scale * factor


def _masks(mask: fx.Node | None, scores: Axes) -> tuple[MaskPart, ...]:
    if mask is None:
        return ()
    value = tensor_of(mask)
    assert value is not None
    axes = fresh_axes(tuple(value.shape))
    broadcast(scores, axes)
    return (MaskPart(mask, "keep" if value.dtype == torch.bool else "bias", axes),)


def _result(node: fx.Node) -> fx.Node:
    """The node that holds the attention's result: the call itself, or item 0 of the tuple it returns."""
    if isinstance(node.meta["val"], torch.Tensor):
        return node
    readers = list(node.users)
    first = [reader for reader in readers if reader.target is operator.getitem and reader.args[1] == 0]
    if len(first) != 1 or any(reader.users for reader in readers if reader not in first):
        raise MatchError(
            "probabilities-escape", node, "the log-sum-exp of the fused call is read", "use its result only"
        )
    return first[0]
