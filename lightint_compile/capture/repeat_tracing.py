"""Running a torch-level graph under ``make_fx``: equal operations are traced once, and their nodes copied.

A trace sends every operation through some ten layers of dispatch, milliseconds each. A world model calls the same few
hundred operations on the same sizes in every block of every step, so what an operation became the first time is kept
and copied: the nodes it left, on other operands.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.proxy_tensor import _ProxyTensor, disable_proxy_modes_tracing, get_proxy_mode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from lightint_compile.capture.bounded_sizes import settled
from lightint_compile.capture.control_flow import wrapped_call
from lightint_compile.capture.explicit_autocast import MODE_SWITCHES, ModeInterpreter
from lightint_compile.capture.functional import inner
from lightint_compile.capture.normal_form import LEFTOVERS
from lightint_compile.passes.ir.fake_values import another, size_of

_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

#: Modules whose functions mean the same in every call; a user's function may not.
_KNOWN = ("torch", "_operator", "operator", "math", "builtins", "einops")


class WritesToAView(Exception):  # noqa: N818 - control flow, not an error
    """An operation wrote to a tensor after views had been copied: their memory is no longer what the graph says."""


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
    """

    calls: tuple[tuple[Any, Any, Any], ...]
    values: tuple[Any, ...]
    results: tuple[Any, ...]
    spec: pytree.TreeSpec


class _Copy:
    """A result that was copied. A functional tensor is made of it only where something is traced that reads it."""

    __slots__ = ("_functional", "node", "value")

    def __init__(self, node: fx.Node) -> None:
        self.node, self.value = node, node.meta["val"]
        self._functional: FunctionalTensor | None = None

    def now(self) -> _Copy | FunctionalTensor:
        """The functional tensor where there is one: it may have been written to since."""
        return self if self._functional is None else self._functional

    def functional(self, tracer: Any) -> FunctionalTensor:
        """What a trace reads."""
        if self._functional is None:
            tracer.tensor_tracker[self.value] = _ProxyTensor(fx.Proxy(self.node, tracer), None)
            with torch._C.DisableTorchFunction(), disable_proxy_modes_tracing():  # sizes would be traced
                self._functional = FunctionalTensor.to_functional(self.value)
        return self._functional


def _for_trace(values: Any) -> Any:
    """``values`` as a trace reads them."""
    mode = get_proxy_mode()
    assert mode is not None
    return pytree.tree_map_only(_Copy, lambda copy: copy.functional(mode.tracer), values)


