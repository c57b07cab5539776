"""What a GPU was given once, as a CUDA graph: it can be given again by one call of the host's."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_one_at_a_time = threading.Lock()
"""Torch records all graphs of a process on one stream."""


class CudaRecording:
    """The work of ``function(*args)``, recorded and not done; :meth:`play` does it.

    It reads its arguments where they are, and has memory of its own for all that it makes.

    Attributes:
        outputs: what the function returned. They hold what was computed once it has been played, until it is again.
        held: bytes of device memory that it keeps.

    Raises:
        Exception: what the function raises, or CUDA for work that cannot be recorded. None of it was done.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], args: Sequence[Any]) -> None:
        self._device = next(value.device for value in args if isinstance(value, Tensor) and value.is_cuda)
        self._last: torch.cuda.Stream | None = None
        self._graph = torch.cuda.CUDAGraph()
        with _one_at_a_time, torch.cuda.device(self._device), torch.no_grad():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            with _undisturbed():
                self.outputs = self._recorded(function, args)
            self.held = max(torch.cuda.memory_reserved() - before, 0)

    def _recorded(self, function: Callable[..., Sequence[Any]], args: Sequence[Any]) -> Sequence[Any]:
        failure: Exception | None = None
        try:
            # Other threads (of NCCL, of a decoder beside this) go on asking for what this one must not.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                try:
                    return function(*args)
                except Exception as error:
                    failure = error
                    raise
        except Exception as error:  # ending a spoiled recording raises once more
            raise failure or error from None

    def play(self, copies: Sequence[Tensor], originals: Sequence[Tensor]) -> None:
        """Bring the originals to their copies, and do the work, on the current stream of the device.

        On another stream than the last time this waits for what that one was given.
        """
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            if self._last is not None and self._last != stream:
                stream.wait_stream(self._last)
            self._last = stream
            if copies:
                with torch.no_grad():
                    torch._foreach_copy_(list(copies), list(originals))
            self._graph.replay()

    def forget(self) -> None:
        """Give its memory back, once the device is done with it."""
        with _one_at_a_time:  # to wait for a device spoils what another thread records on it
            torch.cuda.synchronize(self._device)
            self.outputs = ()
            self._graph.reset()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A recording: its products have a workspace of their own, no dead graph is cleared away meanwhile, and one that
    fails leaves its stream.
    """
    stream, collects = torch.cuda.current_stream(), gc.isenabled()
    gc.disable()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)
        torch._C._cuda_clearCublasWorkspaces()
        if collects:
            gc.enable()
