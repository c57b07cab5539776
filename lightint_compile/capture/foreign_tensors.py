"""Tensors whose class says itself what operations on them do: quantised weights, ``DTensor``, jagged nested tensors.

Such a tensor has no memory that compiled code could read, and what it computes is its own. AOTAutograd takes it apart
into the plain tensors that it holds; the capture does not, and rewrites reason about plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor


def is_foreign(value: Any) -> bool:
    """Whether a value is a tensor with operations of its own; a fake tensor stands for a plain one."""
    if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
        return False
    return type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def is_inside_an_operation() -> bool:
    """Whether this thread runs the operations of such a class: Dynamo compiles those too, where no trace can watch."""
    return bool(torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.PreDispatch))


INSIDE = "it is part of what a tensor's class says that operations on it do, where the capture cannot trace"
"""Why a graph is left alone that is compiled there."""


def foreign_values(graph_module: fx.GraphModule, inputs: Sequence[Any] = ()) -> dict[fx.Node, torch.Tensor]:
    """Those in a graph of Dynamo's: among its inputs, its constants and what it makes itself.

    Args:
        inputs: real ones of the graph, for placeholders that a trace left no value with.
    """
    given = dict(zip(graph_module.graph.find_nodes(op="placeholder"), inputs, strict=False))
    return {node: value for node, value in _values(graph_module, given) if is_foreign(value)}


def _values(graph_module: fx.GraphModule, given: Mapping[fx.Node, Any]) -> Iterator[tuple[fx.Node, Any]]:
    for part in graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            yield node, node.meta.get("example_value")
            yield node, attrgetter(str(node.target))(part) if node.op == "get_attr" else given.get(node)


def told(found: Mapping[str, torch.Tensor]) -> str:
    """Why a graph is left alone in which these are, each by what it is called."""
    name, kind = next((name, type(value)) for name, value in found.items())
    more = len(found) - 1
    others = f" ({more} more {'is no plain tensor' if more == 1 else 'are no plain tensors'})" if more else ""
    return (
        f"{name} is a {kind.__module__}.{kind.__qualname__}{others}, whose class says what operations on it do, and "
        "the rewrites are for plain tensors"
    )
