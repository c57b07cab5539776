"""The mask of a site as one row of keys: padding is the same for every query, and may be data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import AttentionSite, MaskKind
from lightint_compile.passes.ir.fake_values import size_of
from lightint_compile.passes.ir.op_arguments import rank_of
from lightint_compile.passes.ir.op_families import COPIES, aten
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.sizes import same
from lightint_compile.passes.sparse_attention.mask_axes import is_even, last_size, narrowed

_BOTH = frozenset(
    {aten.bitwise_and.Tensor, aten.logical_and.default, aten.mul.Tensor, aten.__and__.Tensor, aten.minimum.default}
)
_DIFFERS = "it is not the same for every query and head"
_AS_IT_IS = COPIES | {aten.to.dtype, aten._to_copy.default}


@dataclass(frozen=True)
class KeyMask:
    """A mask that says the same of a key to every query, except to queries that see no key at all.

    Attributes:
        keys: masks of the shape of the scores, or broadcast to it, that hold together and do not change from query to
            query; a single one where they are numbers.
        queries: masks that do not change from key to key: where one is False, the query sees nothing.
    """

    keys: tuple[fx.Node, ...]
    queries: tuple[fx.Node, ...] = ()

    @property
    def told(self) -> str:
        """What a mask is, for a remark."""
        return "a mask of keys" + (" and queries" if self.queries else "")

    def key_row(self, rewriter: Rewriter) -> fx.Node:
        """``[batch or 1, keys]``."""
        row = _all_of([_row(mask, -2, rewriter) for mask in self.keys], rewriter)
        for _ in range(2):
            row = rewriter.call(aten.select.int, row, 1, 0)
        return row

    def query_column(self, rewriter: Rewriter) -> fx.Node | None:
        """``[batch or 1, 1, queries, 1]``; ``None`` where every query sees what the mask of keys leaves."""
        return _all_of([_row(mask, -1, rewriter) for mask in self.queries], rewriter) if self.queries else None

    def of_queries(self, start: Any, stop: Any, rewriter: Rewriter) -> fx.Node:
        """The mask of some of the queries, as ``scaled_dot_product_attention`` takes it."""
        row = _all_of([_row(mask, -2, rewriter) for mask in self.keys], rewriter)
        column = self.query_column(rewriter)
        if column is None:
            return row
        some = rewriter.call(aten.slice.Tensor, column, 2, start, stop)
        return rewriter.call(aten.logical_and.default, row, some)


def key_mask_of(site: AttentionSite) -> KeyMask | str | None:
    """The mask of keys of a site, ``None`` where it has no mask, or in words why it is not one of keys."""
    if site.mask_kind is MaskKind.CAUSAL:
        return "block-sparse attention has no causal form"
    if site.mask is None:
        return None
    keys = size_of(site.key.meta["val"].shape[-2])
    if site.mask_kind is MaskKind.ADDITIVE:
        if not _is_of(site.mask, -2) or not same(last_size(site.mask), keys):
            return _DIFFERS
        has_text = any(span.grid is None for span in site.key_axis.spans)
        return KeyMask((site.mask,)) if has_text else "it can only be of frames"
    parts = list(_conjuncts(site.mask))
    of_keys = tuple(part for part in parts if _is_of(part, -2))
    of_queries = tuple(part for part in parts if part not in of_keys and _is_of(part, -1))
    if len(of_keys) + len(of_queries) != len(parts):
        return _DIFFERS
    if not any(same(last_size(part), keys) for part in of_keys):
        return "it says nothing of single keys"
    return KeyMask(of_keys, of_queries)


def _conjuncts(mask: fx.Node) -> list[fx.Node]:
    """The boolean masks that must hold together."""
    value = tensor_of(mask)
    inputs = [node for node in mask.all_input_nodes if (own := tensor_of(node)) is not None and own.dtype == torch.bool]
    plain = value is not None and value.dtype == torch.bool and len(inputs) == len(mask.all_input_nodes)
    if plain and mask.target in _BOTH and len(mask.args) == 2 and len(inputs) == len(set(mask.args)):
        return [part for node in inputs for part in _conjuncts(node)]
    if plain and mask.target in _AS_IT_IS and len(inputs) == 1:
        return _conjuncts(inputs[0])
    return [mask]


def _is_of(mask: fx.Node, axis: int) -> bool:
    """Whether a mask does not change along an axis counted from the end, nor from head to head."""
    rank = rank_of(mask)
    return all(rank + each < 0 or is_even(mask, rank + each) for each in (axis, -3))


def _row(mask: fx.Node, axis: int, rewriter: Rewriter) -> fx.Node:
    """The mask in four dimensions, of size one along the heads and an axis counted from the end."""
    rank = rank_of(mask)
    for each in (axis, -3):
        if rank + each >= 0:
            mask = narrowed(mask, rank + each, rewriter)
    for _ in range(4 - rank):
        mask = rewriter.call(aten.unsqueeze.default, mask, 0)
    return mask


def _all_of(masks: Sequence[fx.Node], rewriter: Rewriter) -> fx.Node:
    result, *rest = masks
    for mask in rest:
        result = rewriter.call(aten.logical_and.default, result, mask)
    return result
