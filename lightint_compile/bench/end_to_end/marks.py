"""Points in time of a rollout: of the device that reaches them where it is a GPU, of the host on a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

Mark = tuple[torch.device, Any]


class Marks:
    """A clock of all devices that a rollout uses, begun while none of them works.

    Events of two GPUs cannot be compared, so each has a zero of its own. They are recorded one after the other on idle
    devices: they lie microseconds apart.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._gpus = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
        self._wait()
        self._begin = time.perf_counter()
        self._zeros = {device: _event(device) for device in self._gpus}

    def now(self, device: torch.device) -> Mark:
        """When the work that was given so far to the current stream of a device is done."""
        return device, _event(device) if device.type == "cuda" else time.perf_counter()

    def finish(self) -> float:
        """Seconds of the host's clock since the beginning, once all devices are done."""
        self._wait()
        return time.perf_counter() - self._begin

    def milliseconds(self, mark: Mark) -> float:
        """From the beginning to a mark; only after :meth:`finish`."""
        device, at = mark
        if device.type == "cuda":
            return float(self._zeros[device].elapsed_time(at))
        return 1e3 * (at - self._begin)

    def _wait(self) -> None:
        for device in self._gpus:
            torch.cuda.synchronize(device)


def _event(device: torch.device) -> torch.cuda.Event:
    with torch.cuda.device(device):  # an event belongs to the device that is current
        event = torch.cuda.Event(enable_timing=True)
        event.record()
    return event
