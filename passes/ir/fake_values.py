"""Sizes and fake values of nodes: symbolic sizes as expressions or hints, and bringing stale values up to date."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, TypeAlias

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import snapshot_fake

from lightint_compile.passes.ir.program import Program, fake_mode_of, faking

#: A size: a plain integer, or an expression over the symbols of the capture.
Size: TypeAlias = int | sympy.Expr


def size_of(value: Any) -> Size:
    """An integer, a ``SymInt`` or an expression as a :data:`Size`; nothing is guarded."""
    if type(value) is int:
        return value
    if isinstance(value, torch.SymInt):
        value = value.node.expr
    return plain(value) if isinstance(value, sympy.Expr) else int(value)


def plain(expression: Any) -> Size:
    """An expression as an ``int`` where it is one."""
    return int(expression) if isinstance(expression, (int, sympy.Integer)) else expression


def shape_of(tensor: torch.Tensor) -> tuple[Size, ...]:
    """The sizes of a fake tensor."""
    sizes = tuple(tensor.shape)
    return tuple(map(size_of, sizes)) if tensor._has_symbolic_sizes_strides else sizes


def hint_of(value: Any) -> int:
    """The size seen at capture: an integer itself, a ``SymInt``'s hint; an unknown size counts as one."""
    if isinstance(value, torch.SymInt):
        known = value.node.hint if value.node.has_hint() else None
        return int(known) if isinstance(known, (int, sympy.Integer)) else 1
    return int(value)


def hinted_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The sizes of a fake tensor at capture."""
    return tuple(hint_of(size) for size in tensor.shape)


def numel_hint(tensor: torch.Tensor) -> int:
    """Elements of a fake tensor at capture."""
    count = 1
    for size in tensor.shape:
        count *= hint_of(size)
    return count


def frozen(value: Any) -> Any:
    """An argument as a key in which ``1``, ``1.0`` and ``True`` differ, and so do ``0.0`` and ``-0.0``."""
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    if isinstance(value, dict):
        return tuple((key, frozen(entry)) for key, entry in sorted(value.items()))
    if isinstance(value, (bool, int, float, complex)):
        return type(value), repr(value)
    if isinstance(value, slice):
        return slice, frozen((value.start, value.stop, value.step))
    return value


def described(value: Any) -> Any:
    """A value, or the value of a node, as a key: equal keys behave alike under every operation on fake values."""
    if isinstance(value, fx.Node):
        value = value.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.dtype, value.device, *_layout(value), value.requires_grad
    if isinstance(value, (list, tuple)):
        return tuple(map(described, value))
    if isinstance(value, dict):
        return tuple((key, described(entry)) for key, entry in sorted(value.items()))
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        return type(value), value.node.expr
    return size_of(value) if isinstance(value, torch.SymInt) else frozen(value)


def another(value: Any) -> Any:
    """The same value of other tensors: nodes that share one would count as the same tensor later."""
    if isinstance(value, torch.Tensor):
        return snapshot_fake(value)
    return pytree.tree_map_only(torch.Tensor, snapshot_fake, value)


def refresh(program: Program, changed: Iterable[fx.Node]) -> None:
    """Recompute the fake values downstream of ``changed`` for as long as sizes or strides differ from the recorded.

    A rewrite may move a value into another memory layout. A ``view`` that only the old layout allowed becomes a
    ``reshape``, which is the same values by definition.
    """
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    mode = fake_mode_of(program.graph.nodes)
    pending = [order[user] for node in changed for user in node.users]
    nodes = list(program.graph.nodes)
    known: dict[Any, Any] = {}
    heapq.heapify(pending)
    done = -1
    while pending:
        index = heapq.heappop(pending)
        if index == done or nodes[index].op != "call_function" or isinstance(nodes[index].target, HigherOrderOperator):
            continue
        done = index
        if _reevaluate(nodes[index], mode, known):
            for user in nodes[index].users:
                heapq.heappush(pending, order[user])


def _reevaluate(node: fx.Node, mode: FakeTensorMode, known: dict[Any, Any]) -> bool:
    """Whether the recorded value of ``node`` was stale; it is up to date afterwards.

    ``known`` keeps what was computed: equal blocks ask the same of every one of their nodes.
    """
    key = (node.target, described(node.args), described(node.kwargs))
    if key not in known:
        known[key] = evaluated(node.target, node.args, node.kwargs, mode)
    node.target, value = known[key]
    if _layouts(value) == _layouts(node.meta["val"]):
        return False
    node.meta["val"] = another(value)
    return True


def evaluated(target: Any, args: Any, kwargs: Any, mode: FakeTensorMode) -> tuple[Any, Any]:
    """The fake value of a call, and the target that gives it: ``reshape`` where the memory order of its operand allows
    no ``view``.

    Args:
        args, kwargs: of the call; nodes count as their values.
    """
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (args, kwargs))
    with faking(mode):
        try:
            return target, target(*args, **kwargs)
        except (RuntimeError, ValueError):
            if target is not torch.ops.aten.view.default:
                raise
            target = torch.ops.aten.reshape.default
            return target, target(*args, **kwargs)


def _layouts(value: Any) -> list[Any]:
    return [_layout(leaf) if isinstance(leaf, torch.Tensor) else None for leaf in pytree.tree_leaves(value)]


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = tensor.stride()
    return shape_of(tensor), tuple(map(size_of, strides)) if tensor._has_symbolic_sizes_strides else tuple(strides)


def hint_at(like: fx.Node, size: Size) -> int:
    """A size as it was at capture; ``like`` is any tensor of it."""
    env = fake_mode_of([like]).shape_env
    known = isinstance(size, int) or env is None
    return hint_of(size if known else env.create_symintnode(size, hint=None))  # type: ignore[union-attr, arg-type]