class RepeatingInterpreter(ModeInterpreter):
    """Interprets a graph under ``make_fx(pre_dispatch=True)`` and functionalisation.

    Args:
        copies_views: whether operations whose result may share memory with an operand are copied too. A copied view has
            memory of its own, so nothing may be written to in the graph.

    Raises:
        WritesToAView: something was, under ``copies_views``.
    """

    def __init__(self, graph_module: fx.GraphModule, *, copies_views: bool) -> None:
        super().__init__(graph_module)
        self._copies_views = copies_views
        self._known: dict[Any, _Kept | None] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Copy what an equal call became, or trace it; a graph that is only wrapped is run in its place."""
        wrapped = wrapped_call(target, args, kwargs)
        if wrapped is not None:
            return self._inlined(*wrapped)
        if target is torch.sym_max:
            return settled(super().call_function(target, args, kwargs))
        if not _is_known(target):
            return super().call_function(target, *_for_trace((args, kwargs)))
        return self._repeated(target, args, kwargs, super().call_function)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As :meth:`call_function`."""
        return self._repeated(target, args, kwargs, super().call_method)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Trace it."""
        return super().call_module(target, *_for_trace((args, kwargs)))

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The results as tensors."""
        return super().output(target, *_for_trace((args, kwargs)))

    def unread(self) -> list[torch.Tensor]:
        """Tensors that were computed and never read."""
        last = [node for node in self.graph.nodes if node.op not in ("placeholder", "output") and not node.users]
        values = _for_trace([self.env.get(node) for node in last])
        return [value for value in values if isinstance(value, torch.Tensor)]

    def _inlined(self, graph_module: fx.GraphModule, operands: Sequence[Any]) -> Any:
        inside = RepeatingInterpreter(graph_module, copies_views=self._copies_views)
        inside._known = self._known
        return inside.run(*operands)

    def _repeated(self, target: Any, args: Any, kwargs: Any, trace: Callable[..., Any]) -> Any:
        mode = get_proxy_mode()
        assert mode is not None
        leaves, spec = pytree.tree_flatten((args, kwargs))
        leaves = [leaf.now() if isinstance(leaf, _Copy) else leaf for leaf in leaves]
        with torch._C.DisableTorchFunction():
            key = _key((target, spec, _modes()), leaves, mode.tracer)
            kept = None if key is None else self._known.get(key)
            if kept is not None:
                return _copied(kept, leaves, mode.tracer)
        leaves = [leaf.functional(mode.tracer) if isinstance(leaf, _Copy) else leaf for leaf in leaves]
        last = mode.tracer.graph._root.prev
        result = trace(target, *pytree.tree_unflatten(leaves, spec))
        if self._copies_views and any(map(_is_written, leaves)):
            raise WritesToAView
        if key is not None and key not in self._known:
            with torch._C.DisableTorchFunction():
                self._known[key] = self._kept(result, leaves, last, mode.tracer)
        return result

    def _kept(self, result: Any, leaves: Sequence[Any], last: fx.Node, tracer: Any) -> _Kept | None:
        """What was traced after ``last``, if it can be copied."""
        nodes = [node for node in _after(last) if not _is_size(node) and node.target not in LEFTOVERS]
        places: dict[Any, Any] = {_node_of(leaf, tracer): _Operand(i) for i, leaf in _tensors(leaves)}
        places |= {node: _Local(index) for index, node in enumerate(nodes)}
        outputs, spec = pytree.tree_flatten(result)
        results = [_place(output, leaves, places, tracer) for output in outputs]
        if None in results or not all(map(_can_be_copied, nodes)):
            return None
        if not self._copies_views and any(_may_be_a_view(node) for node in nodes):
            return None
        reads = (source for node in nodes for source in node.all_input_nodes)
        if not all(source in places or _is_size(source) for source in reads):
            return None
        if _unbacked(node.meta["val"] for node in nodes) - _unbacked(map(inner, leaves)):
            return None
        calls = tuple((node.target, *_with_places(node, places)) for node in nodes)
        return _Kept(calls, tuple(node.meta["val"] for node in nodes), tuple(results), spec)


def _is_known(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return True
    if isinstance(target, HigherOrderOperator) or target in MODE_SWITCHES:
        return False
    return (getattr(target, "__module__", None) or "").split(".")[0] in _KNOWN


def _key(call: Any, leaves: Sequence[Any], tracer: Any) -> Any:
    """Equal keys are traced alike; ``None`` where an argument cannot be compared."""
    first: dict[Any, int] = {}
    entries: list[Any] = [call]
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, _Copy):
            entries.append((first.setdefault(leaf.node, index), *_layout(leaf.value)))
        elif isinstance(leaf, FunctionalTensor):
            value = inner(leaf)
            node = _node_of(leaf, tracer)
            if not isinstance(value, FakeTensor) or value.constant is not None or node is None:
                return None
            entries.append((first.setdefault(node, index), *_layout(value)))
        elif isinstance(leaf, torch.SymInt):
            entries.append(("size", size_of(leaf)))
        elif isinstance(leaf, _PLAIN):
            entries.append((type(leaf), repr(leaf)))
        elif isinstance(leaf, slice) or leaf is Ellipsis:
            part = _key(slice, [leaf.start, leaf.stop, leaf.step], tracer) if isinstance(leaf, slice) else "..."
            if part is None:
                return None
            entries.append(part)
        else:
            return None
    return tuple(entries)


def _modes() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda"))


def _layout(value: FakeTensor) -> tuple[Any, ...]:
    sizes, strides = (tuple(map(size_of, numbers)) for numbers in (value.shape, value.stride()))
    return value.dtype, value.device, sizes, strides, size_of(value.storage_offset()), value.requires_grad


def _is_written(leaf: Any) -> bool:
    if not isinstance(leaf, FunctionalTensor):
        return False
    data, metadata = torch._functionalize_has_data_mutation, torch._functionalize_has_metadata_mutation  # type: ignore[attr-defined]
    return bool(data(leaf.elem) or metadata(leaf.elem))


def _tensors(leaves: Sequence[Any]) -> Iterator[tuple[int, FunctionalTensor]]:
    return ((index, leaf) for index, leaf in enumerate(leaves) if isinstance(leaf, FunctionalTensor))


