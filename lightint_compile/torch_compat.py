"""Where versions of torch differ, and the private names of torch that the project leans on: the one place for both.

Like ``errors`` this is a bottom rung of the import ladder: it imports nothing of ours, and every rung may import it.
Differences between versions of Triton are in ``kernels/triton_compat.py``, because importing those needs Triton.

A name belongs here when a supported version of torch lacks it, spells it in another way or gives it another meaning.
Private names that are the same in all of them are declared in :data:`PRIVATE` with the reason for leaning on them; a
test finds undeclared ones, and ``lightint doctor`` says which of them an unknown version of torch has lost.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir as cache_dir

OLDEST, NEWEST = (2, 11), (2, 14)
"""The first and the last version of torch that the test suite runs on."""


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as ``2.13.0+cpu`` or ``2.15.0a0+git1234``."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


TORCH = release(torch.__version__)
"""(major, minor) of the torch that runs."""


def is_supported(version: tuple[int, int] = TORCH) -> bool:
    """Whether the test suite runs on this version of torch."""
    return OLDEST <= version <= NEWEST


def is_observed() -> bool:
    """Whether a mode, a transform or a tracer wants to see operators: then they must go through the dispatcher.

    No public function tells; every one of these is a counter or a pointer that costs tens of nanoseconds to read.
    """
    from torch._ops import _len_torch_dispatch_stack_pre_dispatch

    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or _len_torch_dispatch_stack_pre_dispatch()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def raw_stream(device: int) -> int:
    """The current CUDA stream of a device as a driver handle; ``torch.cuda.current_stream`` makes an object first."""
    return int(torch._C._cuda_getCurrentRawStream(device))


def triton_launches_are_traced() -> bool:
    """Whether ``wrap_triton`` makes a node of a launch at the moment, which refuses options that it does not know."""
    from torch._library.triton import is_wrap_triton_enabled

    return bool(is_wrap_triton_enabled())


PRIVATE: dict[str, str] = {}
"""Private names of torch by their full path, and why each is used: there is no public one that does the same."""


def missing() -> list[str]:
    """The names of :data:`PRIVATE` that this torch does not have."""
    return [name for name in PRIVATE if not _exists(name)]


def _exists(name: str) -> bool:
    """Whether a dotted name can be imported or read from what can."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
