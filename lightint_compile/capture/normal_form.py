"""Tidying a trace: operations without effect at inference are removed, and one form is used where ATen has several."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from lightint_compile.capture.explicit_autocast import MODE_SWITCHES
from lightint_compile.passes.ir.input_writes import written_buffers
from lightint_compile.passes.ir.memory_sharing import alias_source, is_write, memory_of, output_memory

aten = torch.ops.aten

#: What a trace leaves behind and nothing reads: assertions the guards already hold, switches the dtypes already show.
LEFTOVERS = {aten._assert_tensor_metadata.default, *MODE_SWITCHES}

#: Operations that return their first argument unchanged in a functional graph.
_ALIASES = {aten.alias.default, aten.detach.default, aten.lift_fresh.default}

#: Operations that copy their first argument, and do no more where it already is what they ask for.
_COPIES = {
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
}

#: Of these the caller can tell whether they happened, where it gets their memory.
_TELLING = {*_COPIES, aten.detach.default}

#: Spellings of views that leave their operand to be forgotten, which a functional graph does not promise.
_AS_VIEWS = {
    aten._unsafe_view.default: aten.reshape.default,
    aten.unsafe_split.Tensor: aten.split.Tensor,
    aten.unsafe_split_with_sizes.default: aten.split_with_sizes.default,
}


def tidy(graph_module: fx.GraphModule) -> None:
    """Remove operations without effect and unify forms, in place; dead code is removed too.

    A copy whose memory the caller gets stays: the caller may write to it. So does one of an input that is written to
    before the copy is read for the last time, or by what reads it; and what detaches a result: a view of an input, or
    of another result, wants gradients as soon as that does, also where the caller asks for them afterwards.
    """
    for node in graph_module.graph.nodes:  # first: as views they tell who has the memory of an output
        node.target = _AS_VIEWS.get(node.target, node.target)
    returned, written = output_memory(graph_module.graph), _Writes(graph_module.graph)
    for node in reversed(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in LEFTOVERS:
            graph_module.graph.erase_node(node)
        elif _does_nothing(node):
            if node.target in _COPIES and written.divide(node):
                node.target, node.args, node.kwargs = aten.clone.default, node.args[:1], {}
            elif not (node in returned and node.target in _TELLING):
                node.replace_all_uses_with(node.args[0], propagate_meta=False)
                graph_module.graph.erase_node(node)
        elif node.target is aten.type_as.default:
            _as_copy(node)
        elif node.target is aten.fill.Tensor:
            _with_a_number(graph_module, node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


class _Writes:
    """The writes of a graph, and where they stand."""

    def __init__(self, graph: fx.Graph) -> None:
        self._places = {node: place for place, node in enumerate(graph.nodes)}
        self._of = written_buffers(graph)

    def divide(self, copy: fx.Node) -> bool:
        """Whether one stands between a copy of its buffer and the last that reads the copy, or is that reader."""
        writes = self._of.get(memory_of(copy.args[0]), ()) if self._of else ()  # type: ignore[arg-type]
        behind = [place for write in writes if (place := self._places[write]) > self._places[copy]]
        return bool(behind) and min(behind) <= self._last_read(copy)

    def _last_read(self, node: fx.Node) -> int:
        views = [user for user in node.users if alias_source(user) is node and not is_write(user)]
        return max((*(self._places[user] for user in node.users), *map(self._last_read, views)), default=-1)


def _does_nothing(node: fx.Node) -> bool:
    if not isinstance(node.args[0] if node.args else None, fx.Node):
        return False
    if node.target in _ALIASES or node.target is aten.lift_fresh_copy.default:
        return True
    if node.target in _COPIES:
        return _same_tensor(node, node.args[0]) and node.kwargs.get("memory_format") is None
    if node.target in (aten.view.default, aten.reshape.default, aten.expand.default):
        return _same_tensor(node, node.args[0])
    return False


def _same_tensor(node: fx.Node, source: Any) -> bool:
    """Same dtype, device, sizes and strides, known without a new guard."""
    left, right = node.meta.get("val"), source.meta.get("val")
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor) or left.dim() != right.dim():
        return False
    if left.dtype != right.dtype or left.device != right.device:
        return False
    pairs = (*zip(left.shape, right.shape, strict=True), *zip(left.stride(), right.stride(), strict=True))
    return all(statically_known_true(a == b) for a, b in pairs)


def _as_copy(node: fx.Node) -> None:
    """``type_as`` reads its second argument for the dtype and device only: without it, no false dependency."""
    value = node.meta["val"]
    node.target = aten._to_copy.default
    node.kwargs = {"dtype": value.dtype, "device": value.device}
    node.args = (node.args[0],)


def _with_a_number(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """``x[..., 0] = 1.0`` is traced with a tensor on the host, which every call would copy to the device.

    ``lift_fresh`` marks a tensor as made in the traced function from a number: nobody can write to it.
    """
    lifted = node.args[1]
    if not isinstance(lifted, fx.Node) or lifted.target not in (aten.lift_fresh.default, aten.lift_fresh_copy.default):
        return
    source = lifted.args[0]
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return
    held = getattr(graph_module, str(source.target), None)
    if isinstance(held, torch.Tensor) and not isinstance(held, FakeTensor) and held.device.type == "cpu":
        node.target, node.args = aten.fill.Scalar, (node.args[0], held.item())
