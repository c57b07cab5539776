"""Running one call several times: with the same random numbers, on inputs that stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightint_compile.errors import StateError


def owned(outputs: Any) -> Any:
    """Outputs in memory of their own: a CUDA graph writes its next results where the last ones were."""
    return pytree.tree_map_only(Tensor, torch.clone, outputs)


@contextmanager
def same_randomness(args: Sequence[Any]) -> Iterator[Callable[[], None]]:
    """Lets a call run again with the same random numbers; afterwards they are as after the last run."""
    devices = sorted({each.device.index or 0 for each in args if isinstance(each, Tensor) and each.is_cuda})
    host, others = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]

    def again() -> None:
        torch.set_rng_state(host)
        for device, state in zip(devices, others, strict=True):
            torch.cuda.set_rng_state(state, device)

    yield again


@contextmanager
def unwritten(args: Sequence[Any], done: str, known: Sequence[int] | None) -> Iterator[None]:
    """Refuses a call that writes to inputs that nobody knows of: it cannot be run twice, and so not be ``done``.

    Args:
        known: positions of those that it writes to, which every run has for itself; ``None``: nothing is known.

    Raises:
        StateError: it did.
    """
    tensors = [each for each in args if isinstance(each, Tensor)] if known is None else []
    before = [each.clone() if each.is_inference() else each._version for each in tensors]
    yield
    if any(map(_differs, before, tensors)):
        raise StateError(
            f"a module that writes to its inputs cannot be {done}",
            why="each call is run several times on the same inputs, and the graph of this one was not rewritten",
            fix="return the new values instead of writing them",
        )


def _differs(before: Tensor | int, now: Tensor) -> bool:
    """Tensors of inference mode do not count how often they are written to."""
    return before != now._version if isinstance(before, int) else not torch.equal(before, now)
