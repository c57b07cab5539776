"""``lightint::joined_frames``: padding by edges and joining in one copy, equal to the last bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from edge_cases import CASES, Case, expected, pads_of, parts_of
from torch.nn import functional as F

from lightint_compile.errors import InputError
from lightint_compile.kernels.edge_frames import joined_frames

SUPPORT = Path(__file__).parents[1] / "support"
lightint = torch.ops.lightint


@pytest.mark.parametrize("name", CASES)
def test_it_pads_and_joins(name: str) -> None:
    case = CASES[name]
    for dtype in (torch.float32, torch.bfloat16):
        parts = [part.to(dtype) for part in parts_of(case)]
        found = joined_frames(parts, pads_of(case))
        assert torch.equal(found, expected(case, parts))
        assert found.is_contiguous(memory_format=torch.channels_last_3d)


def test_operator_contract() -> None:
    for case in CASES.values():
        torch.library.opcheck(lightint.joined_frames.default, (parts_of(case), pads_of(case)))


def test_the_kernel_interpreted_copies_every_row() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, str(SUPPORT / "edge_interpreted.py")]
    found = subprocess.run(command, capture_output=True, text=True, cwd=SUPPORT, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split("\n")[:-1] == list(CASES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda parts, pads: ([], pads), "are not .batch"),
        (lambda parts, pads: ([part[0] for part in parts], pads), "are not .batch"),
        (lambda parts, pads: ([parts[0], parts[1][..., 1:]], pads), "more than their frames"),
        (lambda parts, pads: ([parts[0], parts[1].double()], pads), "more than their frames"),
        (lambda parts, pads: (parts, pads[:6]), "6 numbers"),
        (lambda parts, pads: (parts, [*pads[:11], -1]), "6 numbers"),
    ],
)
def test_what_does_not_fit_is_told(change: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        joined_frames(*change(parts_of(Case()), pads_of(Case())))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*CASES, "as large as a decoder's"])
def test_on_a_gpu_it_is_equal(name: str, dtype: torch.dtype) -> None:
    case = CASES.get(name, Case(channels=256, frames=(2, 16), size=(240, 416), last=True))
    parts = [part.cuda().to(dtype) for part in parts_of(case)]
    found = joined_frames(parts, pads_of(case))
    assert torch.equal(found, expected(case, parts))
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.gpu
def test_on_a_gpu_more_values_than_32_bits_count() -> None:
    case = Case(channels=512, frames=(1, 9), size=(600, 800), last=True)
    assert 512 * 10 * 602 * 802 > 2**31
    parts = [torch.randint(-100, 100, part, device="cuda", dtype=torch.int8).bfloat16() for part in case.sizes()]
    parts = [part.to(memory_format=torch.channels_last_3d) for part in parts]
    found = joined_frames(parts, pads_of(case))
    for frame in (0, 1, 9):
        part, place = (parts[0], frame) if frame < 1 else (parts[1], frame - 1)
        wanted = F.pad(part[:, :, place], (1, 1, 1, 1), mode="replicate")
        assert torch.equal(found[:, :, frame], wanted)
