"""Running a torch-level graph under ``make_fx``: equal operations are traced once, and their nodes copied.

A trace sends every operation through some ten layers of dispatch, milliseconds each. A world model calls the same few
hundred operations on the same sizes in every block of every step, so what an operation became the first time is kept
and copied: the nodes it left, on other operands.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.fx.traceback import set_current_meta

from lightint_compile.capture.bounded_sizes import settled
from lightint_compile.capture.control_flow import wrapped_call
from lightint_compile.capture.copied_memory import Copy, Memories
from lightint_compile.capture.explicit_autocast import MODE_SWITCHES, ModeInterpreter
from lightint_compile.capture.functional import inner
from lightint_compile.capture.normal_form import LEFTOVERS
from lightint_compile.passes.ir.fake_values import another, size_of

_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

#: What is taken apart no further; anything else pytree is asked about.
_LEAVES = (Copy, FunctionalTensor, torch.SymInt, *_PLAIN)

#: Modules whose functions mean the same in every call; a user's function may not.
_KNOWN = ("torch", "_operator", "operator", "math", "builtins", "einops")


@dataclass(frozen=True)
class _Local:
    """A node of the kept operation, by number."""

    index: int


@dataclass(frozen=True)
class _Operand:
    """A tensor operand, by position among the leaves of the arguments."""

    index: int


@dataclass(frozen=True)
class _Kept:
    """What one operation became.

    Attributes:
        calls: target, arguments and keyword arguments of each node, operands as places; nodes that compute sizes stay.
        values: the fake value of each node.
        results: the leaves of the result, as places or plain values.
        written: operands that were written to, and what they are then.
        views: whether a result may share memory with an operand.
    """

    calls: tuple[tuple[Any, Any, Any], ...]
    values: tuple[Any, ...]
    results: tuple[Any, ...]
    spec: pytree.TreeSpec
    written: tuple[tuple[int, Any], ...]
    views: bool


def _for_trace(values: Any) -> Any:
    """``values`` as a trace reads them."""
    mode = get_proxy_mode()
    assert mode is not None
    return pytree.tree_map_only(Copy, lambda copy: copy.functional(mode.tracer), values)


class RepeatingInterpreter(ModeInterpreter):
    """Interprets a graph under ``make_fx(pre_dispatch=True)`` and functionalisation.

    Args:
        copies_views: whether operations whose result may share memory with an operand are copied too. A copied view has
            memory of its own, so nothing may be written to what it shows.

    Raises:
        WritesToAView: something was, under ``copies_views``.
    """

    def __init__(self, graph_module: fx.GraphModule, *, copies_views: bool) -> None:
        super().__init__(graph_module)
        self._copies_views = copies_views
        self._known: dict[Any, _Kept | None] = {}
        self._memories = Memories()
        self._copies: list[tuple[fx.Node, Any]] = []

    def run_node(self, n: fx.Node) -> Any:
        """As of any interpreter, which would make ready to log each node as well."""
        with set_current_meta(n, f"Interpreter_{type(self).__name__}"):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            return getattr(self, n.op)(n.target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Copy what an equal call became, or trace it; a graph that is only wrapped is run in its place."""
        wrapped = wrapped_call(target, args, kwargs)
        if wrapped is not None:
            return self._inlined(*wrapped)
        if target is torch.sym_max:
            return settled(super().call_function(target, args, kwargs))
        if not _is_known(target):
            return self._traced(target, args, kwargs, super().call_function)
        return self._repeated(target, args, kwargs, super().call_function)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As :meth:`call_function`."""
        return self._repeated(target, args, kwargs, super().call_method)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Trace it."""
        return self._traced(target, args, kwargs, super().call_module)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The results as tensors."""
        return super().output(target, *_for_trace((args, kwargs)))

    def unread(self) -> list[torch.Tensor]:
        """Tensors that were computed and never read."""
        last = [node for node in self.graph.nodes if node.op not in ("placeholder", "output") and not node.users]
        values = _for_trace([self.env.get(node) for node in last])
        return [value for value in values if isinstance(value, torch.Tensor)]

    def give_values(self) -> None:
        """Give each copied node a value of its own, which it shares with the operation that it is a copy of until then.

        After a trace: in one, torch looks for every value of a node through the modes of the trace.
        """
        for node, shared in self._copies:
            if node.meta["val"] is shared:
                node.meta["val"] = another(shared)

    def _inlined(self, graph_module: fx.GraphModule, operands: Sequence[Any]) -> Any:
        inside = RepeatingInterpreter(graph_module, copies_views=self._copies_views)
        inside._known, inside._memories, inside._copies = self._known, self._memories, self._copies
        return inside.run(*operands)

    def _traced(self, target: Any, args: Any, kwargs: Any, trace: Callable[..., Any]) -> Any:
        args, kwargs = _for_trace((args, kwargs))
        return self._memories.written(pytree.tree_leaves((args, kwargs)), lambda: trace(target, args, kwargs))[0]

    def _repeated(self, target: Any, args: Any, kwargs: Any, trace: Callable[..., Any]) -> Any:
        mode = get_proxy_mode()
        assert mode is not None
        leaves = list[Any]()
        form = _taken_apart((args, kwargs), leaves)
        leaves = [leaf.now() if isinstance(leaf, Copy) else leaf for leaf in leaves]
        with torch._C.DisableTorchFunction():
            key = _key((target, form, _modes()), leaves, self._memories, mode.tracer)
            kept = None if key is None else self._known.get(key)
            if kept is not None and all(self._can_be_written(leaves[index]) for index, _ in kept.written):
                return self._copied(kept, leaves, mode.tracer)
        leaves = [leaf.functional(mode.tracer) if isinstance(leaf, Copy) else leaf for leaf in leaves]
        operands = {self._memories.node_of(leaf, mode.tracer): _Operand(index) for index, leaf in _tensors(leaves)}
        last = mode.tracer.graph._root.prev
        compute = functools.partial(
            trace, target, *pytree.tree_unflatten(leaves, pytree.tree_structure((args, kwargs)))
        )
        result, written = self._memories.written(leaves, compute)
        if key is not None and key not in self._known:
            with torch._C.DisableTorchFunction():
                finals = {index: self._memories.node_of(leaves[index], mode.tracer) for index in written}
                self._known[key] = self._kept(result, leaves, last, mode.tracer, operands, finals)
        return result

    def _can_be_written(self, leaf: Any) -> bool:
        """Whether nothing else has the memory of an operand, so that a copied write leaves nothing else to do."""
        return isinstance(leaf, Copy) and not self._memories.is_viewed(leaf)

    def _kept(
        self,
        result: Any,
        leaves: Sequence[Any],
        last: fx.Node,
        tracer: Any,
        operands: Mapping[Any, Any],
        finals: Mapping[int, Any],
    ) -> _Kept | None:
        """What was traced after ``last``, if it can be copied."""
        outputs, spec = pytree.tree_flatten(result)
        left = {self._memories.node_of(output, tracer) for output in outputs if isinstance(output, FunctionalTensor)}
        nodes = _read(last, left | {*finals.values()})
        places = {**operands, **{node: _Local(index) for index, node in enumerate(nodes)}}
        results = [self._place(output, leaves, places, tracer) for output in outputs]
        if None in results or not all(_can_be_copied(node, node in left) for node in nodes):
            return None
        made = any(isinstance(place, _Local) for place in results)
        views = made and any(map(_may_be_a_view, nodes))
        if views and not self._copies_views:
            return None
        written = tuple((index, places.get(node)) for index, node in finals.items())
        if not all(isinstance(place, _Local) for _, place in written):
            return None
        if written and (made or len({id(leaves[index]) for index in finals}) > 1):
            return None  # a result, or another operand, may have the memory that was written to
        reads = (source for node in nodes for source in node.all_input_nodes)
        if not all(source in places or _is_size(source) or source.op == "get_attr" for source in reads):
            return None
        if _unbacked(node.meta["val"] for node in nodes) - _unbacked(map(inner, leaves)):
            return None
        calls = tuple((node.target, *_with_places(node, places)) for node in nodes)
        return _Kept(calls, tuple(node.meta["val"] for node in nodes), tuple(results), spec, written, views)

    def _place(self, output: Any, leaves: Sequence[Any], places: dict[Any, Any], tracer: Any) -> Any:
        """Where a result comes from: a node, an operand that was handed back, or itself in a tuple when it is plain."""
        if isinstance(output, FunctionalTensor):
            for index, leaf in enumerate(leaves):
                if leaf is output:
                    return _Operand(index)
            return places.get(self._memories.node_of(output, tracer))
        return (output,) if isinstance(output, _PLAIN) else None

    def _copied(self, kept: _Kept, leaves: Sequence[Any], tracer: Any) -> Any:
        """Copy the nodes of ``kept``, reading ``leaves``; the result is in the form that the interpreter expects."""
        made: list[fx.Node] = []

        def placed(place: Any) -> Any:
            if isinstance(place, _Local):
                return made[place.index]
            return self._memories.node_of(leaves[place.index], tracer) if isinstance(place, _Operand) else place

        for (target, args, kwargs), value in zip(kept.calls, kept.values, strict=True):
            arguments = fx.node.map_aggregate((args, kwargs), placed)
            node = fx.Tracer.create_node(tracer, "call_function", target, *arguments)
            node.meta["val"] = value
            self._copies.append((node, value))
            made.append(node)
        for index, place in kept.written:
            leaves[index].write(made[place.index])
        viewed = self._memories.view(leaves) if kept.views else None
        results = [self._result(place, made, leaves, viewed) for place in kept.results]
        return results[0] if kept.spec.is_leaf() else pytree.tree_unflatten(results, kept.spec)

    def _result(self, place: Any, made: Sequence[fx.Node], leaves: Sequence[Any], viewed: object | None) -> Any:
        if isinstance(place, _Operand):
            return leaves[place.index]
        if not isinstance(place, _Local):
            return place[0]
        return Copy(made[place.index], self._memories, object() if viewed is None else viewed)


def _is_known(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return True
    if isinstance(target, HigherOrderOperator) or target in MODE_SWITCHES:
        return False
    return (getattr(target, "__module__", None) or "").split(".")[0] in _KNOWN


def _taken_apart(value: Any, leaves: list[Any]) -> Any:
    """How arguments are put together, as a key; ``leaves`` receives what they are put together of, in pytree's order.

    Specifications of pytree say the same, and take longer to be made and compared.
    """
    kind = type(value)
    if kind in (tuple, list, immutable_list):
        return kind, *[_taken_apart(entry, leaves) for entry in value]
    if kind in (dict, immutable_dict):
        return kind, tuple(value), *[_taken_apart(entry, leaves) for entry in value.values()]
    if isinstance(value, _LEAVES):
        leaves.append(value)
        return None
    found, form = pytree.tree_flatten(value)
    leaves.extend(found)
    return form


def _key(call: Any, leaves: Sequence[Any], memories: Memories, tracer: Any) -> Any:
    """Equal keys are traced alike; ``None`` where an argument cannot be compared."""
    first: dict[Any, int] = {}
    entries: list[Any] = [call]
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Copy):
            entries.append((first.setdefault(leaf.node, index), *_layout(leaf.value)))
        elif isinstance(leaf, FunctionalTensor):
            value = memories.inner(leaf)
            node = memories.node_of(leaf, tracer)
            if not isinstance(value, FakeTensor) or value.constant is not None or node is None:
                return None
            entries.append((first.setdefault(node, index), *_layout(value)))
        elif isinstance(leaf, torch.SymInt):
            entries.append(("size", size_of(leaf)))
        elif isinstance(leaf, _PLAIN):
            entries.append((type(leaf), repr(leaf)))
        elif isinstance(leaf, slice) or leaf is Ellipsis:
            part = (
                _key(slice, [leaf.start, leaf.stop, leaf.step], memories, tracer) if isinstance(leaf, slice) else "..."
            )
            if part is None:
                return None
            entries.append(part)
        else:
            return None
    return tuple(entries)


def _modes() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda"))


def _layout(value: FakeTensor) -> tuple[Any, ...]:
    sizes, strides = tuple(value.shape), tuple(value.stride())
    if value._has_symbolic_sizes_strides:
        sizes, strides = tuple(map(size_of, sizes)), tuple(map(size_of, strides))
    return value.dtype, value.device, sizes, strides, size_of(value.storage_offset()), value.requires_grad


def _tensors(leaves: Sequence[Any]) -> Iterator[tuple[int, FunctionalTensor]]:
    return ((index, leaf) for index, leaf in enumerate(leaves) if isinstance(leaf, FunctionalTensor))


def _unbacked(values: Iterable[Any]) -> set[Any]:
    """Symbols of sizes that only the data tell: every call makes its own."""
    tensors = [value for value in pytree.tree_leaves(list(values)) if isinstance(value, torch.Tensor)]
    return set(free_unbacked_symbols(tensors))


def _after(last: fx.Node) -> Iterator[fx.Node]:
    node = last.next
    while node.op != "root":
        yield node
        node = node.next


def _read(last: fx.Node, wanted: set[Any]) -> list[fx.Node]:
    """What was traced after ``last``, but for sizes and constants, which copies read, and views that nothing reads."""
    read: list[fx.Node] = []
    for node in reversed([*_after(last)]):
        if _is_size(node) or node.op == "get_attr" or node.target in LEFTOVERS:
            continue
        if node in wanted or not _may_be_a_view(node):
            read.append(node)
            wanted.update(node.all_input_nodes)
    return read[::-1]


def _is_size(node: fx.Node) -> bool:
    """Whether a node's value is a size: the same wherever it is computed, so copies read the first."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat))


