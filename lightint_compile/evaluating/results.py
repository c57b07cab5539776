"""What is kept of a rollout, and the rows that many of them make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .metrics import by_chunk, interval, mean, psnr, ssim, worst_decile
from .variants import EAGER


@dataclass(frozen=True)
class Result:
    """One variant along one walk; lists are by frame or by chunk, of what was not given.

    Attributes:
        psnr_truth, ssim_truth: of decoded frames against the rendered truth, by frame; PSNR in dB.
        psnr_eager, ssim_eager: against the frames of the unaccelerated model from the same noise.
        revisited: whether a frame shows what was seen before the last chunk.
        relative_errors: relative L2 of each chunk's latents to those of the unaccelerated model.
        decoding_milliseconds: the first chunk through the codec, to the host.
        cold_seconds: the variant's first calls, compilation included; the same in all of its results.
    """

    variant: str
    family: str
    number: int
    seed: int
    chunk: int
    psnr_truth: tuple[float, ...]
    ssim_truth: tuple[float, ...]
    psnr_eager: tuple[float, ...]
    ssim_eager: tuple[float, ...]
    revisited: tuple[bool, ...]
    relative_errors: tuple[float, ...] = ()
    milliseconds: tuple[float, ...] = ()
    decoding_milliseconds: float | None = None
    cold_seconds: float | None = None
    recompiles: int = 0
    host_reads: int = 0
    computed_steps: int | None = None
    refused_steps: int | None = None
    peak_gigabytes: float | None = None

    @property
    def walk(self) -> tuple[str, int]:
        """Family and number."""
        return self.family, self.number

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which the constructor takes back."""
        return asdict(self)

    def truth(self, *, again: bool = False) -> float | None:
        """Mean PSNR to the truth, of all frames or of those seen again."""
        return mean([value for value, seen in zip(self.psnr_truth, self.revisited, strict=True) if seen or not again])


def quality(frames: Tensor, truth: Tensor, eager: Tensor) -> dict[str, tuple[float, ...]]:
    """The four lists of a result, of frames [F, 3, H, W]."""
    return {
        "psnr_truth": tuple(psnr(frames, truth).tolist()),
        "ssim_truth": tuple(ssim(frames, truth).tolist()),
        "psnr_eager": tuple(psnr(frames, eager).tolist()),
        "ssim_eager": tuple(ssim(frames, eager).tolist()),
    }


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a variant and family, in the order in which they come."""
    eager = {each.walk: each for each in results if each.variant == EAGER}
    groups: dict[tuple[str, str], list[Result]] = {}
    for each in results:
        groups.setdefault((each.variant, each.family), []).append(each)
    return [_row(variant, family, group, eager) for (variant, family), group in groups.items()]


def _row(variant: str, family: str, group: Sequence[Result], eager: dict[tuple[str, int], Result]) -> dict[str, Any]:
    truth = [each.truth() for each in group]
    again = [each.truth(again=True) for each in group]
    loss = [loss_of(each, eager) for each in group]
    loss_again = [loss_of(each, eager, again=True) for each in group]
    return {
        "variant": variant,
        "family": family,
        "mazes": len(group),
        "psnr_truth": mean(truth),
        "psnr_truth_interval": interval(truth),
        "ssim_truth": mean([mean(each.ssim_truth) for each in group]),
        "psnr_truth_revisit": mean(again),
        "psnr_truth_revisit_interval": interval(again),
        "ssim_truth_revisit": mean([mean(_seen(each, each.ssim_truth)) for each in group]),
        "revisited_frames": sum(sum(each.revisited) for each in group),
        "psnr_truth_loss": mean(loss),
        "psnr_truth_loss_interval": interval(loss),
        "psnr_truth_revisit_loss": mean(loss_again),
        "psnr_truth_revisit_loss_interval": interval(loss_again),
        "psnr_eager": mean([mean(each.psnr_eager) for each in group]),
        "psnr_eager_interval": interval([mean(each.psnr_eager) for each in group]),
        "ssim_eager": mean([mean(each.ssim_eager) for each in group]),
        **_errors([error for each in group for error in each.relative_errors]),
        "psnr_truth_worst_decile": worst_decile(_chunks(group, lambda each: each.psnr_truth)),
        "psnr_eager_worst_decile": worst_decile(_chunks(group, lambda each: each.psnr_eager)),
        "psnr_truth_by_chunk": _drift(group, lambda each: each.psnr_truth),
        "psnr_eager_by_chunk": _drift(group, lambda each: each.psnr_eager),
        **_costs(group),
    }


def _errors(errors: Sequence[float]) -> dict[str, Any]:
    return {"relative_error": mean(errors), "relative_error_worst": max(errors, default=None)}


def _costs(group: Sequence[Result]) -> dict[str, Any]:
    times = [value for each in group for value in each.milliseconds]
    chunks = max(1, len(times))
    peaks = [each.peak_gigabytes for each in group if each.peak_gigabytes is not None]
    quantiles = np.percentile(times, [50, 95, 99]).tolist() if times else [None] * 3
    return {
        "milliseconds_per_chunk": mean(times),
        **dict(zip(("milliseconds_p50", "milliseconds_p95", "milliseconds_p99"), quantiles, strict=True)),
        "first_frame_milliseconds": mean([_first_frame(each) for each in group]),
        "cold_seconds": group[0].cold_seconds,
        "peak_gigabytes": max(peaks, default=None),
        "recompiles": sum(each.recompiles for each in group),
        "host_reads_per_chunk": sum(each.host_reads for each in group) / chunks,
        "steps_per_chunk": _per_chunk([each.computed_steps for each in group], chunks),
        "refused_steps_per_chunk": _per_chunk([each.refused_steps for each in group], chunks),
    }


def _per_chunk(counts: Sequence[int | None], chunks: int) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) / chunks if known else None


def _first_frame(each: Result) -> float | None:
    """From the call of the first chunk to its frames on the host."""
    return None if each.decoding_milliseconds is None else each.milliseconds[0] + each.decoding_milliseconds


def loss_of(each: Result, eager: Mapping[tuple[str, int], Result], *, again: bool = False) -> float | None:
    """How much less of the truth than the unaccelerated model along the same walk, in dB."""
    before = eager[each.walk].truth(again=again) if each.walk in eager else None
    now = each.truth(again=again)
    return None if before is None or now is None else before - now


def _seen(each: Result, values: Iterable[float]) -> list[float | None]:
    return [value for value, seen in zip(values, each.revisited, strict=True) if seen]


Frames = Callable[[Result], Sequence[float]]


def _by_chunk(each: Result, of: Frames) -> list[float]:
    from torch import tensor

    return by_chunk(tensor(of(each)), each.chunk)


def _chunks(group: Sequence[Result], of: Frames) -> list[float]:
    return [value for each in group for value in _by_chunk(each, of)]


def _drift(group: Sequence[Result], of: Frames) -> list[float]:
    """The mean over scenes of chunk after chunk."""
    return np.mean([_by_chunk(each, of) for each in group], axis=0).tolist()
