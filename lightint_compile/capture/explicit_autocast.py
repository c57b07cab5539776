"""Autocast as casts in the graph: after this, a program means the same whatever autocast state it runs under.

A pre-dispatch trace records the dtypes that autocast chose, but not the casts. Each node whose target, called without
autocast, would not give the recorded dtype gets its floating-point operands cast to that dtype, which is what
autocast's lists do ("lower precision", "float32" and "widest type" alike).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.errors import CaptureError
from lightint_compile.passes.ir.program import fake_mode_of, faking
from lightint_compile.passes.ir.remarks import source_of
from lightint_compile.passes.ir.rewriter import KEPT_META

_ENTER = torch.amp.autocast_mode._enter_autocast
_EXIT = torch.amp.autocast_mode._exit_autocast
_SET_GRAD = torch._C._set_grad_enabled

#: Nodes that set a mode; the interpreter obeys them, and export's wrappers leave them in a trace.
MODE_SWITCHES: frozenset[Callable[..., Any]] = frozenset({_ENTER, _EXIT, _SET_GRAD})


class ModeInterpreter(fx.Interpreter):
    """Runs a torch-level graph, switching autocast where it says so instead of recording the switch."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Obey a mode switch; anything else runs as usual. Gradients are off throughout a capture."""
        if target is _SET_GRAD:
            return None
        if target is _ENTER:
            return _enter(*args, **kwargs)
        if target is _EXIT:
            _restore(args[0])
            return None
        return super().call_function(target, args, kwargs)


_State = tuple[str, bool, torch.dtype]


def _enter(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, *_: Any) -> _State:
    saved = (device_type, torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type))
    _restore((device_type, enabled, dtype or saved[2]))
    return saved


def _restore(state: _State) -> None:
    device_type, enabled, dtype = state
    torch.set_autocast_enabled(device_type, enabled)
    torch.set_autocast_dtype(device_type, dtype)


def uses_autocast(graph_module: fx.GraphModule) -> bool:
    """Whether autocast is on around the call, or is switched on somewhere in the graph or its submodules."""
    if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        return True
    wrapper = torch.ops.higher_order.wrap_with_autocast
    return any(
        node.target in (_ENTER, wrapper)
        for module in graph_module.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
    )


def make_casts_explicit(graph_module: fx.GraphModule) -> None:
    """Insert the casts that autocast made, in place.

    Raises:
        CaptureError: a node's recorded dtype cannot be reached by casting its operands.
    """
    mode = fake_mode_of(graph_module.graph.nodes)
    devices = ("cpu", "cuda")
    saved = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    try:
        for state in saved:
            _restore((state[0], False, state[2]))
        for node in list(graph_module.graph.nodes):
            if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor):
                _cast_operands(node, mode)
    finally:
        for state in saved:
            _restore(state)
    graph_module.recompile()


def _cast_operands(node: fx.Node, mode: Any) -> None:
    wanted = node.meta["val"].dtype
    if not wanted.is_floating_point:
        return
    if _dtype_without_autocast(node, mode) == wanted and not _only_fake_takes(node, wanted, mode):
        return
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: _cast(n, node, wanted, mode), (node.args, node.kwargs))
    node.args, node.kwargs = args, kwargs
    if _dtype_without_autocast(node, mode) != wanted:
        why = f"autocast gave {wanted}, casting the operands of {node.target} does not"
        raise CaptureError("a cast made by autocast cannot be written down", where=source_of(node), why=why)


def _only_fake_takes(node: fx.Node, wanted: torch.dtype, mode: Any) -> bool:
    """Whether a product of operands that differ in dtype was made by autocast, though its fake form takes them as well.

    ``linear`` of bfloat16 and float32 without a bias is one: it has no real form without autocast. What autocast does
    not bring to a lower precision may take such operands by itself, as a norm takes weights in float32, and so may a
    mask of attention be.
    """
    if wanted not in (torch.bfloat16, torch.float16) or not isinstance(node.target, torch._ops.OpOverload):
        return False
    named = [*zip((each.name for each in node.target._schema.arguments), node.args, strict=False), *node.kwargs.items()]
    operands = [each.meta["val"] for name, each in named if isinstance(each, fx.Node) and name != "attn_mask"]
    dtypes = {each.dtype for each in operands if isinstance(each, torch.Tensor) and each.is_floating_point()}
    return len(dtypes) > 1 and _is_lowered(node, wanted, mode)


def _is_lowered(node: fx.Node, wanted: torch.dtype, mode: Any) -> bool:
    """Whether autocast to ``wanted`` makes this of operands in float32."""
    device = node.meta["val"].device.type
    saved = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def widened(operand: fx.Node) -> Any:
        value = operand.meta["val"]
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    try:
        with faking(mode):
            args, kwargs = pytree.tree_map_only(fx.Node, widened, (node.args, node.kwargs))
            _restore((device, True, wanted))
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    except RuntimeError:
        return False
    finally:
        _restore(saved)
    return isinstance(result, torch.Tensor) and result.dtype == wanted


def _dtype_without_autocast(node: fx.Node, mode: Any) -> torch.dtype | None:
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
    try:
        with faking(mode):
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    except RuntimeError:  # operands of different dtypes: only autocast made them agree
        return None
    return result.dtype if isinstance(result, torch.Tensor) else None


def _cast(operand: fx.Node, user: fx.Node, dtype: torch.dtype, mode: Any) -> fx.Node:
    value = operand.meta["val"]
    if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point or value.dtype == dtype:
        return operand
    with user.graph.inserting_before(user):
        cast = user.graph.call_function(torch.ops.aten._to_copy.default, (operand,), {"dtype": dtype})
    cast.meta.update({key: user.meta[key] for key in KEPT_META if key in user.meta})
    with mode:
        cast.meta["val"] = torch.ops.aten._to_copy.default(value, dtype=dtype)
    return cast
