"""The core of a model in a graph as Dynamo captured it: its attention, and what keeps it from being rewritten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx as fx

from lightint_compile.capture.foreign_tensors import foreign_values
from lightint_compile.capture.repeat_tracing import looks_like_a_write
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.remarks import source_of


@dataclass(frozen=True)
class Core:
    """Where the attention of a refused graph is, or what is in its way, and the change that would help.

    Attributes:
        source: the user's ``file:line``: of the first write to an input where there is one, else of the attention.
        fix: the smallest change to the user's code.
    """

    source: str
    fix: str


def core_of(graph: fx.GraphModule) -> Core | None:
    """The core of a captured graph; ``None`` for a fragment without attention."""
    attention = next(filter(_is_attention, _nodes(graph)), None)
    if attention is None:
        return None
    if foreign_values(graph):
        return Core(source_of(attention), "keep its weights and inputs plain tensors if it is to be rewritten")
    if _needs_gradients(graph):
        return Core(source_of(attention), "call it under torch.no_grad() or torch.inference_mode()")
    write = next(filter(_writes_to_an_input, graph.graph.nodes), None)
    if write is not None:
        return Core(source_of(write), "return new values instead of writing to an input, and let the caller keep them")
    return Core(source_of(attention), "call lightint_compile.explain(model, *inputs) for the details")


def _nodes(graph: fx.GraphModule) -> Iterator[fx.Node]:
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


_NAMES = ("attention", "attn")
_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")


def _is_attention(node: fx.Node) -> bool:
    """A fused call of any library, or a softmax that a product of matrices reads."""
    name = _name(node)
    if any(word in name for word in _NAMES):
        return True
    return name in ("softmax", "_softmax") and any(_name(user) in _PRODUCTS for user in _near(node))


_BETWEEN = frozenset(
    ("dropout", "to", "type_as", "type", "float", "half", "bfloat16", "nan_to_num", "masked_fill", "mul", "contiguous")
) | frozenset(("transpose", "permute", "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "softmax"))


def _near(node: fx.Node) -> set[fx.Node]:
    """What reads the value, through views, casts and dropout."""
    return reached([node], lambda known: known.users if _name(known).strip("_") in _BETWEEN else ())


def _writes_to_an_input(node: fx.Node) -> bool:
    if not looks_like_a_write(node):
        return False
    written: fx.Node | None = node
    while isinstance(written, fx.Node) and written.op != "placeholder":
        written = next(iter(written.args), None)  # type: ignore[assignment]
    return isinstance(written, fx.Node)


def _name(node: fx.Node) -> str:
    if node.op not in ("call_function", "call_method"):
        return ""
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target)).split(".")[0]


def _needs_gradients(graph: fx.GraphModule) -> bool:
    values = [node.meta.get("example_value") for node in graph.graph.nodes if node.op == "placeholder"]
    return torch.is_grad_enabled() and any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)
