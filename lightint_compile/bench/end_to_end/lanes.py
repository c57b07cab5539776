"""Where a chunk is decoded: behind its denoising, or on a stream beside it, there or on another GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from lightint_compile.bench.decode_choices import Order
from lightint_compile.bench.end_to_end.job import Decoding


class Lane(Protocol):
    """What decoding runs on."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def take(self, latents: Tensor) -> AbstractContextManager[Tensor]:
        """Latents that the model's stream has just made, as the lane may read them; work inside is the lane's."""
        ...


class Behind:
    """The model's own stream: the next chunk begins when this one is decoded."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def take(self, latents: Tensor) -> Iterator[Tensor]:
        """The latents themselves."""
        yield latents


class Beside:
    """A stream of its own on the model's GPU. It waits for the latents, and the model waits for nothing.

    What is made inside of :meth:`take` lives and dies on this stream, the decoder's state included. Latents come from
    the model's stream, so the allocator is told that they are read here: their memory is not given away before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def take(self, latents: Tensor) -> Iterator[Tensor]:
        """The latents themselves."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        latents.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield latents


class Across:
    """A stream of another GPU, to which latents are copied.

    A copy between GPUs joins the current streams of both. On streams that do nothing else it holds up neither the
    model, when the decoder is behind, nor the decoder's earlier chunk.
    """

    def __init__(self, model_device: torch.device, device: torch.device) -> None:
        self.device = device
        self._model_device = model_device
        self._sends, self._takes = torch.cuda.Stream(model_device), torch.cuda.Stream(device)
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def take(self, latents: Tensor) -> Iterator[Tensor]:
        """A copy of the latents on the lane's device."""
        self._sends.wait_stream(torch.cuda.current_stream(self._model_device))
        latents.record_stream(self._sends)
        with torch.cuda.stream(self._sends), torch.cuda.stream(self._takes):
            here = latents.to(self.device, non_blocking=True)
        self._stream.wait_stream(self._takes)
        here.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield here


def lane_of(decoding: Decoding, model_device: torch.device) -> Lane:
    """The lane that a decoding asks for; the model's device has an index where it is a GPU."""
    device = torch.device(decoding.device)
    if decoding.order is Order.SERIAL:
        return Behind(device)
    return Beside(device) if device == model_device else Across(model_device, device)
