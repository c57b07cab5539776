"""What is measured end to end: a rollout, and how its latents are decoded. Everything is checked before work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightint_compile.bench.decode_choices import Backend, Order
from lightint_compile.bench.rollout_job import UNREWRITTEN, Job
from lightint_compile.errors import DeviceError, OptionError
from lightint_compile.models.devices import checked_device


@dataclass(frozen=True)
class Decoding:
    """How latents become frames.

    Attributes:
        order: ``serial``, behind its chunk's denoising on the same stream, or ``overlap``, on a stream of its own while
            the next chunk is denoised.
        device: where it is done, such as ``cuda:1``.
        backend: what compiles the decoder; ``lightint`` means its preset ``exact``.
        decoder: which of the model's, by name; the first unless given.
    """

    order: Order
    device: str
    backend: Backend
    decoder: str = ""

    @property
    def compiled(self) -> dict[str, Any] | None:
        """Arguments of ``torch.compile``; ``None`` for a decoder that is not compiled."""
        if self.backend is Backend.EAGER:
            return None
        options = {"preset": "exact"} if self.backend is Backend.LIGHTINT else None
        return {"backend": str(self.backend), "options": options, "fullgraph": True}

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the inputs of convolutions: channels last, the faster one, where they are compiled for a GPU."""
        last = self.backend is Backend.LIGHTINT and torch.device(self.device).type == "cuda"
        return torch.channels_last_3d if last else torch.contiguous_format

    def __str__(self) -> str:
        return f"{self.backend}, {self.order}, {self.device}"


@dataclass(frozen=True)
class EndToEnd:
    """One variant of a model from noise to frames in host memory; with ``text``, from a prompt."""

    rollout: Job
    decoding: Decoding
    text: bool = False

    @property
    def title(self) -> str:
        """What it is called in lines that are printed."""
        return self.rollout.title


@dataclass(frozen=True)
class Asked:
    """What the command line says of decoding; ``None`` where it says nothing."""

    order: Order | None = None
    device: str | None = None
    backend: Backend | None = None
    decoder: str | None = None
    text: bool = False

    def decoding(self, model_device: str, variant: str) -> Decoding:
        """How a variant decodes.

        Raises:
            DeviceError: overlap or a second device is asked for where there is no such GPU.
            OptionError: a device of its own and a serial order exclude each other.
        """
        device = self._device(model_device)
        order = self.order or (Order.OVERLAP if torch.device(model_device).type == "cuda" else Order.SERIAL)
        if order is Order.OVERLAP and device.type != "cuda":
            why = "two streams of work need a GPU, and the model is on a CPU"
            raise DeviceError("nothing can overlap here", where="--decode overlap", why=why, fix="--decode serial")
        if order is Order.SERIAL and device != indexed(model_device):
            why = f"the model is on {indexed(model_device)}; on another device a chunk is decoded beside it"
            fix = "leave --decode out, or --decode-device"
            raise OptionError("serial decoding has no device of its own", where="--decode-device", why=why, fix=fix)
        return Decoding(order, str(device), self.backend or default_backend(variant), self.decoder or "")

    def _device(self, model_device: str) -> torch.device:
        device = checked_device(self.device or model_device)
        if device.type != torch.device(model_device).type:
            why, fix = f"the model is on {model_device}", "name a GPU such as cuda:1, or leave it out"
            raise OptionError(f"frames cannot be decoded on {device}", where="--decode-device", why=why, fix=fix)
        return indexed(device)


def default_backend(variant: str) -> Backend:
    """lightint under its presets; else eager, as Inductor may not come to an end with a large VAE."""
    return Backend.EAGER if variant.partition("@")[0] in UNREWRITTEN else Backend.LIGHTINT


def indexed(device: torch.device | str) -> torch.device:
    """The device, a GPU by its number."""
    found = torch.device(device)
    return torch.device("cuda", found.index or 0) if found.type == "cuda" else found
