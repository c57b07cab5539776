"""One fused call for a site, built on FX nodes for the graph and on small real tensors for the check."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.arrange import arrange
from lightint_compile.passes.canonicalize_attention.axes import Atom, Axes, Axis, atoms, equal, size_of
from lightint_compile.passes.canonicalize_attention.masks import MaskOps, combined, needed
from lightint_compile.passes.canonicalize_attention.plan import Plan
from lightint_compile.passes.canonicalize_attention.site import Site
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.rewriter import Rewriter

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


class Builder(MaskOps, Protocol):
    """Where the fused call is built."""

    def source(self, part: str, index: int) -> Any:
        """A tensor on the path to ``query``, ``key`` or ``value``."""

    def attention(self, *tensors: Any, **options: Any) -> Any:
        """The fused call."""


def build(ops: Builder, site: Site, plan: Plan) -> Any:
    """The value of the plan's output node, from one fused call."""
    query, key, value = (
        ops.cast(arrange(ops, ops.source(part, index), path.axes[index], axes), plan.dtype)
        for part, path, index, axes in (
            ("query", site.query, plan.query, plan.query_axes(site)),
            ("key", site.key, plan.key, plan.key_axes(site)),
            ("value", site.value, plan.value, plan.value_axes(site)),
        )
    )
    masks, causal = needed(site.masks, plan.mask_axes(site))
    mask = combined(ops, masks, plan.mask_axes(site), plan.dtype)
    options = _options(site, plan)
    result = ops.attention(query, key, value, mask, 0.0, causal or site.causal, **options)
    output, axes = site.outputs[plan.output]
    arranged = arrange(ops, result, plan.output_axes(site), axes)
    wanted = tensor_of(output)
    assert wanted is not None
    return ops.cast(arranged, wanted.dtype)


def _options(site: Site, plan: Plan) -> dict[str, Any]:
    options: dict[str, Any] = {} if site.scale is None else {"scale": float(site.scale)}
    return options | ({"enable_gqa": True} if plan.grouped else {})


class GraphBuilder:
    """Builds FX nodes at the place of the site's output."""

    def __init__(self, rewriter: Rewriter, site: Site) -> None:
        self._rewriter = rewriter
        self._site = site
        self._sizes = _size_table(site)

    def source(self, part: str, index: int) -> fx.Node:
        """The node on the path."""
        path = {"query": self._site.query, "key": self._site.key, "value": self._site.value}[part]
        return path.nodes[index]

    def mask(self, node: fx.Node) -> fx.Node:
        """The mask's own node."""
        return node

    def permute(self, value: fx.Node, order: Sequence[int]) -> fx.Node:
        """A transpose where two dimensions change places, a permute otherwise."""
        moved = [dim for dim, source in enumerate(order) if dim != source]
        if len(moved) == 2:
            return self._rewriter.call(aten.transpose.int, value, *moved)
        return self._rewriter.call(aten.permute.default, value, list(order))

    def squeeze(self, value: fx.Node, dims: Sequence[int]) -> fx.Node:
        """A squeeze of the given dimensions."""
        return self._rewriter.call(aten.squeeze.dims, value, list(dims))

    def unsqueeze(self, value: fx.Node, dim: int) -> fx.Node:
        """An unsqueeze."""
        return self._rewriter.call(aten.unsqueeze.default, value, dim)

    def expand(self, value: fx.Node, axes: Axes) -> fx.Node:
        """An expand; dimensions that stay are -1."""
        shape = value.meta["val"].shape
        sizes = [-1 if equal(have, size_of(axis)) else self._size(axis) for have, axis in zip(shape, axes, strict=True)]
        return self._rewriter.call(aten.expand.default, value, sizes)

    def reshape(self, value: fx.Node, axes: Axes) -> fx.Node:
        """A reshape; one symbolic size is left to be inferred."""
        sizes = [size_of(axis) for axis in axes]
        symbolic = [index for index, size in enumerate(sizes) if not isinstance(size, int)]
        spelled = [size if isinstance(size, int) else self._size(axis) for size, axis in zip(sizes, axes, strict=True)]
        if len(symbolic) == 1:
            spelled[symbolic[0]] = -1
        return self._rewriter.call(aten.reshape.default, value, spelled)

    def cast(self, value: fx.Node, dtype: torch.dtype) -> fx.Node:
        """A copy in another dtype."""
        if self.dtype_of(value) == dtype:
            return value
        return self._rewriter.call(aten._to_copy.default, value, dtype=dtype)

    def dtype_of(self, value: fx.Node) -> torch.dtype:
        """The dtype of the fake value."""
        dtype: torch.dtype = value.meta["val"].dtype
        return dtype

    def call(self, target: Any, *args: Any) -> fx.Node:
        """A call."""
        return self._rewriter.call(target, *args)

    def attention(self, *tensors: Any, **options: Any) -> fx.Node:
        """The fused node, without arguments that say the default."""
        given = list(tensors)
        for default in (False, 0.0, None):
            if given[-1] is default or (default == 0.0 and given[-1] == 0.0 and not isinstance(given[-1], bool)):
                given.pop()
            else:
                break
        return self._rewriter.call(SDPA, *given, **options)

    def _size(self, axis: Axis) -> Any:
        """A size as a number, or as a node that computes it."""
        sizes = [atom.size for atom in atoms(axis)]
        number = math.prod(size for size in sizes if isinstance(size, int))
        nodes = [self._symbolic(atom) for atom in atoms(axis) if not isinstance(atom.size, int)]
        result: Any = None if number == 1 and nodes else number
        for node in nodes:
            result = node if result is None else self._rewriter.call(operator.mul, result, node)
        return result

    def _symbolic(self, atom: Atom) -> fx.Node:
        node, dim = self._sizes[atom]
        return self._rewriter.call(aten.sym_size.int, node, dim)


def _size_table(site: Site) -> Mapping[Atom, tuple[fx.Node, int]]:
    """For every atom a tensor that stays and has it as a dimension of its own."""
    table: dict[Atom, tuple[fx.Node, int]] = {}
    for path in (site.query, site.key, site.value):
        for node, axes in zip(path.nodes, path.axes, strict=True):
            for dim, axis in enumerate(axes):
                if len(atoms(axis)) == 1:
                    table.setdefault(atoms(axis)[0], (node, dim))
    return table
