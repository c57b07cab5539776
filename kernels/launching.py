"""Triton launches that were analysed once: the same kernel on new addresses, at a fraction of the host's time.

``kernel[grid](...)`` looks at every argument on every call, to find the compiled variant for its types, divisibilities
and alignments. Where all of these are known to be those of an earlier call, the compiled kernel can be started
directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import triton

ALIGNMENT = 16
"""Bytes that addresses must be multiples of: Triton compiles another variant for those that are not."""

_DIRECT = triton.__version__.startswith("3.6.") and not triton.knobs.runtime.interpret
"""Compiled kernels take all arguments, constants included, as Triton 3.6 passes them; seen to work there only."""


class Launch:
    """One kernel with everything but addresses fixed: grid, sizes and options.

    The first call is Triton's own, which compiles. Later ones start what it compiled; what they pass must have the
    types of the first call and addresses that are multiples of :data:`ALIGNMENT`. A kernel's parameters are in the
    order addresses, sizes, constants.
    """

    def __init__(self, kernel: Any, grid: Sequence[int], sizes: Sequence[Any], options: Mapping[str, Any]) -> None:
        self._kernel, self._sizes, self._options = kernel, tuple(sizes), dict(options)
        self._grid = (*grid, 1, 1)[:3]
        constants = [options[name] for name in kernel.arg_names if name in options]
        self._fixed = (*self._sizes, *constants)
        self._start: Callable[..., None] | None = None

    @property
    def direct(self) -> bool:
        """Whether the next call may pass addresses as integers."""
        return self._start is not None

    def __call__(self, *addresses: Any) -> None:
        """Launch on the current stream of the current device; tensors or, once :attr:`direct`, integers."""
        if self._start is not None:
            self._start(*addresses, *self._fixed)
            return
        compiled = self._kernel[self._grid](*addresses, *self._sizes, **self._options)
        if _DIRECT:
            self._start = compiled[self._grid]