def _node_of(leaf: FunctionalTensor | _Copy, tracer: Any) -> fx.Node | None:
    if isinstance(leaf, _Copy):
        return leaf.node
    tracked = tracer.tensor_tracker.get(inner(leaf))
    return None if tracked is None else tracked.proxy.node


def _unbacked(values: Iterable[Any]) -> set[Any]:
    """Symbols of sizes that only the data tell: every call makes its own."""
    tensors = [value for value in pytree.tree_leaves(list(values)) if isinstance(value, torch.Tensor)]
    return set(free_unbacked_symbols(tensors))


def _after(last: fx.Node) -> Iterator[fx.Node]:
    node = last.next
    while node.op != "root":
        yield node
        node = node.next


def _is_size(node: fx.Node) -> bool:
    """Whether a node's value is a size: the same wherever it is computed, so copies read the first."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat))


def _can_be_copied(node: fx.Node) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    is_call = node.op == "call_function" and not isinstance(node.target, HigherOrderOperator)
    return is_call and bool(values) and all(isinstance(v, FakeTensor) and v.constant is None for v in values)


def _may_be_a_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(entry.alias_info is not None for entry in node.target._schema.returns)


def _place(output: Any, leaves: Sequence[Any], places: dict[Any, Any], tracer: Any) -> Any:
    """Where a result comes from: a node, an operand that was handed back, or itself in a tuple when it is plain."""
    if isinstance(output, FunctionalTensor):
        for index, leaf in enumerate(leaves):
            if leaf is output:
                return _Operand(index)
        return places.get(_node_of(output, tracer))
    return (output,) if isinstance(output, _PLAIN) else None


def _with_places(node: fx.Node, places: dict[Any, Any]) -> Any:
    return fx.map_arg((node.args, node.kwargs), lambda source: places.get(source, source))


def _copied(kept: _Kept, leaves: Sequence[Any], tracer: Any) -> Any:
    """Copy the nodes of ``kept``, reading ``leaves``; the result is in the form that the interpreter expects."""
    made: list[fx.Node] = []

    def placed(place: Any) -> Any:
        if isinstance(place, _Local):
            return made[place.index]
        return _node_of(leaves[place.index], tracer) if isinstance(place, _Operand) else place

    for (target, args, kwargs), value in zip(kept.calls, kept.values, strict=True):
        node = tracer.create_node("call_function", target, *(_mapped((args, kwargs), placed)))
        node.meta["val"] = another(value)
        made.append(node)
    results = [_result(place, made, leaves) for place in kept.results]
    return pytree.tree_unflatten(results, kept.spec)


def _mapped(arguments: Any, place: Callable[[Any], Any]) -> Any:
    """``arguments`` with the places in them filled in."""
    if isinstance(arguments, (tuple, list)):
        mapped = (_mapped(entry, place) for entry in arguments)
        return tuple(mapped) if isinstance(arguments, tuple) else list(mapped)
    if isinstance(arguments, dict):
        return {key: _mapped(entry, place) for key, entry in arguments.items()}
    if isinstance(arguments, slice):
        return slice(*(_mapped(entry, place) for entry in (arguments.start, arguments.stop, arguments.step)))
    return place(arguments)


def _result(place: Any, made: Sequence[fx.Node], leaves: Sequence[Any]) -> Any:
    if isinstance(place, _Operand):
        return leaves[place.index]
    return _Copy(made[place.index]) if isinstance(place, _Local) else place[0]


def writes(graph_module: fx.GraphModule) -> bool:
    """Whether something in the graph looks as if it wrote to a tensor, so that views must be traced one by one."""
    graphs = (module.graph for module in graph_module.modules() if isinstance(module, fx.GraphModule))
    return any(looks_like_a_write(node) for graph in graphs for node in graph.nodes)


_AUGMENTED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "pow", "and", "or", "xor")
_WRITES = frozenset({"setitem", *(f"i{name}" for name in _AUGMENTED)})


def looks_like_a_write(node: fx.Node) -> bool:
    """Whether an operation's name is that of one that writes to a tensor."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method"):
        return False
    ends = name.endswith("_") and not name.endswith("__") and not hasattr(operator, name)
    return ends or name in _WRITES or node.kwargs.get("out") is not None or node.kwargs.get("inplace") is True
