"""What was measured end to end: spans of time, and what follows from them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lightint_compile.bench.end_to_end.job import EndToEnd

DENOISE, DECODE, TRANSFER = STAGES = ("denoise", "decode", "transfer")
"""What is done to a chunk, in order: the DiT, the VAE, and making bytes of frames and copying them to the host."""

TEXT = "text"
"""What is done once, before the first chunk, if it is asked for."""

UNREAD_TEXT = "not included"
"""What a result says of a text that is not encoded."""


@dataclass(frozen=True)
class Span:
    """When a stage of a chunk began and ended, milliseconds from the start of the rollout."""

    stage: str
    chunk: int
    begin: float
    end: float

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True)
class Run:
    """One rollout.

    Attributes:
        seconds: of the host's clock, from the first call until the last frame was in host memory.
        frames: video frames.
        spans: of the device that each stage ran on.
    """

    seconds: float
    frames: int
    spans: tuple[Span, ...]

    @property
    def first_frame(self) -> float:
        """Milliseconds until the first chunk's frames were in host memory."""
        return next(span.end for span in self.spans if span.stage == TRANSFER)

    @property
    def beside(self) -> float:
        """Share of the time of decoding and transfer in which a chunk was denoised."""
        work = [span for span in self.spans if span.stage in (DECODE, TRANSFER)]
        denoised = [span for span in self.spans if span.stage == DENOISE]
        total = sum(span.milliseconds for span in work)
        both = sum(max(min(a.end, b.end) - max(a.begin, b.begin), 0.0) for a in work for b in denoised)
        return both / total if total else 0.0


@dataclass(frozen=True)
class Spread:
    """Milliseconds of a stage over the chunks of all repeats."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Result:
    """What one variant measured.

    Attributes:
        warm_seconds: capture, rewriting and compiling of model and decoder, first calls included.
        seconds: of each repeat.
        frames: video frames of a rollout.
        first_frame: median milliseconds until the first frames were in host memory.
        beside: median share of decoding and transfer during which a chunk was denoised.
        stages: by the names of :data:`STAGES`, and :data:`TEXT` where a prompt was encoded.
        timeline: of the repeat with the median seconds.
        decoder: what decoded.
        text: what encoded the prompt.
        peak_gigabytes: allocated at most in a warm rollout, by device, 10^9 bytes; empty on a CPU.
        compiled_late: graphs and regions compiled after the warm-up.
    """

    job: EndToEnd
    warm_seconds: float
    seconds: tuple[float, ...] = ()
    frames: int = 0
    first_frame: float = 0.0
    beside: float = 0.0
    stages: dict[str, Spread] = field(default_factory=dict)
    timeline: tuple[Span, ...] = ()
    decoder: str = ""
    text: str = UNREAD_TEXT
    peak_gigabytes: dict[str, float] = field(default_factory=dict)
    compiled_late: int = 0
    error: str = ""

    @property
    def whole(self) -> float:
        """Median seconds of a rollout; not a number without one."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def rate(self) -> float:
        """Video frames a second."""
        return self.frames / self.whole

    def written(self) -> dict[str, Any]:
        """As JSON takes it, with what follows from the figures."""
        derived = {"whole_seconds": self.whole, "frames_a_second": self.rate} if self.seconds else {}
        return {**asdict(self), **derived}


def measured_fields(runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of a result, by name, of its repeats."""
    middle = sorted(runs, key=lambda run: run.seconds)[(len(runs) - 1) // 2]
    return {
        "seconds": tuple(run.seconds for run in runs),
        "frames": middle.frames,
        "first_frame": statistics.median(run.first_frame for run in runs),
        "beside": statistics.median(run.beside for run in runs),
        "stages": {stage: spread_of(_times(runs, stage)) for stage in shown_stages(middle.spans)},
        "timeline": middle.spans,
    }


def shown_stages(spans: Sequence[Span]) -> tuple[str, ...]:
    """Stages that there are, in order."""
    return (TEXT, *STAGES) if any(span.stage == TEXT for span in spans) else STAGES


def spread_of(times: Sequence[float]) -> Spread:
    """Median and 95th percentile, on the line between the two nearest."""
    return Spread(*np.percentile(times, [50, 95]).tolist())


def _times(runs: Sequence[Run], stage: str) -> list[float]:
    return [span.milliseconds for run in runs for span in run.spans if span.stage == stage]
