"""The surroundings of a site: writes that forbid a rewrite, views that must follow one, chains that are left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.contraction import is_contraction
from lightint_compile.passes.canonicalize_attention.layout import is_layout
from lightint_compile.passes.canonicalize_attention.readers import live_readers
from lightint_compile.passes.canonicalize_attention.site import Site
from lightint_compile.passes.ir.matching import MatchError
from lightint_compile.passes.ir.program import Program

aten = torch.ops.aten

#: How many operations may stand between a product and a softmax for the two to count as a chain.
_REACH = 12

_SOFTMAXES = frozenset(
    {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, aten.log_softmax.int, aten.exp.default}
)


def inductor_guard(program: Program) -> bool:
    """Whether the graph still holds a product, a softmax and a product in a row, outside any fused call.

    Inductor 2.13 fuses such a chain by a pattern in which the order of a permutation is a wildcard, so that a key
    written ``k.permute(0, 2, 3, 1)`` is read as ``k.transpose(-2, -1)`` and the result is silently wrong
    (pytorch#195320). Whoever lowers a graph for which this is true must turn those patterns off
    (``disabled_passes="pass_pattern_0"``).
    """
    return any(near_attention(node) for node in program.calls(*_SOFTMAXES))


def near_attention(softmax: fx.Node) -> bool:
    """Whether a product feeds ``softmax`` and a product reads it, within a few operations."""
    above = _reaches(softmax, lambda node: node.all_input_nodes)
    return above and _reaches(softmax, live_readers)


def _reaches(start: fx.Node, neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> bool:
    seen, frontier = {start}, [start]
    for _ in range(_REACH):
        frontier = [node for known in frontier for node in neighbours(known) if node not in seen]
        if any(map(is_contraction, frontier)):
            return True
        frontier = [node for node in frontier if node.op == "call_function" and _is_small(node)]
        seen.update(frontier)
    return False


def _is_small(node: fx.Node) -> bool:
    """Not one of the operations that end a neighbourhood: another fused call, a linear layer, a convolution."""
    name = str(getattr(node.target, "__name__", node.target))
    return not any(word in name for word in ("linear", "convolution", "conv", "attention", "embedding", "norm"))


def check_mutation(site: Site) -> None:
    """Raise :class:`MatchError` when something in the graph writes to a tensor that the site reads."""
    region = {node for path in (site.query, site.key, site.value) for node in path.nodes}
    region |= {*site.interior, *(mask.node for mask in site.masks)}
    for node in site.result.graph.nodes:
        for written in _written(node):
            if not region.isdisjoint(_bases(written)):
                raise MatchError(
                    "mutation", node, f"{node.name} writes to a tensor the attention reads", "do not write in place"
                )


def _written(node: fx.Node) -> list[fx.Node]:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    given = zip(schema.arguments, node.args, strict=False)
    written = [value for slot, value in given if slot.alias_info is not None and slot.alias_info.is_write]
    return [value for value in written if isinstance(value, fx.Node)]


def _bases(node: fx.Node) -> list[fx.Node]:
    """A tensor and the tensors it is a view of."""
    bases = [node]
    while isinstance(bases[-1], fx.Node) and bases[-1].op == "call_function" and is_layout(bases[-1]):
        bases.append(bases[-1].args[0])  # type: ignore[arg-type]
    return bases


def reshape_views(result: fx.Node) -> None:
    """Let the views of ``result`` copy where they must: a fused call lays its result out in memory as it likes."""
    pending = [result]
    while pending:
        for reader in pending.pop().users:
            if reader.op == "call_function" and is_layout(reader) and reader.target is not aten.clone.default:
                if reader.target is aten.view.default:
                    reader.target = aten.reshape.default
                pending.append(reader)
