"""Bound Triton launches: the same kernel on new addresses, without specialising on its arguments again.

``kernel[grid](...)`` looks at every argument on every call, to find the compiled variant for its types, divisibilities
and alignments. Where all of these are known to be those of an earlier call, what was compiled can be started directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton
from torch import Tensor

from lightint_compile.torch_compat import raw_stream

from . import triton_compat

ALIGNMENT = 16
"""Bytes that addresses must be multiples of: Triton compiles another variant for those that are not."""


class Launch:
    """One kernel with everything but addresses fixed: grid, sizes and options.

    The first call is Triton's own, which compiles. Later ones may start what it compiled on a stream; what they pass
    must have the types of the first call and addresses that are multiples of :data:`ALIGNMENT`. A kernel's parameters
    are in the order addresses (or descriptors), sizes, constants.
    """

    def __init__(self, kernel: Any, grid: Sequence[int], sizes: Sequence[Any], options: Mapping[str, Any]) -> None:
        self._kernel, self._sizes, self._options = kernel, tuple(sizes), {**triton_compat.OPTIONS, **options}
        self._grid = (*grid, 1, 1)[:3]
        constants = [options[name] for name in kernel.arg_names if name in options]
        self._fixed = (*self._sizes, *constants)
        self._start: triton_compat.Starter | None = None
        self._described: Sequence[Any] = ()

    @property
    def ready(self) -> bool:
        """Whether the kernel can be started on a stream."""
        return self._start is not None

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        """Launch on a raw ``stream`` of the current device, or as Triton does, on the current one, with ``None``.

        ``arguments`` are tensors and descriptors; with a stream, integers and what :meth:`described` gives.
        """
        if stream is not None and self._start is not None:
            self._start(*self._grid, stream, (*arguments, *self._fixed))
            return
        compiled = self._kernel[self._grid](*arguments, *self._sizes, **self._options)
        if self._start is None:
            self._start = triton_compat.starter(compiled)
        if self._start is not None:
            self._described = getattr(compiled.metadata, "tensordesc_meta", None) or ()

    def run(self, tensors: Sequence[Tensor | None], device: int) -> None:
        """Launch on the stream of the current ``device`` (-1: interpreted), by addresses where that is the same."""
        stream = current_stream(device, (self,))
        if stream is not None:
            addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
            if not any(address and address % ALIGNMENT for address in addresses):
                self(stream, *addresses)
                return
        self(None, *tensors)

    def described(self, number: int, descriptor: Any) -> tuple[Any, ...]:
        """The arguments that encode the kernel's ``number``-th descriptor; they hold the address, not the tensor."""
        return triton_compat.described(descriptor, self._described[number])


def current_stream(device: int | None, launches: Sequence[Any]) -> int | None:
    """The stream to start ``launches`` on; None while one of them is not compiled or there are launch hooks."""
    if device is None or not all(launch.ready for launch in launches) or _watched():
        return None
    return raw_stream(device)


def _watched() -> bool:
    """Whether a profiler has launch hooks, which only Triton's own launcher calls."""
    hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)
