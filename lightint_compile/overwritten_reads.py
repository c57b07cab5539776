"""Reads that Inductor would have behind writes that they stand in front of: there the compiled graph copies first.

Functionalisation gives every write a new value, so in Inductor's graph a tensor means what it held before. Inductor
then drops copies, as ``c.clone()`` is for it the value ``c``, and puts writes back in place. It looks whether something
reads the old value later. It does not look at the write itself, nor at the ``copy_`` that ends the graph for every
input that was written to:

* ``c[1:] = c[:-1].clone()`` is one loop that reads and writes ``c``, elements that were replaced among them. So are
  ``index_put``, ``index_copy`` and ``index_add``, into temporaries too.
* ``t = c.clone(); c.copy_(y); y.copy_(t)`` ends in ``c.copy_(y); y.copy_(c)``.

What is computed from an input and written as it is, is safe, but for what goes to strided windows: Inductor evaluates
that first. A view is nothing to evaluate; what it views is evaluated where it writes, and so is what ``index_put``
puts, and what is read later. The pass below makes each a copy, behind everything that drops copies and in front of what
writes in place. The same goes for what a backward pass gets: an input as it was, or a new value that is put in place of
the input, which the backward pass takes for memory that it may use.
"""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.utils import counters
from torch._guards import TracingContext
from torch._inductor import config as inductor_config
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.library import Library

from lightint_compile.passes.ir import view_windows
from lightint_compile.passes.ir.memory_sharing import is_write, maker_of
from lightint_compile.passes.ir.view_windows import viewed, window_of
from lightint_compile.torch_compat import graph_passes, keeps_copies_apart

aten = torch.ops.aten
higher = torch.ops.higher_order

_SCATTERS = {
    aten.slice_scatter.default: aten.slice.Tensor,
    aten.select_scatter.default: aten.select.int,
    aten.diagonal_scatter.default: aten.diagonal.default,
    aten.as_strided_scatter.default: aten.as_strided.default,
}
"""Operators that Inductor puts back in place, and the view of the first operand that they write to."""

_WRITTEN_ANYWHERE = frozenset((aten.index_put.default, aten._unsafe_index_put.default))
"""The same, where the places are data. Inductor evaluates what they put where it writes."""

_library = Library("lightint", "FRAGMENT")
_library.define("materialised(Tensor value) -> Tensor")
_library.impl("materialised", torch.clone, "CompositeExplicitAutograd")
_MATERIALISED = torch.ops.lightint.materialised.default
"""A copy that Inductor evaluates where it stands, by a kernel of its own where it keeps the order of such.

A clone may be evaluated in the loop that writes, or behind it.
"""

_COUNTED = "lightint_reads_first"
"""Inductor keeps what a compilation adds to its counters beside the program, and adds it for a kept program too."""


def settings() -> dict[str, Any]:
    """Configuration under which Inductor keeps reads in front of writes, behind passes that the user configured."""
    _lowered()
    return {"post_grad_custom_post_pass": graph_passes(inductor_config.post_grad_custom_post_pass, ReadsFirst())}


@functools.cache
def _lowered() -> None:
    """Tell Inductor how to compile a copy."""
    from torch._inductor.lowering import clone, fallback_handler, register_lowering

    apart = fallback_handler(aten.clone.default, add_to_fallback_set=False)

    @register_lowering(_MATERIALISED, type_promotion_kind=None)  # type: ignore[untyped-decorator]
    def _materialised(value: Any) -> Any:
        if keeps_copies_apart():
            return apart(value)
        copied = clone(value)
        copied.realize()
        return copied


def copies_made() -> int:
    """How many copies the programs that were compiled or loaded so far make."""
    return counters["inductor"][_COUNTED]


class ReadsFirst(CustomGraphPass):  # type: ignore[misc]
    """Makes copies of views whose memory is written to before they are read, or while they are."""

    def __call__(self, graph: fx.Graph) -> None:
        """Edit a functional graph, which may end in ``copy_`` to placeholders."""
        copies: dict[fx.Node, fx.Node] = {}
        reads = list(_overwritten(graph))
        put = {value for user, value in reads if keeps_copies_apart() or _is_put(user, value)}
        bases = list(_bases(graph))
        for _, value in (*reads, *bases):
            if value not in copies:
                copies[value] = _copied(graph, value, _MATERIALISED if value in put else aten.clone.default)
        for user, value in reads:
            _read_instead(user, value, copies[value])
        for user, base in bases:
            user.args = (copies[base], *user.args[1:])
        if copies:
            counters["inductor"][_COUNTED] += len(copies)

    def uuid(self) -> bytes:
        """Programs that Inductor keeps are found by it."""
        return bytes(get_hash_for_files((__file__, view_windows.__file__)))


