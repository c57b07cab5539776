"""Queries, keys and values of projective position encodings (PRoPE), found in a region and replaced by one operator.

What models write is a norm, a rotation of channel pairs, a product of groups of four channels with the camera matrix of
their token, and a concatenation of both along the batch. Inductor makes one kernel of most of it, but one that loads
each channel a dozen times. See :mod:`lightint_compile.kernels.camera`. Where the heads are kept frames, picked from
their slots, and fresh ones behind them, the operator picks them itself (:mod:`lightint_compile.kernels.camera_kept`).
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.kernels import camera_kept as _camera_kept  # noqa: F401 - registers the operator
from lightint_compile.kernels.camera import DIMS, GROUP
from lightint_compile.passes.ir.fake_values import size_of
from lightint_compile.passes.ir.matching import MatchResult, Number, Var, match, op
from lightint_compile.passes.ir.matching.pattern import Either, Pattern, Trial
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten

_VIEW = (aten.view.default, aten.reshape.default)
_CAST = aten._to_copy.default


@dataclass(frozen=True)
class _Parts(Pattern):
    """Fits a list of as many arguments."""

    patterns: tuple[Pattern, ...]

    def solve(self, value: Any, trial: Trial) -> Iterator[Trial]:
        """See :meth:`Pattern.solve`."""
        if isinstance(value, (list, tuple)) and len(value) == len(self.patterns):
            yield from _in_turn(list(zip(self.patterns, value, strict=True)), trial)


def _in_turn(pairs: list[tuple[Pattern, Any]], trial: Trial) -> Iterator[Trial]:
    if not pairs:
        yield trial
        return
    for extended in pairs[0][0].solve(pairs[0][1], trial):
        yield from _in_turn(pairs[1:], extended)


@dataclass(frozen=True)
class _Equation(Pattern):
    """Fits an einsum equation that is ``equation`` up to the names of its letters."""

    equation: str

    def solve(self, value: Any, trial: Trial) -> Iterator[Trial]:
        """See :meth:`Pattern.solve`."""
        if isinstance(value, str) and _renamed(value) == _renamed(self.equation):
            yield trial


def _renamed(equation: str) -> str:
    names: dict[str, str] = {}
    return "".join(
        names.setdefault(letter, chr(97 + len(names))) if letter.isalpha() else letter
        for letter in equation.replace(" ", "")
    )


def _is(name: str, *numbers: int) -> Number:
    """One of a few constants; each place has a name of its own, as equal names stand for equal numbers."""
    return Number(name, lambda number: number in numbers)


_HEADS = Var("heads_first")
_WIDE = op(_CAST, _HEADS)
_PRODUCT = op(
    _CAST,
    op(
        _VIEW,
        op(aten.einsum.default, _Equation("bnij,bhngj->bhngi"), _Parts((Var("matrix"), op(_VIEW, _WIDE)))),
    ),
)


def _channel(place: int) -> Pattern:
    unbound = op(aten.unbind.int, op(_VIEW, _WIDE), _is("unbound", -1, 4))
    return op(operator.getitem, unbound, _is(f"channel {place}", place))


_PAIRS = _Parts((op(aten.neg.default, _channel(1)), _channel(0)))
_TURNED = op(_VIEW, op(aten.stack.default, _PAIRS, _is("stacked", -1, 4)))
_ROTATED = op(
    _CAST,
    op(
        aten.add.Tensor,
        op(aten.mul.Tensor, _WIDE, Var("cosine"), commutative=True),
        op(aten.mul.Tensor, _TURNED, Var("sine"), commutative=True),
        _is("alpha", 1),
        commutative=True,
    ),
)


def _swapped(heads: Pattern) -> Pattern:
    return op(
        aten.transpose.int, heads, Number("first axis", lambda n: n == 1), Number("second axis", lambda n: n == 2)
    )


_JOINED = op(
    aten.cat.default,
    _Parts((_swapped(Either("first", rotated=_ROTATED, plain=_HEADS)), _swapped(_PRODUCT))),
    _is("along", 0),
)

_INNER = op(_CAST, Var("heads"))
_SQUARES = op(aten.pow.Tensor_Scalar, _INNER, _is("power", 2))
_MEAN = op(aten.mean.dim, _SQUARES, _is("over", -1, 3), _is("kept", 1))
_NORM = op(
    aten.mul.Tensor,
    op(
        _CAST,
        op(
            aten.mul.Tensor,
            _INNER,
            op(aten.rsqrt.default, op(aten.add.Tensor, _MEAN, Number("eps"), _is("alpha", 1))),
            commutative=True,
        ),
    ),
    Var("weight"),
    commutative=True,
)


def with_camera_heads(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a region with the operator wherever its pattern is found; the region itself where there is none."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    found = 0
    for node in graph_module.graph.nodes:
        rewrite = _REWRITES.get(node.target) if node.op == "call_function" else None
        replacement = rewrite(graph, node, made) if rewrite else None
        found += replacement is not None
        made[node] = replacement or graph.node_copy(node, made.__getitem__)
        made[node].meta = copy.copy(node.meta)
    if not found:
        return graph_module
    graph.eliminate_dead_code()
    return fx.GraphModule(graph_module, graph)


_Made = dict[fx.Node, fx.Node]


def _joined(graph: fx.Graph, node: fx.Node, made: _Made) -> fx.Node | None:
    """Rotated heads followed by multiplied ones."""
    result = match(_JOINED, node)
    if not result or not _fits(result, node):
        return None
    heads_first = result.bindings["heads_first"]
    source = heads_first.args[0] if _is_swap(heads_first) else None
    norm = match(_NORM, source) if source is not None else None
    rotation = [made[result.bindings[name]] if name in result.bindings else None for name in ("cosine", "sine")]
    kept = _kept(graph, heads_first, made)
    if kept is not None:
        operands = (*kept, made[result.bindings["matrix"]], *rotation)
        return graph.call_function(torch.ops.lightint.camera_heads_kept.default, operands)
    if norm and _norm_fits(norm, heads_first):
        heads, weight, eps = made[norm.bindings["heads"]], made[norm.bindings["weight"]], norm.bindings["eps"]
    else:
        heads, weight, eps = _tokens_first(graph, heads_first, made), None, 0.0
    return _call(graph, heads, made[result.bindings["matrix"]], weight, eps, *rotation, True)


def _multiplied(graph: fx.Graph, node: fx.Node, made: _Made) -> fx.Node | None:
    """Heads multiplied by camera matrices alone."""
    result = match(_PRODUCT, node)
    if not result or not _fits(result, node):
        return None
    heads = _tokens_first(graph, result.bindings["heads_first"], made)
    product = _call(graph, heads, made[result.bindings["matrix"]], None, 0.0, None, None, False)
    return graph.call_function(aten.transpose.int, (product, 1, 2))


def _call(graph: fx.Graph, *arguments: Any) -> fx.Node:
    return graph.call_function(torch.ops.lightint.camera_heads.default, arguments)


def _tokens_first(graph: fx.Graph, heads_first: fx.Node, made: _Made) -> fx.Node:
    """Heads [B, H, N, D] as [B, N, H, D]."""
    if _is_swap(heads_first):
        return made[heads_first.args[0]]  # type: ignore[index]
    return graph.call_function(aten.transpose.int, (made[heads_first], 1, 2))


_FRAMES = op(
    aten.cat.default,
    _Parts((op(_VIEW, op(aten.index_select.default, Var("pool"), _is("frames", 1), Var("slots"))), Var("fresh"))),
    _is("tokens", 1),
)
_KEPT = Either("apart", together=op(_VIEW, _FRAMES), split=_FRAMES)


def _kept(graph: fx.Graph, heads_first: fx.Node, made: _Made) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """Pool, slots and fresh heads, where these heads are frames from slots followed by fresh ones."""
    tokens_first = heads_first.args[0] if _is_swap(heads_first) else None
    result = match(_KEPT, tokens_first) if isinstance(tokens_first, fx.Node) else None
    if not result or not _kept_fits(result, heads_first):
        return None
    pool, fresh = (result.bindings[name] for name in ("pool", "fresh"))
    _, heads, _, dim = heads_first.meta["val"].shape
    frame = math.prod(pool.meta["val"].shape[2:]) // (heads * dim)
    laid = graph.call_function(aten.view.default, (made[pool], [-1, pool.meta["val"].shape[1], frame, heads, dim]))
    behind = made[fresh]
    if fresh.meta["val"].dim() == 3:
        behind = graph.call_function(aten.unflatten.int, (behind, -1, [heads, dim]))
    return laid, made[result.bindings["slots"]], behind


def _kept_fits(result: MatchResult, heads_first: fx.Node) -> bool:
    """Whether kept and fresh tokens [B, N, heads, dim] or [B, N, heads * dim] lie in rows, and frames are whole."""
    batch, heads, tokens, dim = map(size_of, heads_first.meta["val"].shape)
    pool, slots, fresh = (result.bindings[name].meta["val"] for name in ("pool", "slots", "fresh"))
    channels = {4: [heads, dim], 3: [heads * dim]}.get(fresh.dim(), [])
    count = len(channels)
    extents = list(map(size_of, pool.shape))
    if not channels or not all(isinstance(extent, int) for extent in (heads, dim, *extents[1:])):
        return False
    plane = extents[2 : len(extents) - count]
    old = size_of(slots.shape[0]) * math.prod(plane)
    new = size_of(fresh.shape[1])
    views = [(batch, old, *channels), (batch, tokens, heads, dim)]
    return (
        extents[len(extents) - count :] == channels
        and [size_of(size) for size in (fresh.shape[0], *fresh.shape[2:])] == [batch, *channels]
        and extents[0] == batch
        and same(old + new, tokens)
        and all(_shape(each) in views for each in result.nodes if each.target in _VIEW)
        and pool.is_contiguous()
        and pool.dtype == fresh.dtype == heads_first.meta["val"].dtype
    )


def _is_swap(node: fx.Node) -> bool:
    return node.target is aten.transpose.int and node.args[1:] == (1, 2)


def _fits(result: MatchResult, node: fx.Node) -> bool:
    """Whether dtypes, shapes and memory order are those the operator is made for."""
    heads_first = result.bindings["heads_first"].meta["val"]
    batch, heads, tokens, dim = map(size_of, heads_first.shape)
    halves = heads_first.dtype in (torch.bfloat16, torch.float16) and node.meta["val"].dtype == heads_first.dtype
    lies = list(map(size_of, heads_first.stride()))[1:] == [dim, heads * dim, 1]
    shapes = {
        (batch, heads, tokens, dim),
        (batch, heads, tokens, dim // GROUP, GROUP),
        (batch, heads, tokens, dim // 2, 2),
    }
    views = all(_shape(each) in shapes for each in result.nodes if each.target in _VIEW)
    casts = {each.meta["val"].dtype for each in result.nodes if each.target is _CAST}
    wanted = {"matrix": (batch, tokens, GROUP, GROUP), "cosine": (tokens, dim), "sine": (tokens, dim)}
    given = {name: result.bindings[name] for name in wanted if name in result.bindings}
    operands = all(
        _shape(each) == wanted[name] and each.meta["val"].dtype == torch.float32 for name, each in given.items()
    )
    return halves and lies and dim in DIMS and views and operands and casts <= {torch.float32, heads_first.dtype}


def _norm_fits(norm: MatchResult, heads_first: fx.Node) -> bool:
    """Whether the norm is one over the channels of a head, in float32, cast back to the heads' own dtype."""
    heads, weight = norm.bindings["heads"].meta["val"], norm.bindings["weight"].meta["val"]
    casts = [each.meta["val"].dtype for each in norm.nodes if each.target is _CAST]
    source = heads_first.args[0]
    assert isinstance(source, fx.Node)
    same = _shape(norm.bindings["heads"]) == _shape(source) and heads.dtype == heads_first.meta["val"].dtype
    return same and set(casts) <= {torch.float32, heads.dtype} and tuple(weight.shape) == (heads.shape[3],)


def _shape(node: fx.Node) -> tuple[Any, ...]:
    return tuple(map(size_of, node.meta["val"].shape))


_REWRITES: dict[Any, Callable[[fx.Graph, fx.Node, _Made], fx.Node | None]] = {
    aten.cat.default: _joined,
    _CAST: _multiplied,
}
