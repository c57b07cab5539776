"""Results that outlive a call, and the streams of a device that make and read them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Produced:
    """Tensors at the moment when the stream that makes them has been told to: others that read them wait for it."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.is_cuda]
        self._made = [_Moment(device) for device in {tensor.device for tensor in self._tensors}]

    def wait(self) -> None:
        """What the current streams do from now on may read the tensors.

        Nothing on the stream that made them. Another one waits on the device, not on the host, and the memory is not
        given to others before it is done with it.
        """
        for moment in self._made:
            reader = torch.cuda.current_stream(moment.device)
            if reader == moment.stream:
                continue
            reader.wait_event(moment.event)
            for tensor in self._tensors:
                if tensor.device == moment.device:
                    tensor.record_stream(reader)


class _Moment:
    """How far the current stream of a device has been told what to do."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.current_stream(device)
        self.event = torch.cuda.Event()
        self.event.record(self.stream)


class Order:
    """Memory that one call after another reads and writes, each perhaps on another stream: they do so in turn."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def enter(self, tensors: Iterable[Tensor]) -> None:
        """The current streams go on with ``tensors`` where the last ones have got to, whatever became of those."""
        held = [tensor for tensor in tensors if tensor.is_cuda]
        for device in {tensor.device for tensor in held}:
            reader, last = torch.cuda.current_stream(device), self._streams.get(device)
            self._streams[device] = reader
            if last is None or last == reader:
                continue
            reader.wait_stream(last)
            for tensor in held:
                if tensor.device == device:
                    tensor.record_stream(reader)
