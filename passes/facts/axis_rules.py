"""How each operation carries the meaning of axes from its inputs to its output.

A rule takes the node and the axes known so far and gives the axes of its output: one entry an axis, ``None`` where
nothing is known, or a list of those for an operation with several outputs. The caller checks what a rule says against
the recorded shape, so that a wrong guess becomes "unknown", never a wrong grid.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.evaluate import Size
from lightint_compile.passes.facts.axes import Axes, Axis, better, same
from lightint_compile.passes.facts.axes import size_of as size
from lightint_compile.passes.program import tensor_of

Known = list[Axis | None]
Result = Sequence[Axis | None] | Sequence[Sequence[Axis | None]]

#: The axes of a node that was visited before.
Lookup = Callable[[fx.Node], Axes]
Rule = Callable[[fx.Node, Lookup], Result]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, by schema name without overload (``aten::view``)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_for(node: fx.Node) -> Rule | None:
    """The rule of a ``call_function`` node; ``None`` where its output has new axes."""
    if node.target is operator.getitem:
        return None
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    if schema.name in RULES:
        return RULES[schema.name]
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return broadcast
    return None if schema.name.startswith(("aten::", "prim")) else like_first


def argument(node: fx.Node, name: str) -> Any:
    """An argument by its schema name, whether it was given by position, by keyword or not at all."""
    schema = node.target._schema  # type: ignore[union-attr]
    for position, entry in enumerate(schema.arguments):
        if entry.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, entry.default_value)
    raise KeyError(name)


def plain(value: Any) -> Any:
    """A size argument as a number: a node stands for its value."""
    return size(value.meta["val"] if isinstance(value, fx.Node) else value)


def shape_of(node: fx.Node) -> list[Size]:
    """The sizes of a node's tensor."""
    tensor = tensor_of(node)
    assert tensor is not None
    return [size(extent) for extent in tensor.shape]


def tensors(node: fx.Node) -> list[fx.Node]:
    """The tensor inputs of a node, in order."""
    return [source for source in node.all_input_nodes if tensor_of(source) is not None]


def axis_number(node: fx.Node, rank: int, name: str = "dim") -> int:
    """The ``dim`` argument, not negative."""
    return int(argument(node, name)) % max(rank, 1)


@rule("aten::copy", "aten::fill", "aten::where", "aten::masked_fill", "aten::__and__", "aten::__or__", "aten::pow")
def broadcast(node: fx.Node, of: Lookup) -> Result:
    """Elementwise: each output axis means what the operand that knows most of it says."""
    shape = shape_of(node)
    result: Known = [None] * len(shape)
    for source in tensors(node):
        axes, sizes = of(source), shape_of(source)
        for back in range(1, min(len(axes), len(shape)) + 1):
            if same(sizes[-back], shape[-back]):
                old = result[-back]
                result[-back] = axes[-back] if old is None else better(old, axes[-back])
    return result


@rule(
    "aten::softmax",
    "aten::_softmax",
    "aten::log_softmax",
    "aten::layer_norm",
    "aten::rms_norm",
    "aten::group_norm",
    "aten::batch_norm",
    "aten::instance_norm",
    "aten::dropout",
    "aten::cumsum",
    "aten::_to_copy",
    "aten::to",
    "aten::contiguous",
    "aten::empty_like",
    "aten::zeros_like",
    "aten::ones_like",
    "aten::full_like",
    "aten::rand_like",
    "aten::randn_like",
    "aten::tril",
    "aten::triu",
    "aten::clone",
)
def like_first(node: fx.Node, of: Lookup) -> Result:
    """Row-wise or elementwise in the first tensor argument; custom operators whose output has its shape count too."""
    sources, shape = tensors(node), shape_of(node)
    if not sources or len(shape) != len(of(sources[0])):
        return [None] * len(shape)
    pairs = zip(of(sources[0]), shape_of(sources[0]), shape, strict=True)
    return [axis if same(old, new) else None for axis, old, new in pairs]
