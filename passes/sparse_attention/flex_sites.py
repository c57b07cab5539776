"""``flex_attention`` as a site: its mask is a small graph of the numbers of a query and of a key.

Where that graph reads nothing but these numbers and constants, it says which frames see which in every call, and the
site is that of a mask of frames. What reads an input is data, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lightint_compile.passes.analysis.attention_sites import ATTENTION, AttentionSite
from lightint_compile.passes.analysis.flex_calls import FlexCall
from lightint_compile.passes.ir.constant_values import constant_of
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.op_families import aten, is_pointwise
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.sparse_attention.frame_masks import FrameMask, frames_seen, is_square

_MOST_AT_ONCE = 1 << 22
"""Pairs of a query and a key whose mask is computed at once."""


@dataclass(frozen=True, eq=False)
class FlexSite:
    """One call.

    Attributes:
        result: the node that holds its attention.
        site: attention with its operands, without a mask; nothing reads it.
        mask: the graph of its mask, of the numbers of batch, head, query and key, and of ``tables``.
        tables: the tensors that the mask reads.
        why: why it cannot be rewritten, where that is known at once.
    """

    result: fx.Node
    site: fx.Node
    mask: fx.GraphModule
    tables: tuple[fx.Node, ...]
    why: str

    def frames(self, site: AttentionSite) -> FrameMask | str:
        """The frames that each frame sees, or in words why that is not known."""
        if self.why:
            return self.why
        values = [constant_of(table) for table in self.tables]
        unknown = [table.name for table, value in zip(self.tables, values, strict=True) if value is None]
        if unknown:
            return f"its mask_mod reads {', '.join(unknown)}, which only the data tell"
        if not is_square(site):
            return "its sizes are not known when compiled, or its queries are not its keys"
        keys = torch.arange(int(site.key.meta["val"].shape[2]))[None]

        none, most = torch.zeros((), dtype=torch.int64), max(_MOST_AT_ONCE // keys.shape[1], 1)

        def rows(start: int, stop: int) -> Tensor:
            some = torch.arange(start, stop)[:, None].split(most)
            with _disable_current_modes(), torch.no_grad():
                found = [self.mask(none, none, few, keys, *values).expand(len(few), keys.shape[1]) for few in some]
            return torch.cat(found)

        return frames_seen(site, rows, self) or "its mask_mod is not one of frames that see themselves"

    def of_queries(self, start: Any, stop: Any, rewriter: Rewriter) -> fx.Node:
        """The mask of some of the queries, as ``scaled_dot_product_attention`` takes it."""
        device = self.site.meta["val"].device
        queries, keys = (sizes_of(node)[2] for node in self.site.args[:2])  # type: ignore[arg-type]
        count = rewriter.call(aten.arange.default, queries, device=device)
        some = rewriter.call(aten.slice.Tensor, count, 0, start, stop)
        column = rewriter.call(aten.unsqueeze.default, some, 1)
        row = rewriter.call(aten.unsqueeze.default, rewriter.call(aten.arange.default, keys, device=device), 0)
        none = rewriter.call(aten.zeros.default, [], dtype=torch.int64, device=device)
        found = _inlined(self.mask.graph, (none, none, column, row, *self.tables), rewriter)
        size = [sizes_of(some)[0], keys]
        return rewriter.call(aten.expand.default, found, size)


def flex_sites(program: Program, rewriter: Rewriter) -> list[FlexSite]:
    """A site for each ``flex_attention``, in front of the call."""
    calls = [call for node in program.graph.nodes if (call := FlexCall.of(node)) is not None]
    found = [_site(call, rewriter) for call in calls]
    if found:
        program.changed()
    return found


def _site(call: FlexCall, rewriter: Rewriter) -> FlexSite:
    with rewriter.at(call.node, rule="flex-attention"):
        operands = (call.query, call.key, call.value)
        site = rewriter.call(ATTENTION, *operands, scale=call.scale, enable_gqa=call.is_grouped)
    tables = tuple(each for each in call.tables if isinstance(each, fx.Node))
    why = _why_not(call)
    if len(tables) != len(call.tables):
        why = why or "its mask_mod reads a number of the call"
    return FlexSite(call.results[0], site, call.mask, tables, why)


def _why_not(call: FlexCall) -> str:
    """What of a call is more than attention under a mask of queries and keys."""
    if call.changes_scores:
        return "its score_mod changes the scores"
    if call.reads_more:
        return "its log-sum-exp is read"
    if call.allows_all and not call.is_one_block:
        return "not its mask_mod but its blocks say what is seen, and they are data"
    batch, head, *_ = call.mask.graph.find_nodes(op="placeholder")
    if any(user.target not in _LIKE for each in (batch, head) for user in each.users):
        return "its mask_mod differs between batches or heads"
    if not all(_is_of_numbers(each) for each in call.mask.graph.nodes if each.op not in ("placeholder", "output")):
        return "its mask_mod does more than compare numbers"
    return ""


_LIKE = frozenset({aten.new_ones.default, aten.new_full.default})
"""What reads nothing of a tensor but its dtype and device."""

_MORE = _LIKE.union(
    {aten.floor_divide.default, aten.floor_divide.Scalar, aten.full.default, aten.scalar_tensor.default}
)
"""Beside operations that say of themselves that they are pointwise."""


def _is_of_numbers(node: fx.Node) -> bool:
    """Whether an operation on single numbers does the same to tensors of them."""
    if node.op != "call_function":
        return False
    if node.target is aten.index.Tensor:
        return all(each is not None for each in node.args[1])  # type: ignore[union-attr]
    return is_pointwise(node) or node.target in _MORE


def _inlined(graph: fx.Graph, inputs: Sequence[fx.Node], rewriter: Rewriter) -> fx.Node:
    """The result of a graph of pointwise operations, as nodes of the program."""
    known: dict[fx.Node, Any] = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    read: Callable[[Any], Any] = lambda value: fx.map_arg(value, known.__getitem__)  # noqa: E731
    for node in graph.nodes:
        if node.op == "call_function":
            known[node] = rewriter.call(node.target, *read(node.args), **read(dict(node.kwargs)))
    result: fx.Node = read(graph.output_node().args[0])
    return result
