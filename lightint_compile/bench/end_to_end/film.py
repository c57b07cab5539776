"""A rollout from noise to frames in host memory, in the process that is timed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightint_compile.bench.end_to_end.decoder import ChunkDecoder, HostFrames
from lightint_compile.bench.end_to_end.job import EndToEnd, indexed
from lightint_compile.bench.end_to_end.lanes import Lane, lane_of
from lightint_compile.bench.end_to_end.marks import Mark, Marks
from lightint_compile.bench.end_to_end.prompt import prompt_encoder
from lightint_compile.bench.end_to_end.result import (
    DECODE,
    DENOISE,
    TEXT,
    TRANSFER,
    UNREAD_TEXT,
    Run,
    Span,
    measured_fields,
)
from lightint_compile.bench.rollout_subject import Subject

WARM_CHUNKS = 3
"""They reach the graphs of model and decoder with and without a history."""

_Stretch = tuple[str, int, Mark, Mark]


class Film:
    """A model, its decoder and the lane that decodes."""

    def __init__(self, job: EndToEnd) -> None:
        self.job = job
        self.subject = Subject(job.rollout)
        self._device = indexed(self.subject.device)
        self._lane: Lane = lane_of(job.decoding, self._device)
        self.decoder = ChunkDecoder(self.subject.model, job.decoding, self.subject.dtype)
        self.frames = HostFrames()
        subject = self.subject
        chosen = (subject.model, job.rollout.model, subject.scene, subject.device, subject.dtype)
        self.prompt = prompt_encoder(*chosen) if job.text else None

    def warm_up(self) -> None:
        """Compile model and decoder."""
        self.roll(WARM_CHUNKS)
        for device in self._gpus:
            with torch.cuda.device(device):
                torch.cuda.empty_cache()

    def measure(self) -> dict[str, Any]:
        """Whole rollouts, after one that warms up."""
        compiled = self.subject.compilations()
        self.roll()
        for device in self._gpus:
            torch.cuda.reset_peak_memory_stats(device)
        runs = [self.roll() for _ in range(self.job.rollout.repeats)]
        return {
            **measured_fields(runs),
            "decoder": self.decoder.told,
            "text": self.prompt.told if self.prompt else UNREAD_TEXT,
            "peak_gigabytes": {str(gpu): torch.cuda.max_memory_allocated(gpu) / 1e9 for gpu in self._gpus},
            "compiled_late": self.subject.compilations() - compiled,
        }

    @torch.no_grad()
    def roll(self, chunks: int | None = None) -> Run:
        """A rollout, or its first chunks."""
        self.decoder.rewind()
        stretches, frames = list[_Stretch](), 0
        marks = Marks((self._device, self._lane.device))
        if self.prompt is not None:
            begin = marks.now(self._device)
            self.subject.scene = self.prompt.scene()
            stretches.append((TEXT, 0, begin, marks.now(self._device)))
        rollout = iter(self.subject.rollout())
        for index, begin, latents in islice(self._denoised(rollout, marks), chunks):
            stretches.append((DENOISE, index, begin, marks.now(self._device)))
            decoded, transferred, made = self._shown(index, latents, marks)
            stretches += [decoded, transferred]
            frames += made
        seconds = marks.finish()
        spans = [Span(stage, at, *map(marks.milliseconds, ends)) for stage, at, *ends in stretches]
        return Run(seconds, frames, tuple(spans))

    def _denoised(self, rollout: Iterator[Any], marks: Marks) -> Iterator[tuple[int, Mark, Tensor]]:
        """Number, beginning and latents of each chunk."""
        while True:
            begin = marks.now(self._device)
            chunk = next(rollout, None)
            if chunk is None:
                return
            yield chunk.index, begin, chunk.latents

    def _shown(self, index: int, latents: Tensor, marks: Marks) -> tuple[_Stretch, _Stretch, int]:
        lane = self._lane
        with lane.take(self.decoder.scaled(latents)) as mine:
            begin = marks.now(lane.device)
            frames = self.decoder.decode(mine)
            decoded = marks.now(lane.device)
            count = self.frames.take(index, frames)
            end = marks.now(lane.device)
        return (DECODE, index, begin, decoded), (TRANSFER, index, decoded, end), count

    @property
    def _gpus(self) -> list[torch.device]:
        return [each for each in dict.fromkeys((self._device, self._lane.device)) if each.type == "cuda"]
