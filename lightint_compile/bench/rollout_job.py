"""What one row of the benchmark of a rollout is, and what was measured of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from lightint_compile.errors import DeviceError, OptionError
from lightint_compile.models.registry import DEMO, world_model
from lightint_compile.options import LightintOptions

UNREWRITTEN = ("eager", "inductor")
"""Variants that are no preset."""


@dataclass(frozen=True)
class Job:
    """One variant of a model, by its name, at one depth."""

    variant: str
    depth: int
    model: str
    trajectory: str
    repeats: int
    device: str

    @property
    def title(self) -> str:
        """What it is called in lines that are printed."""
        return f"{self.variant} depth {self.depth}"

    @property
    def options(self) -> dict[str, Any] | None:
        """What a preset's variant says; ``None`` for eager and Inductor."""
        preset, _, _ = self.variant.partition("@")
        return None if preset in UNREWRITTEN else variant_options(preset)


@dataclass(frozen=True)
class Result:
    """What one job measured.

    Attributes:
        warm_seconds: capture, rewriting and compiling, first calls included.
        chunks: median milliseconds of each chunk of the rollout.
        kernels: milliseconds of device kernels of the last chunk by kind; empty without a GPU.
        stages: milliseconds of the last chunk but one by stage, the device's where it is a GPU; empty for Inductor, and
            in a rollout of less than three chunks.
        largest: milliseconds of the kernels of the last chunk that take longest, by name.
        driver: milliseconds that a chunk takes the host by kind of call, on average over all chunks but the first and
            the last two; empty for eager and Inductor.
        busy: milliseconds of the last chunk in which the device ran something, of kernels that overlap once; 0 without
            a GPU.
        context: context frames of each chunk, where decided at run time.
        reused: reused steps of each chunk, likewise.
        compiled_late: graphs and regions compiled after the warm-up.
        peak_gigabytes: device memory allocated at most, 10^9 bytes.
    """

    job: Job
    warm_seconds: float
    chunks: tuple[float, ...] = ()
    kernels: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    driver: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0
    context: tuple[int, ...] = ()
    reused: tuple[int, ...] = ()
    compiled_late: int = 0
    peak_gigabytes: float = 0.0
    error: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A result as it was written."""
        return cls(**{**data, "job": Job(**data["job"])})

    @property
    def seconds(self) -> float:
        """The whole rollout."""
        return sum(self.chunks) / 1e3

    @property
    def idle(self) -> float | None:
        """Share of the last chunk in which the device had nothing to do: against its time without a profiler."""
        return max(1 - self.busy / self.chunks[-1], 0.0) if self.busy and self.chunks else None

    @property
    def deciding(self) -> float | None:
        """Host time of decisions and guards, their waiting included, as a share of the chunks they were taken in."""
        middle = self.chunks[1:-2]
        return (self.driver["decide"] + self.driver["guard"]) / statistics.mean(middle) if self.driver else None


def device_for(model: str) -> str:
    """The kind of device that a model is measured on here.

    Raises:
        DeviceError: it is too large for a CPU, and there is no CUDA.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and world_model(model).needs_gpu:
        raise DeviceError(f"{model} needs a CUDA device", where="--model", fix=f"{DEMO} runs anywhere")
    return device


def jobs_of(variant: str, depths: tuple[int, ...], model: str, trajectory: str, repeats: int, device: str) -> list[Job]:
    """A variant of ``model``, or of another size of its family (``all@tiny-int8``), at each depth.

    Raises:
        OptionError: there is no such preset, option or value.
        InputError: there is no such size.
    """
    name, at, size = variant.partition("@")
    if name not in UNREWRITTEN:
        LightintOptions.from_mapping(variant_options(name))
    if at:
        model = f"{model.partition(':')[0]}:{size}"
        world_model(model)
    return [Job(variant, depth, model, trajectory, repeats, device) for depth in depths]


def outside_braces(text: str) -> list[str]:
    """What stands between commas, but for those of a value such as ``{"a": 1, "b": 2}``."""
    items: list[str] = []
    for item in filter(None, text.split(",")):
        if items and items[-1].count("{") > items[-1].count("}"):
            items[-1] += f",{item}"
        else:
            items.append(item)
    return items


def variant_options(variant: str) -> dict[str, Any]:
    """``preset+pass+...:option=value,...`` as options; passes behind a plus run besides those of the preset.

    Raises:
        OptionError: a value that is not JSON.
    """
    named, _, rest = variant.partition(":")
    preset, plus, also = named.partition("+")
    more = {"also": also.replace("+", ",")} if plus else {}
    pairs = [item.partition("=") for item in outside_braces(rest)]
    try:
        return {"preset": preset, **more, **{name: json.loads(value) for name, _, value in pairs}}
    except json.JSONDecodeError as error:
        fix = "for example all:drift=1e9"
        raise OptionError(f"{variant!r} cannot be read", where="--variant", why=str(error), fix=fix) from error
