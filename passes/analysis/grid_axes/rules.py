"""How each operation carries the meaning of axes from its inputs to its output.

A rule takes the node and the axes known so far and gives the axes of its output: one entry an axis, ``None`` where
nothing is known, or a list of those for an operation with several outputs. The caller checks what a rule says against
the recorded shape, so that a wrong guess becomes "unknown", never a wrong grid.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.grid_axes.axes import Axes, Axis, better
from lightint_compile.passes.ir.op_arguments import sizes_of, tensors
from lightint_compile.passes.ir.sizes import same

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


@rule("aten::copy", "aten::fill", "aten::where", "aten::masked_fill", "aten::__and__", "aten::__or__", "aten::pow")
def broadcast(node: fx.Node, of: Lookup) -> Result:
    """Elementwise: each output axis means what the operand that knows most of it says."""
    shape = sizes_of(node)
    result: Known = [None] * len(shape)
    for source in tensors(node):
        axes, sizes = of(source), sizes_of(source)
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
    sources, shape = tensors(node), sizes_of(node)
    if not sources or len(shape) != len(of(sources[0])):
        return [None] * len(shape)
    pairs = zip(of(sources[0]), sizes_of(sources[0]), shape, strict=True)
    return [axis if same(old, new) else None for axis, old, new in pairs]
