"""The last check before a rewrite: the matched nodes and their replacement on small random float64 tensors.

Every atom gets a small size of its own, so that equal sizes in the user's model cannot hide a wrong axis; constants and
permutations are run as they stand in the graph.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch.utils._python_dispatch import _disable_current_modes

from lightint_compile.passes.canonicalize_attention.axes import Atom, Axes, atoms, resolved
from lightint_compile.passes.canonicalize_attention.build import SDPA, build
from lightint_compile.passes.canonicalize_attention.chain import MaskPart
from lightint_compile.passes.canonicalize_attention.constants import is_lower_triangle, masks_nothing
from lightint_compile.passes.canonicalize_attention.contraction import Contraction
from lightint_compile.passes.canonicalize_attention.layout import VIEWS, is_layout
from lightint_compile.passes.canonicalize_attention.masks import simplified
from lightint_compile.passes.canonicalize_attention.paths import Path
from lightint_compile.passes.canonicalize_attention.plan import Plan
from lightint_compile.passes.canonicalize_attention.site import Fused, Site, Spelled
from lightint_compile.passes.ir.matching import MatchError, number_of
from lightint_compile.passes.ir.op_arguments import arguments
from lightint_compile.passes.ir.op_families import is_cast

aten = torch.ops.aten

_SIZES = (2, 3, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13)
_TOLERANCE = 1e-9


def check(site: Site, plan: Plan) -> None:
    """Raise :class:`MatchError` unless the fused call gives what the matched nodes give."""
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        expected, got = _both(site, plan)
    error = (got - expected).abs().max().item() if got.shape == expected.shape else math.inf
    if not error <= _TOLERANCE * max(1.0, expected.abs().max().item()):
        reason = f"on random numbers the fused call differs from the matched nodes by {error:.3g}"
        raise MatchError("numerics", site.result, reason, "write F.scaled_dot_product_attention")


def _both(site: Site, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        trial = Trial(site)
        return trial.original(plan), build(trial, site, plan)
    except RuntimeError as error:
        reason = f"the matched nodes or the fused call do not run on small tensors: {str(error).splitlines()[0]}"
        raise MatchError("numerics", site.result, reason, "write F.scaled_dot_product_attention") from error


class Trial:
    """Random values for a site, the original nodes run on them, and the operations that :func:`build` asks for."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._random = torch.Generator().manual_seed(0)
        self._sizes: dict[Atom, int] = {}
        self._paths = {part: self._run_path(getattr(site, part)) for part in ("query", "key", "value")}
        self._values: dict[fx.Node, Any] = {}
        for part in map(simplified, site.masks):
            self._values[part.node] = self._mask(part)

    def original(self, plan: Plan) -> torch.Tensor:
        """What the graph computes at the plan's output."""
        site = self._site
        assert site.fused is not None or site.spelled is not None
        result = self._spelled(site.spelled) if site.spelled is not None else self._fused(site.fused)  # type: ignore[arg-type]
        for node, axes in self._site.outputs[1 : plan.output + 1]:
            result = self._layout(node, result, axes)
        return result

    def _spelled(self, spelled: Spelled) -> torch.Tensor:
        left, right = ("key", "query") if self._site.key_is_left else ("query", "key")
        self._values[spelled.scores.node] = self._product(spelled.scores, self._paths[left][-1], self._paths[right][-1])
        last = spelled.probabilities.nodes[-1]
        operands = (self.value(last), self._paths["value"][-1])
        return self._product(spelled.product, *(operands if spelled.product.left is last else operands[::-1]))

    def _fused(self, fused: Fused) -> torch.Tensor:
        tensors = [self._paths[part][-1] for part in ("query", "key", "value")]
        if fused.order is not None:
            tensors = [tensor.permute(fused.order) for tensor in tensors]
        # A number stands for a tensor full of it, so that a mask made with one may have fewer dimensions than it has.
        masks = [torch.atleast_2d(self.value(part.node)) for part in self._site.masks]
        result = SDPA(*tensors, *(masks or [None]), 0.0, self._site.causal, scale=fused.scale, enable_gqa=fused.grouped)
        return result if fused.order is None else result.permute(fused.order)

    def value(self, node: fx.Node) -> Any:
        """The value of a node between the product, the masks and the probabilities."""
        if node not in self._values:
            number = number_of(node)
            self._values[node] = self._run(node) if number is None else torch.tensor(number, dtype=torch.float64)
        return self._values[node]

    def _run(self, node: fx.Node) -> Any:
        if node in self._site.axes and (is_layout(node) or is_cast(node)):
            return self._layout(node, self.value(node.args[0]), self._site.axes[node])  # type: ignore[arg-type]
        return self._call(node, self.value)

    def _call(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
        """The node's own operator on other values, in float64."""
        given = {name: fx.map_arg(value, value_of) for name, value in arguments(node).items()}
        if given.get("dtype") is not None:
            given["dtype"] = torch.float64
        if "half_to_float" in given:
            given["half_to_float"] = False
        if node.target is operator.getitem:
            return given["0"][given["1"]]
        return node.target(**given)  # type: ignore[operator]

    def _product(self, product: Contraction, left: Any, right: Any) -> torch.Tensor:
        node = product.node
        if node.target is aten.einsum.default:
            result = aten.einsum.default(node.args[0], [left, right])  # type: ignore[arg-type]
        elif node.target is aten.baddbmm.default:
            added = 0.0 if product.added is None else self.value(product.added)
            given = arguments(node)
            start = torch.as_tensor(added, dtype=torch.float64).expand(torch.bmm(left, right).shape)
            result = torch.baddbmm(start, left, right, beta=given["beta"], alpha=given["alpha"])
        else:
            result = node.target(left, right)  # type: ignore[operator]
        return result

    def _run_path(self, path: Path) -> list[torch.Tensor]:
        values = [self._normal(path.axes[0])]
        for node, axes in zip(path.nodes[1:], path.axes[1:], strict=True):
            before = path.nodes[len(values) - 1]
            values.append(self._step(node, before, values[-1], axes))
        return values

    def _step(self, node: fx.Node, before: fx.Node, value: torch.Tensor, axes: Axes) -> torch.Tensor:
        if is_layout(node) or is_cast(node):
            return self._layout(node, value, axes)
        return self._call(node, lambda other: value if other is before else number_of(other))

    def _layout(self, node: fx.Node, value: torch.Tensor, axes: Axes) -> torch.Tensor:
        shape = self._shape(axes)
        if is_cast(node):
            return value
        if node.target in VIEWS:
            return value.reshape(shape)
        if node.target is aten.expand.default:
            return value.expand(shape)
        if node.target is aten.repeat.default:
            old = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
            return value.repeat(tuple(new // size for new, size in zip(shape, old, strict=True)))
        if node.target is aten.repeat_interleave.self_int:
            dim = arguments(node)["dim"] % value.dim()
            return value.repeat_interleave(shape[dim] // value.shape[dim], dim)
        return node.target(value, *node.args[1:], **node.kwargs)  # type: ignore[operator]

    def _mask(self, part: MaskPart) -> torch.Tensor:
        """Random, or as a constant in the graph where its values are what counts; every query has a key left."""
        shape = self._shape(part.axes)
        if masks_nothing(part):
            is_bias = part.kind == "bias"
            return torch.zeros(shape, dtype=torch.float64) if is_bias else torch.full(shape, part.kind == "keep")
        keep = torch.rand(shape, generator=self._random) < 0.6
        if is_lower_triangle(part):
            keep = torch.ones(shape, dtype=torch.bool).tril()
            return (
                torch.zeros(shape, dtype=torch.float64).masked_fill(~keep, -math.inf) if part.kind == "bias" else keep
            )
        if part.kind == "bias":
            return self._normal(part.axes)
        for dim, axis in enumerate(part.axes):
            if set(atoms(axis)) & set(self._site.key_axis):
                keep.select(dim, 0).fill_(True)
        return keep if part.kind == "keep" else ~keep

    def _normal(self, axes: Axes) -> torch.Tensor:
        return torch.randn(self._shape(axes), generator=self._random, dtype=torch.float64)

    def _shape(self, axes: Axes) -> tuple[int, ...]:
        return tuple(math.prod(self._size(atom) for atom in axis) for axis in resolved(axes))

    def _size(self, atom: Atom) -> int:
        return self._sizes.setdefault(atom, _SIZES[min(len(self._sizes), len(_SIZES) - 1)])

    def source(self, part: str, index: int) -> torch.Tensor:
        """A tensor on a path."""
        return self._paths[part][index]

    def mask(self, node: fx.Node) -> Any:
        """The value of a mask."""
        return self._values[node]

    def permute(self, value: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
        """See :class:`Ops`."""
        return value.permute(tuple(order))

    def squeeze(self, value: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
        """See :class:`Ops`."""
        return value.squeeze(tuple(dims))

    def unsqueeze(self, value: torch.Tensor, dim: int) -> torch.Tensor:
        """See :class:`Ops`."""
        return value.unsqueeze(dim)

    def expand(self, value: torch.Tensor, axes: Axes) -> torch.Tensor:
        """See :class:`Ops`."""
        return value.expand(self._shape(axes))

    def reshape(self, value: torch.Tensor, axes: Axes) -> torch.Tensor:
        """See :class:`Ops`."""
        return value.reshape(self._shape(axes))

    def call(self, target: Any, *args: Any) -> torch.Tensor:
        """See :class:`MaskOps`; everything stays float64."""
        result: torch.Tensor = target(*args)
        return result.double() if result.is_floating_point() else result

    def cast(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See :class:`MaskOps`; everything stays float64."""
        return value

    def dtype_of(self, value: torch.Tensor) -> torch.dtype:
        """See :class:`MaskOps`."""
        return value.dtype

    def attention(self, *tensors: Any, **options: Any) -> torch.Tensor:
        """See :class:`Builder`."""
        result: torch.Tensor = SDPA(*tensors, **options)
        return result
