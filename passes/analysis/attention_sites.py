"""Every attention in the program: operands, mask, layout, the grids of its axes, and the parts of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Self

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.token_axis import Grid, TokenAxis
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.joins import Piece, pieces_of
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


class MaskKind(StrEnum):
    """What restricts the keys of a query."""

    NONE = "none"
    CAUSAL = "causal"
    BOOLEAN = "boolean"
    ADDITIVE = "additive"


class SpanKind(StrEnum):
    """What a stretch of keys is: tokens without a grid, tokens of other frames, or the queries' own tokens."""

    TEXT = "text"
    CONTEXT = "context"
    CURRENT = "current"


class SiteKind(StrEnum):
    """What an attention is for.

    ``PREFILL``: frames, or the last of them, attend to themselves. ``DENOISE``: they attend to context frames too.
    ``CROSS``: grid queries, keys without a grid. ``CACHE``: the same where the keys are kept ones, or hold the queries'
    own tokens: their frames are unknown. ``TEXT``: no grid at all. ``OTHER``: grids that do not form one block of
    frames.
    """

    PREFILL = "prefill"
    DENOISE = "denoise"
    CROSS = "cross"
    CACHE = "cache"
    TEXT = "text"
    OTHER = "other"


@dataclass(frozen=True)
class KeySpan:
    """A stretch of the key axis."""

    kind: SpanKind
    length: Size
    grid: Grid | None
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.grid or self.length}"


@dataclass(frozen=True, eq=False)
class AttentionSite:
    """One ``scaled_dot_product_attention`` node.

    Attributes:
        query, key, value: operands ``[batch, heads, tokens, head_dim]``.
        producers: the linear (or other product, or input) that each operand comes from.
        scale: the number that scores are multiplied by; ``None`` when head_dim is symbolic.
        mask: the mask operand; ``mask_shape`` its broadcast shape.
        tokens_first: whether the query is stored as ``[batch, tokens, heads, head_dim]`` and only viewed heads-first.
        query_axis, key_axis: what the token axes hold.
        query_grid: all visual queries as one block of frames; ``key_grid`` all visual keys as one that ends with the
            queries' frames; both ``None`` when there are no such blocks, and ``reason`` says why.
        key_spans: what the keys are, in order.
        key_pieces, value_pieces: what was concatenated to make them; one piece each where nothing was.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    producers: tuple[fx.Node | None, fx.Node | None, fx.Node | None]
    scale: float | None
    mask_kind: MaskKind
    mask: fx.Node | None
    mask_shape: tuple[Size, ...]
    dropout: float
    query_heads: Size
    key_heads: Size
    head_dim: Size
    tokens_first: bool
    query_axis: TokenAxis
    key_axis: TokenAxis
    key_spans: tuple[KeySpan, ...]
    key_pieces: tuple[Piece, ...]
    value_pieces: tuple[Piece, ...]
    kind: SiteKind
    query_grid: Grid | None
    key_grid: Grid | None
    reason: str

    @property
    def own_grids(self) -> tuple[Grid, ...]:
        """The last grids of the keys: the queries' own frames. Only for a site with a ``query_grid``."""
        return self.key_axis.grids[-len(self.query_axis.grids) :]

    @property
    def context_grids(self) -> tuple[Grid, ...]:
        """The grids of the keys in front of :attr:`own_grids`."""
        return self.key_axis.grids[: -len(self.query_axis.grids)]

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key head."""
        return not same(self.query_heads, self.key_heads)


@dataclass
class AttentionSites:
    """The fact: every attention site, in order."""

    sites: tuple[AttentionSite, ...] = field(default=())

    @classmethod
    def analyse(cls, program: Program) -> Self:
        """Describe every attention node whose operands are tensors with at least three axes."""
        grids = program.fact(TokenGrid)
        nodes = [node for node in program.calls(ATTENTION) if _is_plain(node)]
        return cls(tuple(_site(node, grids) for node in nodes))

    def __iter__(self) -> Iterator[AttentionSite]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def of(self, node: fx.Node) -> AttentionSite | None:
        """The site of an attention node."""
        return next((site for site in self.sites if site.node is node), None)


def _is_plain(node: fx.Node) -> bool:
    values = [tensor_of(argument(node, name)) for name in ("query", "key", "value")]
    return all(value is not None and value.dim() >= 3 for value in values)


def _site(node: fx.Node, grids: TokenGrid) -> AttentionSite:
    read = partial(argument, node)
    query, key, value = read("query"), read("key"), read("value")
    query_axis, key_axis = grids.of(query, -2), grids.of(key, -2)
    assert query_axis is not None and key_axis is not None
    kind, query_grid, key_grid, reason = _structure(query_axis, key_axis)
    if kind is SiteKind.CROSS:
        kind, reason = _cross_or_cache(query, key, key_axis, reason)
    mask = read("attn_mask")
    mask_value = tensor_of(mask)
    return AttentionSite(
        node=node,
        query=query,
        key=key,
        value=value,
        producers=(_producer(query), _producer(key), _producer(value)),
        scale=_scale(read("scale"), query),
        mask_kind=_mask_kind(mask_value, bool(read("is_causal"))),
        mask=mask,
        mask_shape=() if mask_value is None else tuple(size_of(size) for size in mask_value.shape),
        dropout=float(read("dropout_p")),
        query_heads=_extent(query, -3),
        key_heads=_extent(key, -3),
        head_dim=_extent(query, -1),
        tokens_first=_tokens_first(query),
        query_axis=query_axis,
        key_axis=key_axis,
        key_spans=_key_spans(query_axis, key_axis),
        key_pieces=tuple(pieces_of(key, _rank(key) - 2)),
        value_pieces=tuple(pieces_of(value, _rank(value) - 2)),
        kind=kind,
        query_grid=query_grid,
        key_grid=key_grid,
        reason=reason,
    )


def _rank(node: fx.Node) -> int:
    return len(node.meta["val"].shape)


def _extent(node: fx.Node, axis: int) -> Size:
    return size_of(node.meta["val"].shape[axis])


def _scale(stated: float | None, query: fx.Node) -> float | None:
    head_dim = _extent(query, -1)
    if isinstance(stated, (int, float)):
        return float(stated)
    return head_dim**-0.5 if isinstance(head_dim, int) and head_dim else None


def _mask_kind(mask: torch.Tensor | None, causal: bool) -> MaskKind:
    if mask is None:
        return MaskKind.CAUSAL if causal else MaskKind.NONE
    return MaskKind.BOOLEAN if mask.dtype == torch.bool else MaskKind.ADDITIVE


def _tokens_first(query: fx.Node) -> bool:
    strides = [size_of(stride) for stride in query.meta["val"].stride()]
    heads, tokens = strides[-3], strides[-2]
    return isinstance(heads, int) and (not isinstance(tokens, int) or heads < tokens)


_PRODUCTS = {*Family.LINEAR.value, aten.addmm.default, *Family.PRODUCT.value}


def _producer(node: fx.Node) -> fx.Node | None:
    """The nearest product upstream: norms, rotations and views are passed through; an input where there is none."""
    level, seen = [node], {node}
    while level:
        for candidate in level:
            if candidate.target in _PRODUCTS:
                return candidate
        nearer = dict.fromkeys(source for candidate in level for source in candidate.all_input_nodes)
        if not nearer:
            return level[0]
        level = [source for source in nearer if source not in seen]
        seen.update(level)
    return None


# --- grids -----------------------------------------------------------------------------------------------------------


def _structure(query: TokenAxis, key: TokenAxis) -> tuple[SiteKind, Grid | None, Grid | None, str]:
    """What the site is for, and its visual keys as one block of frames that ends with the queries' frames."""
    if not query.grids and not key.grids:
        return SiteKind.TEXT, None, None, f"neither queries nor keys are a grid: {query.why_not}"
    if not key.grids or (query.grids and any(span.kept for span in key.spans)):
        names = ", ".join(dict.fromkeys(name for span in key.spans for name in span.sources))
        return SiteKind.CROSS, None, None, f"cross-attention: the keys are tokens of {names or 'no grid'}"
    if not query.grids:
        return SiteKind.OTHER, None, None, f"the keys are a grid and the queries are not: {query.why_not}"
    first = query.grids[0]
    if not all(grid.same_plane(first) for grid in (*query.grids, *key.grids)):
        return SiteKind.OTHER, None, None, f"several grids share the axes: queries {query}, keys {key}"
    context = key.grids[: -len(query.grids)]
    if not (_are_last(query.grids, key.grids) or _are_alike(query.grids, key.grids)):
        return SiteKind.OTHER, None, None, f"the queries' frames are not the last keys: queries {query}, keys {key}"
    grid, block = query.block, key.block
    if grid is None or block is None:
        axis = f"queries {query}" if grid is None else f"keys {key}"
        return SiteKind.OTHER, None, None, f"tokens without a grid lie between frames: {axis}"
    block = Grid(block.frames, first.height, first.width, first.seed, 0, (None, *first.origins[1:]))
    return (SiteKind.DENOISE if context else SiteKind.PREFILL), grid, block, ""


