"""Functionalisation of a trace: writes become new values, and the schema of every view says what it views.

An operator's schema says which of its results share memory with an operand. Composite operators do not keep to that:
``einsum`` of a permutation, ``broadcast_tensors``, ``sum_to_size`` and others hand back a view, or the operand itself,
without an annotation, and every later reader of schemas would believe that the memory is fresh. So each composite call
is asked once, on fake tensors, whose storage its results have; one that shares unsaid is traced as the views it is made
of. In the normal form an operator without an annotation therefore returns memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._ops import _higher_order_ops
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode, disable_functional_mode
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from lightint_compile.passes.ir.fake_values import described


def functional(function: Callable[..., Any], mutated: list[int], replaced: list[int]) -> Callable[..., Any]:
    """``function`` on functional tensors; what it writes to inputs are further results.

    Args:
        function: returns a tuple.
        mutated: receives the positions of the inputs that were written to, whose final values follow the results.
        replaced: receives the positions of those that are another tensor afterwards, in memory or in form, as by
            ``x.data = y``; no value that follows says so.
    """

    _known_to_control_flow()

    def run(*args: Any) -> Any:
        exclude = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize))
        with exclude, _TrueViews(pre_dispatch=True, export=True):
            wrapped = [FunctionalTensor.to_functional(a) if isinstance(a, torch.Tensor) else a for a in args]
            results = function(*wrapped)
            mutated[:] = [i for i, w in enumerate(wrapped) if isinstance(w, FunctionalTensor) and _was_written(w)]
            replaced[:] = [i for i, w in enumerate(wrapped) if isinstance(w, FunctionalTensor) and _was_replaced(w)]
            finals = tuple(wrapped[i] for i in mutated)
            return pytree.tree_map_only(FunctionalTensor, inner, (*results, *finals))

    return run


def inner(leaf: Any) -> Any:
    """The traced tensor inside a functional one, after what was written to it; anything else as it is."""
    if not isinstance(leaf, FunctionalTensor):
        return leaf
    _sync(leaf)
    return torch._from_functional_tensor(leaf.elem)


def _sync(tensor: FunctionalTensor) -> None:
    """Trace the views that show what was written; on tensors without data torch does it too, which no mode may see.

    Where nothing ever was there are none. Putting the mode aside makes torch forget how it dispatches operators.
    """
    if not (torch._functionalize_mutation_counter(tensor.elem) or _was_replaced(tensor)):  # type: ignore[attr-defined]
        return
    with disable_functional_mode():
        torch._sync(tensor)  # type: ignore[attr-defined]


def _was_written(tensor: FunctionalTensor) -> bool:
    _sync(tensor)
    return bool(torch._functionalize_has_data_mutation(tensor.elem))  # type: ignore[attr-defined]


def _was_replaced(tensor: FunctionalTensor) -> bool:
    storage = torch._functionalize_was_storage_changed(tensor.elem)  # type: ignore[attr-defined]
    return bool(storage or torch._functionalize_has_metadata_mutation(tensor.elem))  # type: ignore[attr-defined]


class _TrueViews(FunctionalTensorMode):
    """Functionalisation in which composite operators that share memory without saying so are traced as their parts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._known: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Trace the parts of a call that shares unsaid, anything else as torch does."""
        if func is torch.ops.aten.dropout.default and _drops_nothing(*args, **(kwargs or {})):
            return (args or (kwargs["input"],))[0]
        if may_share_unsaid(func) and self._shares(func, args, kwargs or {}):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _shares(self, func: Any, args: Any, kwargs: Any) -> bool:
        pytree.tree_map_only(FunctionalTensor, _sync, (args, kwargs))  # traced
        with disable_proxy_modes_tracing():
            values = pytree.tree_map_only(FunctionalTensor, inner, (args, kwargs))
            key = (func, described(values[0]), described(values[1]))
            if key not in self._known:
                self._known[key] = shares_memory(func, *values)
            return self._known[key]


def _drops_nothing(input: torch.Tensor, p: float, train: bool) -> bool:
    """Whether dropout hands its input back. Its decomposition, which fake tensors run, would copy."""
    return not train or p == 0


def _known_to_control_flow() -> None:
    """Higher order operators look a mode up by its exact class: they treat ours as the one it is made from."""
    for operation in _higher_order_ops.values():
        rule = operation.python_key_table.get(FunctionalTensorMode)
        if rule is not None:
            operation.python_key_table.setdefault(_TrueViews, rule)


@cache
def may_share_unsaid(func: Any) -> bool:
    """Whether an operator is composite, so that its schema does not bind what it returns, and has no annotation."""
    if not isinstance(func, torch._ops.OpOverload) or func in FunctionalTensor.metadata_fns:
        return False
    if any(entry.alias_info is not None for entry in (*func._schema.returns, *func._schema.arguments)):
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def shares_memory(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call on fake tensors gives back the storage of an operand."""
    storages = {_storage(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)}
    results = pytree.tree_leaves(func(*args, **kwargs))
    return any(isinstance(leaf, FakeTensor) and _storage(leaf) in storages for leaf in results)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
