"""Equal values of steps and blocks are computed once; what depends on text or on sizes alone is kept between calls.

An unrolled denoising loop recomputes context tilings, RoPE tables, camera matrices and text projections in each step,
and a model often rebuilds them in each block. Equal operations on equal operands are equal values: global value
numbering keeps the first of them. The rest is a mark for the memo: nodes whose values change only with the
prompt, or with sizes.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._ops import HigherOrderOperator

from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.hoist_invariants.step_memo import mark_steps
from lightint_compile.passes.hoist_invariants.tables import mark_tables
from lightint_compile.passes.hoist_invariants.text_memo import mark_text
from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.fake_values import frozen
from lightint_compile.passes.ir.flops import flops_of
from lightint_compile.passes.ir.memory_sharing import maker_of
from lightint_compile.passes.ir.node_queries import is_lookup, is_scalar
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, at, generic_path

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class HoistInvariants(Pass):
    """Merges equal pure computations, and marks what depends on text inputs or on sizes only.

    Random and mutating operations stay; so does a copy whose merging would make two outputs share memory.

    Attributes:
        memo: mark nodes that depend on text inputs and parameters only with ``meta["memo"] = "text"``, tables that
            follow from sizes and constants with ``"sizes"``, and in a program that is one denoising step what depends
            on neither the latent nor the timestep with ``"steps"``.
    """

    name: ClassVar[str] = "hoist-invariants"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    memo: bool = True

    def run(self, program: Program) -> PassResult:
        """See :meth:`~passes.base.Pass.run`."""
        numbering = _Numbering(program.graph)
        numbering.merge()
        remarks = [*_hoisted(numbering), *_kept_apart(numbering)]
        marks = (mark_text, mark_tables, mark_steps) if self.memo else ()
        marked = [remark for mark in marks for remark in mark(program, self.name)]
        is_marked = any(remark.kind is RemarkKind.APPLIED for remark in marked)
        return PassResult(bool(numbering.copies) or is_marked, (*remarks, *marked))


@dataclass
class _Numbering:
    """Global value numbering in graph order: the first node of a value survives, and stands before all its readers.

    Attributes:
        copies: how many other nodes each survivor replaced.
        places: where each survivor stood before it was moved out of the modules that share it.
        apart: copies that stayed because two outputs would have shared memory.
    """

    graph: fx.Graph
    copies: Counter[fx.Node] = field(default_factory=Counter)
    places: dict[fx.Node, dict[str, Any]] = field(default_factory=dict)
    apart: list[fx.Node] = field(default_factory=list)

    def merge(self) -> None:
        """Merge every pure copy into the first of its kind."""
        outputs = {maker_of(leaf) for leaf in pytree.tree_leaves(self.graph.output_node().args) if _is_node(leaf)}
        first: dict[Any, fx.Node] = {}
        for node in list(self.graph.nodes):
            if not _is_pure(node):
                continue
            survivor = first.setdefault(_value_number(node), node)
            if survivor is node:
                continue
            mine, other = maker_of(node), maker_of(survivor)
            if mine is not other and mine in outputs and other in outputs:
                self.apart.append(node)
                continue
            if mine in outputs:
                outputs.add(other)
            self._replace(node, survivor)

    def _replace(self, node: fx.Node, survivor: fx.Node) -> None:
        self.places.setdefault(survivor, at(survivor))
        _widen_place(survivor, node)
        node.replace_all_uses_with(survivor, propagate_meta=False)
        self.graph.erase_node(node)
        self.copies[survivor] += 1


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


_UNINITIALISED = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.empty_permuted.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}


def _is_pure(node: fx.Node) -> bool:
    """Whether equal arguments give equal values, and nothing else happens."""
    target = node.target
    if node.op != "call_function" or isinstance(target, HigherOrderOperator) or target in _UNINITIALISED:
        return False
    if isinstance(target, torch._ops.OpOverload):
        return is_pure(node)
    return target is operator.getitem or is_scalar(node)


def _value_number(node: fx.Node) -> Any:
    return node.target, frozen(node.args), frozen(node.kwargs)


def _widen_place(survivor: fx.Node, copy: fx.Node) -> None:
    """Move the survivor to the module that contains both: a value that all blocks share belongs to none of them."""
    mine, other = (n.meta.get("nn_module_stack") or {} for n in (survivor, copy))
    common = {}
    for (key, place), (_, second) in zip(mine.items(), other.items(), strict=False):
        if place != second:
            break
        common[key] = place
    if len(common) < len(mine):
        survivor.meta["nn_module_stack"] = common


def _is_cheap(node: fx.Node) -> bool:
    """Whether a node makes no values of its own worth a remark: a view, a fill, a size, an element of a tuple."""
    return is_scalar(node) or node.target is operator.getitem or is_lookup(node)


def _hoisted(numbering: _Numbering) -> Iterator[Remark]:
    """One remark for each place and number of copies."""
    groups: dict[tuple[str, int], list[fx.Node]] = defaultdict(list)
    for node, copies in numbering.copies.items():
        if not _is_cheap(node):
            groups[generic_path(numbering.places[node]["module_path"]), copies + 1].append(node)
    for (module_path, copies), nodes in groups.items():
        flops = sum(map(flops_of, nodes))
        yield Remark(
            kind=RemarkKind.APPLIED,
            pass_name=HoistInvariants.name,
            rule="common-value",
            message=f"computed once instead of {copies} times: {_names(nodes)}",
            module_path=module_path,
            source=numbering.places[nodes[0]]["source"],
            args={"copies": copies, "operations": len(nodes)},
            flops_before=flops * copies,
            flops_after=flops,
            numerics=Numerics.EXACT,
        )


def _names(nodes: Iterable[fx.Node]) -> str:
    names = list(dict.fromkeys(str(getattr(n.target, "overloadpacket", n.target)).removeprefix("aten.") for n in nodes))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _kept_apart(numbering: _Numbering) -> Iterator[Remark]:
    for node in numbering.apart:
        yield Remark(
            kind=RemarkKind.MISSED,
            pass_name=HoistInvariants.name,
            rule="common-value",
            message="computed again because two outputs would share memory otherwise",
            hint="return the value once",
            flops_before=flops_of(node),
            **at(node),
        )
