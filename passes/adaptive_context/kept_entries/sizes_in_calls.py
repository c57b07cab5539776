"""Calls that are told sizes, and what they are told once some entries are left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.adaptive_context.kept_entries.lengths import Lengths
from lightint_compile.passes.adaptive_context.kept_entries.runs import Axis, Part, Runs
from lightint_compile.passes.ir.op_arguments import argument, dimension, rank_of
from lightint_compile.passes.ir.op_families import Family

aten = torch.ops.aten


def viewed(node: fx.Node, axes: Sequence[Axis], lengths: Lengths) -> None:
    """Make a view to axes, of whatever spelling."""
    sizes = [lengths.of(axis) if isinstance(axis, Runs) else lengths.number(axis) for axis in axes]
    node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], sizes), {}


def expanded(node: fx.Node, axes: Sequence[Axis | None], lengths: Lengths) -> None:
    """Tell an ``expand`` how long the axes with entries are."""
    given = list(argument(node, "size"))
    sizes = [lengths.of(axis) if isinstance(axis, Runs) else size for axis, size in zip(axes, given, strict=True)]
    node.args, node.kwargs = (node.args[0], sizes), {}


def filled(node: fx.Node, axis: int, runs: Runs, lengths: Lengths) -> tuple[Any, ...]:
    """The arguments of a filling or expanding call whose ``axis`` has the length of ``runs``."""
    place = 1 if node.target in (*Family.EXPAND.value, *_OF_ANOTHER) else 0
    sizes = list(node.args[place])  # type: ignore[arg-type]
    sizes[axis] = lengths.of(runs)
    return (*node.args[:place], sizes, *node.args[place + 1 :])


_OF_ANOTHER = (aten.new_full.default, aten.new_ones.default, aten.new_zeros.default)


def ranged(node: fx.Node, found: Part, lengths: Lengths) -> None:
    """Tell a slice, however it is spelled, where its range begins and ends."""
    source = node.args[0]
    dim, step = dimension(node, rank_of(source)), argument(node, "step") if node.target is aten.slice.Tensor else 1
    bounds = lengths.of(found.start), lengths.of(found.stop)
    node.target, node.args, node.kwargs = aten.slice.Tensor, (source, dim, *bounds, step), {}


def split(node: fx.Node, parts: Sequence[Runs], lengths: Lengths) -> None:
    """Tell a split, however it is spelled, how long its parts are."""
    source = node.args[0]
    dim = dimension(node, rank_of(source))
    sizes = [lengths.of(part) for part in parts]
    node.target, node.args, node.kwargs = aten.split_with_sizes.default, (source, sizes, dim), {}


def selected(node: fx.Node, place: Runs, lengths: Lengths) -> None:
    """Tell a ``select`` the place of its value."""
    source = node.args[0]
    dim = dimension(node, rank_of(source))
    node.args, node.kwargs = (source, dim, lengths.of(place)), {}


def uncounted(node: fx.Node) -> None:
    """Let an interleaved repetition count its results by itself."""
    node.kwargs = {name: value for name, value in node.kwargs.items() if name != "output_size"}