def _are_last(queries: Sequence[Grid], keys: Sequence[Grid]) -> bool:
    """Whether the last frames of the keys are those of the queries, in their order."""
    if len(keys) < len(queries):
        return False
    (first, *more), own = queries, keys[-len(queries) :]
    return own[0].ends_with(first) and all(map(Grid.same_tokens, own[1:], more))


def _are_alike(queries: Sequence[Grid], keys: Sequence[Grid]) -> bool:
    """Whether both are one grid of one shape, whatever made each."""
    return len(queries) == len(keys) == 1 and all(map(same, keys[0].shape, queries[0].shape))


def _cross_or_cache(query: fx.Node, key: fx.Node, axis: TokenAxis, reason: str) -> tuple[SiteKind, str]:
    """Cross-attention projects its keys from other tokens; a cache is given, or written with the queries' own."""
    names = ", ".join(dict.fromkeys(name for span in axis.spans for name in span.sources)) or key.name
    unknown = f"which frames the tokens of {names} are cannot be told"
    sources: set[fx.Node] = reached([key], lambda node: node.all_input_nodes)
    if _own_tokens(query) & sources:
        return SiteKind.CACHE, f"self-attention over a cache: the queries' own tokens are among the keys, but {unknown}"
    producer = _producer(key)
    if producer is not None and producer.op == "placeholder":
        return SiteKind.CACHE, f"the keys are kept ones, given as they are: {unknown}"
    return SiteKind.CROSS, reason


def _own_tokens(query: fx.Node) -> set[fx.Node]:
    """The tokens that the queries are projected from, and their producer itself, which may make keys as well."""
    producer = _producer(query)
    if producer is None or producer.target not in _PRODUCTS:
        return set()
    sources = [node for node in producer.all_input_nodes if node.op != "placeholder"]
    return {producer, *sources[:1]}


def _key_spans(query: TokenAxis, key: TokenAxis) -> tuple[KeySpan, ...]:
    return tuple(KeySpan(_span_kind(query, span.grid), span.length, span.grid, span.sources) for span in key.spans)


def _span_kind(query: TokenAxis, grid: Grid | None) -> SpanKind:
    if grid is None:
        return SpanKind.TEXT
    own = any(grid.ends_with(mine) for mine in query.grids)
    return SpanKind.CURRENT if own else SpanKind.CONTEXT
