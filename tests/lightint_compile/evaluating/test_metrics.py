"""Quality of frames by hand values and by torchmetrics; revisits; intervals."""

from __future__ import annotations

import math

import pytest
import torch

from lightint_compile.evaluating.metrics import HIGHEST, by_chunk, interval, mean, psnr, ssim, worst_decile
from lightint_compile.evaluating.revisits import revisited, revisits
from lightint_compile.models.registry import world_model

SPEC = world_model("maze:tiny").spec


def frames(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_psnr_of_a_known_error_and_of_equal_frames() -> None:
    truth = frames(2) * 0.5
    found = psnr(torch.stack([truth[0] + 0.1, truth[1]]), truth)
    assert found.tolist() == pytest.approx([20.0, HIGHEST], abs=1e-3)


def test_frames_are_judged_one_by_one_as_torchmetrics_judges_them() -> None:
    metrics = pytest.importorskip("torchmetrics.image")
    truth = frames(3)
    noisy = (truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    for index in range(3):
        one = slice(index, index + 1)
        peak = metrics.PeakSignalNoiseRatio(data_range=1.0)(noisy[one], truth[one])
        similarity = metrics.StructuralSimilarityIndexMeasure(data_range=1.0)(noisy[one], truth[one])
        assert float(psnr(noisy, truth)[index]) == pytest.approx(float(peak), abs=1e-4)
        assert float(ssim(noisy, truth)[index]) == pytest.approx(float(similarity), abs=1e-5)


def test_revisits_need_an_older_frame_that_shows_more_than_the_last_chunk() -> None:
    overlap = torch.zeros(16, 16)
    overlap[8, 1], overlap[8, 6] = 0.8, 0.5  # seen again
    overlap[9, 1], overlap[9, 6] = 0.8, 0.9  # the last chunk shows it better
    overlap[10, 1] = 0.6  # too little
    overlap[12, 9] = 0.9  # only the last chunk shows it
    assert revisits(overlap, SPEC).nonzero().flatten().tolist() == [8]


def test_a_turn_and_back_is_revisited_on_the_way_back_and_a_walk_ahead_never() -> None:
    model = world_model("maze:tiny")
    back = revisited(model.camera_path("left-15,right-16"), SPEC)
    assert not back[:17].any() and back[24:].all()
    assert not revisited(model.camera_path("w-31"), SPEC).any()


def test_bootstrap_interval_holds_the_mean_and_narrows_with_more_scenes() -> None:
    values = [float(value) for value in range(8)]
    low, high = interval(values) or (math.nan, math.nan)
    assert low < 3.5 < high
    # The mean of 8 numbers of variance 5.25 has a standard error of 0.81: 1.96 of them to either side.
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(5.25 / 8), rel=0.1)
    wider = high - low
    low, high = interval(values * 4) or (math.nan, math.nan)
    assert high - low == pytest.approx(wider / 2, rel=0.1)
    assert interval([3.0, 3.0]) == (3.0, 3.0)
    assert interval([1.0]) is None and interval([None, 1.0]) is None


def test_means_chunks_and_the_worst_tenth() -> None:
    assert mean([1.0, None, 3.0]) == 2.0 and mean([None]) is None
    assert by_chunk(torch.tensor([1.0, 3.0, 5.0, 7.0]), 2) == [2.0, 6.0]
    assert worst_decile([float(value) for value in range(20)]) == 0.5
    assert worst_decile([4.0, 2.0]) == 2.0 and worst_decile([]) is None
