"""Memory while a trace copies operations: a copied view has memory of its own, so nothing may write to what it shows.

A trace knows which functional tensors share memory, by their storage. A copy is a node and a fake value alone; what it
would share is written down here instead, so that a write that a copied view would have to show is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.fx as fx
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.proxy_tensor import _ProxyTensor, disable_proxy_modes_tracing

from lightint_compile.capture.functional import inner
from lightint_compile.passes.ir.fake_values import another

T = TypeVar("T")

_SHARED = object()
"""The memory of every copied view."""


class WritesToAView(Exception):  # noqa: N818 - control flow, not an error
    """An operation wrote to memory that copied views show: they are no longer what the graph says."""


class Memories:
    """Whose memory is whose in one trace."""

    def __init__(self) -> None:
        self._viewed: set[Any] = {_SHARED}
        self._of_storage: dict[int, Any] = {}
        self._alive: list[FunctionalTensor] = []  # an address stands for one storage as long as that lives
        self._inside: dict[int, tuple[FunctionalTensor, int, Any]] = {}

    def is_viewed(self, leaf: Copy | FunctionalTensor) -> bool:
        """Whether a copied view shows the memory of a tensor."""
        return self._memory(leaf) in self._viewed

    def view(self, leaves: Sequence[Any]) -> object:
        """The memory of copied views of these; none of it may be written to from now on."""
        for leaf in leaves:
            if isinstance(leaf, (Copy, FunctionalTensor)):
                self._viewed.add(self._memory(leaf))
        self._alive += [leaf for leaf in leaves if isinstance(leaf, FunctionalTensor)]
        return _SHARED

    def adopt(self, tensor: FunctionalTensor, memory: object) -> None:
        """A copy is traced from now on."""
        self._of_storage[_storage(tensor)] = memory
        self._alive.append(tensor)

    def written(self, leaves: Sequence[Any], compute: Callable[[], T]) -> tuple[T, list[int]]:
        """What ``compute`` gives, and which of the leaves it wrote to, by position.

        Raises:
            WritesToAView: copied views show what it wrote to.
        """
        tensors = [(index, leaf) for index, leaf in enumerate(leaves) if isinstance(leaf, FunctionalTensor)]
        before = [_state(leaf) for _, leaf in tensors]
        result = compute()
        changed = [(index, leaf) for (index, leaf), state in zip(tensors, before, strict=True) if _state(leaf) != state]
        if any(self.is_viewed(leaf) for _, leaf in changed):
            raise WritesToAView
        return result, [index for index, _ in changed]

    def inner(self, leaf: FunctionalTensor) -> Any:
        """:func:`~lightint_compile.capture.functional.inner`, found anew only where something was written since.

        Finding it puts the mode of the trace aside for a moment, at which torch forgets how it dispatches operators.
        """
        counted, is_reshaped = _state(leaf)
        if is_reshaped or torch._functionalize_was_storage_changed(leaf.elem):  # type: ignore[attr-defined]
            return inner(leaf)  # it may be so again, and nothing counts that
        known = self._inside.get(id(leaf))
        if known is None or known[1] != counted:
            known = self._inside[id(leaf)] = leaf, counted, inner(leaf)
        return known[2]

    def node_of(self, leaf: Copy | FunctionalTensor, tracer: Any) -> fx.Node | None:
        """The node that computes a tensor; ``None`` for one that the trace does not know."""
        if isinstance(leaf, Copy):
            return leaf.node
        tracked = tracer.tensor_tracker.get(self.inner(leaf))
        return None if tracked is None else tracked.proxy.node

    def _memory(self, leaf: Copy | FunctionalTensor) -> Any:
        if isinstance(leaf, Copy):
            return leaf.memory
        address = _storage(leaf)
        return self._of_storage.get(address, address)


class Copy:
    """A result that was copied. A functional tensor is made of it only where something is traced that reads it.

    Attributes:
        node: what computes it, since the latest write to it.
        value: its fake value, or an equal one while nothing reads it as a functional tensor.
        memory: stands for its memory, see :class:`Memories`.
    """

    __slots__ = ("_functional", "_memories", "memory", "node", "value")

    def __init__(self, node: fx.Node, memories: Memories, memory: object) -> None:
        self.node, self.value = node, node.meta["val"]
        self._memories, self.memory = memories, memory
        self._functional: FunctionalTensor | None = None

    def now(self) -> Copy | FunctionalTensor:
        """The functional tensor where there is one: it may have been written to since."""
        return self if self._functional is None else self._functional

    def write(self, node: fx.Node) -> None:
        """Be what a copied write leaves."""
        self.node, self.value = node, node.meta["val"]

    def functional(self, tracer: Any) -> FunctionalTensor:
        """What a trace reads."""
        if self._functional is None:
            self.value = self.node.meta["val"] = another(self.value)  # a trace knows a node by its value
            tracer.tensor_tracker[self.value] = _ProxyTensor(fx.Proxy(self.node, tracer), None)
            with torch._C.DisableTorchFunction(), disable_proxy_modes_tracing():  # sizes would be traced
                self._functional = FunctionalTensor.to_functional(self.value)
            self._memories.adopt(self._functional, self.memory)
        return self._functional


def _storage(tensor: FunctionalTensor) -> int:
    return int(tensor.elem.untyped_storage()._cdata)


def _state(tensor: FunctionalTensor) -> tuple[int, bool]:
    """Differs after a write to a tensor's memory, through it or another view, or to its sizes."""
    counted = torch._functionalize_mutation_counter(tensor.elem)  # type: ignore[attr-defined]
    return counted, bool(torch._functionalize_has_metadata_mutation(tensor.elem))  # type: ignore[attr-defined]
