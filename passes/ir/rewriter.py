"""New nodes with a fake value, the user's source line and the module path of what they replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.fake_values import another
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.memory_sharing import memory_order, output_memory
from lightint_compile.passes.ir.program import Program, fake_mode_of, faking
from lightint_compile.passes.ir.provenance import MADE_BY, origin_of

aten = torch.ops.aten

KEPT_META = ("stack_trace", "nn_module_stack", "source_fn_stack", "custom")


def stored_in(order: Sequence[int], value: fx.Node, call: Callable[..., fx.Node]) -> fx.Node:
    """A copy of ``value`` whose axes are stored in ``order``, the slowest first."""
    turned = call(aten.permute.default, value, list(order)) if list(order) != sorted(order) else value
    copied = call(aten.clone.default, turned, memory_format=torch.contiguous_format)
    return copied if turned is value else call(aten.permute.default, copied, [order.index(a) for a in sorted(order)])


class Rewriter:
    """Inserts nodes that satisfy the contract of :class:`~passes.base.Pass`.

    >>> with rewriter.at(old_node, rule="permute-key"):
    ...     new = rewriter.call(torch.ops.aten.scaled_dot_product_attention.default, q, k, v, scale=1.0)
    >>> rewriter.replace(old_node, new)
    """

    def __init__(self, program: Program, pass_name: str) -> None:
        self._graph = program.graph
        self._pass_name = pass_name
        self._mode = fake_mode_of(program.graph.nodes)
        self._looks = program.memory(Looks)
        self._known: dict[Any, Any] = {}
        self._like: fx.Node | None = None
        self._rule = ""

    @contextmanager
    def at(self, node: fx.Node, *, rule: str = "", after: bool = False, like: fx.Node | None = None) -> Iterator[None]:
        """Insert before (or after) ``node``, and inherit source line and module path: its own, or those of ``like``."""
        self._like, self._rule = like or node, rule
        with self._graph.inserting_after(node) if after else self._graph.inserting_before(node):
            yield
        self._like, self._rule = None, ""

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A ``call_function`` node whose ``meta["val"]`` is computed from its arguments' fake values."""
        node = self._graph.call_function(target, args, kwargs)
        node.meta.update(self._inherited())
        node.meta["val"] = self.evaluate(target, args, kwargs)
        return node

    def evaluate(self, target: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The fake value of a call, without making a node.

        Equal calls are evaluated once: thirty identical blocks ask the same thirty times.
        """
        if not isinstance(target, torch._ops.OpOverload):
            return self._evaluated(target, args, kwargs)
        key = (target, self._looks.arguments(args), self._looks.arguments(kwargs))
        if key not in self._known:
            value = self._evaluated(target, args, kwargs)
            if free_unbacked_symbols(pytree.tree_leaves(value)):
                return value  # sizes that only the data tell: every call has its own
            self._known[key] = value
        return another(self._known[key])

    def _evaluated(self, target: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        real_args, real_kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (tuple(args), kwargs))
        with faking(self._mode):
            return target(*real_args, **real_kwargs)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Give every user of ``old`` the value ``new`` instead, and erase ``old`` and what only it used.

        An output keeps the memory order of ``old``: the code after the graph may view it.
        """
        order = memory_order(old.meta["val"]) if old in output_memory(self._graph) else None
        if order is not None and order != memory_order(new.meta["val"]):
            with self.at(new.next, rule="memory-order"):
                new = stored_in(order, new, self.call)
        old.replace_all_uses_with(new, propagate_meta=False)
        self.erase_unused(old)

    def erase_unused(self, node: fx.Node) -> None:
        """Erase ``node`` if nothing reads it, then its producers by the same rule. Placeholders stay."""
        pending = [node]
        while pending:
            candidate = pending.pop()
            if candidate._erased or candidate.users or candidate.op in ("placeholder", "output"):
                continue
            if not is_pure(candidate):
                continue
            producers = list(candidate.all_input_nodes)
            self._graph.erase_node(candidate)
            pending.extend(producers)

    def _inherited(self) -> dict[str, Any]:
        if self._like is None:
            return {}
        kept = {key: self._like.meta[key] for key in KEPT_META if key in self._like.meta}
        mark = {"pass": self._pass_name, "rule": self._rule, "from": self._like.name, "origin": origin_of(self._like)}
        return kept | {MADE_BY: mark}
