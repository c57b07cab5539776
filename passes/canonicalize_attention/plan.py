"""Deciding what the operator reads: which tensor of each path, which head grouping, which dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.arrange import cost_of, is_reachable
from lightint_compile.passes.canonicalize_attention.axes import Axes, Axis, all_atoms, resolved
from lightint_compile.passes.canonicalize_attention.paths import Path
from lightint_compile.passes.canonicalize_attention.site import Site
from lightint_compile.passes.ir.program import tensor_of


@dataclass(frozen=True)
class Plan:
    """What will be built.

    Attributes:
        rows: the two leading axes of the operator's query: batch and heads.
        query, key, value: index of the source on each path.
        key_heads: the heads that key and value have; fewer than the query's in grouped attention.
        grouped: the operator repeats key and value heads itself.
        dtype: what the operator computes in.
        output: index of the node that the operator's result replaces.
    """

    rows: tuple[Axis, Axis]
    query: int
    key: int
    value: int
    key_heads: Axis
    grouped: bool
    dtype: torch.dtype
    output: int

    def query_axes(self, site: Site) -> Axes:
        """Batch, heads, query tokens, head_dim."""
        return (*self.rows, site.query_axis, site.depth_axis)

    def key_axes(self, site: Site) -> Axes:
        """Batch, key heads, key tokens, head_dim."""
        return (self.rows[0], self.key_heads, site.key_axis, site.depth_axis)

    def value_axes(self, site: Site) -> Axes:
        """Batch, key heads, key tokens, value width."""
        return (self.rows[0], self.key_heads, site.key_axis, site.value_axis)

    def mask_axes(self, site: Site) -> Axes:
        """Batch, heads, query tokens, key tokens."""
        return (*self.rows, site.query_axis, site.key_axis)

    def output_axes(self, site: Site) -> Axes:
        """Batch, heads, query tokens, value width."""
        return (*self.rows, site.query_axis, site.value_axis)


def plan_of(site: Site) -> Plan:
    """The cheapest way to feed one operator with what the site has."""
    rows = _rows(site)
    dtype = _dtype(site)
    key_heads = _key_heads(site, rows)
    grouped = key_heads != rows[1]
    draft = Plan(rows, 0, 0, 0, key_heads, grouped, dtype, 0)
    return Plan(
        rows,
        _cheapest(site.query, draft.query_axes(site), dtype),
        _cheapest(site.key, draft.key_axes(site), dtype),
        _cheapest(site.value, draft.value_axes(site), dtype),
        key_heads,
        grouped,
        dtype,
        _cheapest_output(site, draft.output_axes(site)),
    )


def _dtype(site: Site) -> torch.dtype:
    """The narrowest dtype that holds the sources, and that the result is not narrower than what was computed in."""
    result = tensor_of(site.result)
    assert result is not None
    return reduce(torch.promote_types, [path.dtype() for path in (site.query, site.key, site.value)], result.dtype)


def _cheapest(path: Path, target: Axes, dtype: torch.dtype) -> int:
    """The source that needs the fewest operations; of equals the one nearest to the product if it needs none, else the
    farthest, so that layout operations do not pile up."""
    usable = [index for index in path.sources() if is_reachable(path.axes[index], target)]
    costs = {index: cost_of(path.axes[index], target) + (path.dtype(index) != dtype) for index in usable}
    return min(usable, key=lambda index: (costs[index], index if costs[index] else -index))


def _cheapest_output(site: Site, axes: Axes) -> int:
    whole = all_atoms(axes)
    usable = [index for index, (_, own) in enumerate(site.outputs) if all_atoms(own) == whole]
    return min(usable, key=lambda index: (cost_of(axes, site.outputs[index][1]), index))


def _rows(site: Site) -> tuple[Axis, Axis]:
    """Batch and heads as some four-dimensional tensor of the region has them; else the last atom as heads."""
    named = {site.query_axis, site.key_axis, site.depth_axis, site.value_axis} - {()}
    for axes in _tensors(site):
        rest = list(resolved(axes))
        if len(rest) != 4:
            continue
        rest = [axis for axis in rest if axis not in named]
        while len(rest) > 2 and () in rest:
            rest.reverse()
            rest.remove(())
            rest.reverse()
        if len(rest) == 2 and sorted(map(id, (*rest[0], *rest[1]))) == sorted(map(id, site.batch)):
            return rest[0], rest[1]
    if len(site.batch) == 1:
        return site.batch, ()
    return site.batch[:-1], site.batch[-1:]


def _tensors(site: Site) -> Iterator[Axes]:
    yield from (axes for _, axes in site.outputs)
    yield from reversed(site.query.axes)
    yield from site.axes.values()
    yield from reversed(site.value.axes)


def _key_heads(site: Site, rows: tuple[Axis, Axis]) -> Axis:
    """The shortest leading part of the heads that both key and value can do with."""
    heads = rows[1]
    for count in range(len(heads)):
        copies = set(heads[count:])
        if all(_lacks(path, copies) for path in (site.key, site.value)):
            return heads[:count]
    return heads


def _lacks(path: Path, copies: Iterable[object]) -> bool:
    """Whether some source on the path has none of these atoms: the path repeats it along them, or it broadcasts."""
    return any(all_atoms(path.axes[index]).isdisjoint(copies) for index in path.sources())


def sources_of(site: Site, plan: Plan) -> tuple[fx.Node, fx.Node, fx.Node]:
    """The three tensors that the operator will read."""
    paths, indices = (site.query, site.key, site.value), (plan.query, plan.key, plan.value)
    query, key, value = (path.nodes[index] for path, index in zip(paths, indices, strict=True))
    return query, key, value