def _is_put(user: fx.Node, value: fx.Node) -> bool:
    """Whether a clone would be evaluated too late: by a put, and where windows of two inputs change places."""
    if user.target in _SCATTERS:
        return _memory(value) is not _memory(user.args[0])  # type: ignore[arg-type]
    return user.target in _WRITTEN_ANYWHERE


def _overwritten(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Nodes that read what a write may have replaced by then, with the view that they read."""
    replaced = {node.args[0] for node in graph.nodes if _is_last_write(node)}
    gone: set[Any] = set()
    order = {node: place for place, node in enumerate(graph.nodes)}
    readers = _readers(graph) if any(node.target in _WRITTEN_ANYWHERE for node in graph.nodes) else {}
    for node in graph.nodes:
        if _is_last_write(node):
            target, value = node.args[:2]
            if isinstance(value, fx.Node) and value is not target and _shows(value, gone | {target}):
                yield node, value
            gone.add(target)
        elif (written := _written(node)) is not None:
            memories = {_memory(each) for each in _nodes(written)}
            in_place = {each for each in memories if each.op != "placeholder" or each in replaced}
            if node.target in _WRITTEN_ANYWHERE and in_place:
                yield from _waiting(node, in_place, order, readers)
                continue
            late = in_place | replaced if node.target in _SCATTERS else in_place
            for value in dict.fromkeys(_nodes(_others(node))) if late else ():
                if (_shows(value, late) and not _is_apart(node, value)) or _shifts(node, value, late):
                    yield node, value
    if replaced:
        yield from ((graph.output_node(), value) for value in _taken(graph, replaced))


def _bases(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Nodes that write to a copy of an input which is replaced, with what they take for that copy: the input itself.

    A clone is dropped that only a write reads. What becomes of the input by a chain of writes is written in place.
    """
    ends = [node for node in graph.nodes if _is_last_write(node)]
    replaced = {node.args[0] for node in ends}
    in_place: set[Any] = set()
    for node in ends:
        value = node.args[1]
        while isinstance(value, fx.Node) and _written(value) is not None and value not in in_place:
            in_place.add(value)
            value = value.args[0] if value.args else None
    for node in graph.nodes if replaced else ():
        base = node.args[0] if node not in in_place and _has_a_base(node) else None
        if isinstance(base, fx.Node) and _memory(base) in replaced:
            yield node, base


def _has_a_base(node: fx.Node) -> bool:
    return node.target in _SCATTERS or node.target in _WRITTEN_ANYWHERE


def _readers(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What is computed from a memory at once, in order: no views."""
    memories = {node: _memory(node) for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
    found: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node, memory in memories.items():
        if memory is node:
            for read in dict.fromkeys(memories[each] for each in node.all_input_nodes if each in memories):
                found[read].append(node)
    return found


def _waiting(
    node: fx.Node, memories: set[Any], order: dict[fx.Node, int], readers: dict[fx.Node, list[fx.Node]]
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Uses of what is computed from the memory that a node writes to, by the node and behind it."""
    place = order[node]
    for value in dict.fromkeys(_nodes(_others(node))):
        if _follows(value, memories):
            yield node, value
    computed = {value for memory in memories for value in readers.get(memory, ()) if order[value] < place}
    for value in sorted(computed, key=order.__getitem__):
        yield from ((user, value) for user in value.users if _lasts(user, order, place))


def _lasts(node: fx.Node, order: dict[fx.Node, int], place: int) -> bool:
    """Whether something behind a place in the graph depends on a node."""
    waiting, seen = [node], {node}
    while waiting:
        each = waiting.pop()
        if order[each] > place:
            return True
        new = [user for user in each.users if user not in seen]
        waiting += new
        seen.update(new)
    return False


def _shows(value: fx.Node, memories: set[Any]) -> bool:
    """Whether a value views one of these, or what is computed from one, which Inductor evaluates where it writes."""
    memory, views = viewed(value)
    return memory in memories or (bool(views) and _follows(memory, memories))


def _shifts(node: fx.Node, value: fx.Node, memories: set[Any]) -> bool:
    """Whether a node writes to a strided window what is computed from other places of the same memory.

    Inductor evaluates that in the loop that writes; what it writes to slices and diagonals it evaluates first.
    """
    if node.target is not aten.as_strided_scatter.default:
        return False
    waiting, seen = [value], {value}
    while waiting:
        each = waiting.pop()
        if _memory(each) in memories:
            if not _is_apart(node, each):
                return True
            continue
        if not _is_pointwise(each) and _follows(each, memories):
            return True
        new = [source for source in each.all_input_nodes if source not in seen]
        waiting += new
        seen.update(new)
    return False


_KEEP_PLACES = frozenset((aten.copy.default, aten.clone.default, aten._to_copy.default))


def _is_pointwise(node: fx.Node) -> bool:
    """Whether each element is made of those in the same place."""
    is_tagged = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return is_tagged or node.target in _KEEP_PLACES


def _follows(value: fx.Node, memories: set[Any]) -> bool:
    """Whether a tensor is computed from one of these, or is one."""
    waiting, seen = [value], {value}
    while waiting:
        node = waiting.pop()
        if node in memories:
            return isinstance(value.meta.get("val"), torch.Tensor)
        new = [each for each in node.all_input_nodes if each not in seen]
        waiting += new
        seen.update(new)
    return False


def _taken(graph: fx.Graph, replaced: set[Any]) -> Iterator[fx.Node]:
    """Results that are an input as it was, and what a backward pass gets of what an input has become.

    The backward pass may write to what it gets, unless that is an input by the functional graph.
    """
    results = graph.output_node().args[0]
    assert isinstance(results, (list, tuple))
    become = {
        _memory(node.args[1]) for node in graph.nodes if _is_last_write(node) and isinstance(node.args[1], fx.Node)
    }
    for place, value in enumerate(results):
        if isinstance(value, fx.Node):
            memory = _memory(value)
            is_saved = place >= _number_asked_for() and memory in become and _written(maker_of(value)) is not None
            if memory in replaced or is_saved:
                yield value


def _number_asked_for() -> int:
    """How many results of the graph are the caller's; what a backward pass gets is behind them."""
    context = TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    return sys.maxsize if metadata is None else int(metadata.num_forward)


def _is_last_write(node: fx.Node) -> bool:
    """Whether a node gives an input the value that it has behind the graph."""
    return node.target is aten.copy_.default and isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"


def _written(node: fx.Node) -> Any:
    """The arguments that a node writes to, should Inductor put it in place; ``None`` for one that never is."""
    if node.op != "call_function":
        return None
    if node.target is higher.auto_functionalized_v2:
        return node.kwargs["_all_bases"]
    if node.target is higher.triton_kernel_wrapper_functional:
        return _kernel_arguments(node, written=True)
    name = node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""
    is_one = node.target in _SCATTERS or node.target in _WRITTEN_ANYWHERE or name.startswith("aten::_foreach_")
    return node.args[0] if is_one or is_write(node) else None


def _others(node: fx.Node) -> Any:
    """The arguments of such a node that it only reads."""
    if node.target is higher.auto_functionalized_v2:
        return {name: value for name, value in node.kwargs.items() if name != "_all_bases"}
    if node.target is higher.triton_kernel_wrapper_functional:
        return _kernel_arguments(node, written=False)
    return node.args[1:], node.kwargs


def _kernel_arguments(node: fx.Node, *, written: bool) -> dict[str, Any]:
    """The tensors that a launch of a Triton kernel writes to, or its other arguments."""
    arguments, names = node.kwargs["kwargs"], node.kwargs["tensors_to_clone"]
    return {name: value for name, value in arguments.items() if (name in names) == written}  # type: ignore[union-attr, operator]


def _read_instead(node: fx.Node, value: fx.Node, copied: fx.Node) -> None:
    """Have ``node`` read ``copied``. What it writes to stays."""

    def changed(arguments: Any) -> Any:
        return fx.map_arg(arguments, lambda each: copied if each is value else each)

    if node.op == "output":
        node.args = changed(node.args)
    elif node.target is higher.auto_functionalized_v2:
        node.kwargs = {**node.kwargs, **changed(_others(node))}
    elif node.target is higher.triton_kernel_wrapper_functional:
        arguments = {**_kernel_arguments(node, written=True), **changed(_others(node))}
        node.kwargs = {**node.kwargs, "kwargs": arguments}
    else:
        node.args, node.kwargs = (node.args[0], *changed(node.args[1:])), changed(node.kwargs)


def _nodes(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return found


def _memory(node: fx.Node) -> fx.Node:
    return viewed(node)[0]


def _is_apart(node: fx.Node, value: fx.Node) -> bool:
    """Whether a scatter writes exactly where ``value`` is read, element for element, or nowhere that it is."""
    if node.target not in _SCATTERS:
        return False
    base, cut = viewed(node.args[0])  # type: ignore[arg-type]
    target = window_of(base, [*cut, (_SCATTERS[node.target], node.args[2:], dict(node.kwargs))])
    memory, views = viewed(value)
    if memory is not base:
        return False
    read = window_of(memory, views)
    return target.views == read.views or target.misses(read)


def _copied(graph: fx.Graph, value: fx.Node, copy: Any) -> fx.Node:
    """A copy of a view, in front of everything that may write to its memory."""
    inputs = graph.find_nodes(op="placeholder")
    with graph.inserting_after(inputs[-1] if value in inputs else value):
        copied = graph.call_function(copy, (value,))
    copied.meta = {**value.meta, "val": value.meta["val"].clone()}
    return copied