def _can_be_copied(node: fx.Node, is_result: bool) -> bool:
    """Whether equal calls make equal nodes. A result must be no constant: the host may read what is in one.

    What a tracer of ``make_fx`` notes of a call beside what any tracer does is about its very operands.
    """
    values = pytree.tree_leaves(node.meta.get("val"))
    if node.op != "call_function" or isinstance(node.target, HigherOrderOperator) or not values:
        return False
    if "eager_input_vals" in node.meta:
        return False
    return all(isinstance(v, FakeTensor) and (v.constant is None or not is_result) for v in values)


def _may_be_a_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(entry.alias_info is not None for entry in node.target._schema.returns)


def _with_places(node: fx.Node, places: dict[Any, Any]) -> Any:
    return fx.map_arg((node.args, node.kwargs), lambda source: places.get(source, source))


_AUGMENTED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "pow", "and", "or", "xor")
_WRITES = frozenset({"setitem", *(f"i{name}" for name in _AUGMENTED)})


def looks_like_a_write(node: fx.Node) -> bool:
    """Whether an operation's name is that of one that writes to a tensor."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method"):
        return False
    ends = name.endswith("_") and not name.endswith("__") and not hasattr(operator, name)
    return ends or name in _WRITES or node.kwargs.get("out") is not None or node.kwargs.get("inplace") is True
