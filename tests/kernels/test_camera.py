"""``lightint::camera_heads`` and ``camera_heads_kept``: specification against model, kernels against specification."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from camera_cases import CASES, KEPT_CASES, Case, KeptCase, inputs, joined, kept_inputs

from lightint_compile.errors import InputError
from lightint_compile.kernels import camera, camera_kept
from lightint_compile.kernels.camera import camera_heads
from lightint_compile.kernels.camera_kept import camera_heads_kept
from lightint_compile.models.worldplay.blocks import RMSNorm
from lightint_compile.models.worldplay.camera import apply_matrix, apply_rope

SUPPORT = Path(__file__).parents[1] / "support"


def modelled(case: Case, *given):
    """What WorldPlay's block does with a projection, head by head, in float64."""
    heads, matrix, weight, eps, cosine, sine, both = (
        each.double() if isinstance(each, torch.Tensor) else each for each in given
    )
    if weight is not None:
        norm = RMSNorm(case.dim, eps).double()
        norm.weight.data.copy_(weight)
        heads = norm(heads)
    standing = heads.transpose(1, 2)
    seen = apply_matrix(standing, matrix).transpose(1, 2)
    rotated = standing if cosine is None else apply_rope(standing, (cosine, sine))
    return torch.cat([rotated.transpose(1, 2), seen]) if both else seen


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_what_the_model_does(name: str, dtype: torch.dtype) -> None:
    given = inputs(CASES[name], dtype)
    with torch.no_grad():
        expected, got = modelled(CASES[name], *given), camera_heads(*given)
    assert got.dtype == dtype and got.is_contiguous() and got.shape == expected.shape
    bound = 1e-6 if dtype == torch.float64 else 2**-8  # tables and matrices are float32; one rounding at the end
    assert ((got.double() - expected).abs() <= bound * (1 + expected.abs())).all()


def test_operator_contract() -> None:
    for case in CASES.values():
        torch.library.opcheck(torch.ops.lightint.camera_heads.default, inputs(case, torch.float32))
    for case in KEPT_CASES.values():
        torch.library.opcheck(torch.ops.lightint.camera_heads_kept.default, kept_inputs(case, torch.float32))


def test_the_kernel_interpreted_is_the_specification() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, str(SUPPORT / "camera_interpreted.py")]
    found = subprocess.run(command, capture_output=True, text=True, cwd=SUPPORT, timeout=300)
    assert found.returncode == 0, found.stderr
    errors = json.loads(found.stdout)
    assert set(errors) == {*CASES, *KEPT_CASES} and max(errors.values()) < 2e-5, errors


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({0: torch.zeros(1, 21, 3, 66)}, "heads"),
        ({1: torch.zeros(1, 20, 4, 4)}, "matrix"),
        ({2: torch.zeros(32)}, "weight"),
        ({4: torch.zeros(21, 32)}, "cosine"),
        ({5: None}, "sine"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[int, torch.Tensor], named: str) -> None:
    given = list(inputs(CASES["queries"], torch.float32))
    for place, value in change.items():
        given[place] = value
    with pytest.raises(InputError, match=named):
        camera_heads(*given)


@pytest.mark.parametrize("name", KEPT_CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_frames_in_slots_give_what_they_give_in_one_piece(name: str, dtype: torch.dtype) -> None:
    given = kept_inputs(KEPT_CASES[name], dtype)
    with torch.no_grad():
        found, expected = camera_heads_kept(*given), camera_heads(*joined(*given))
    assert found.is_contiguous() and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({0: torch.zeros(1, 6, 7, 3, 32)}, "pool"),
        ({0: torch.zeros(1, 42, 3, 64)}, "pool"),
        ({0: torch.zeros(1, 6, 7, 3, 64, dtype=torch.float64)}, "pool"),
        ({1: torch.zeros(2, dtype=torch.int64)}, "matrix"),
        ({3: torch.zeros(1, 14, 4, 4)}, "matrix"),
        ({4: torch.zeros(14, 64)}, "cosine"),
    ],
)
def test_kept_tensors_that_do_not_fit(change: dict[int, torch.Tensor], named: str) -> None:
    given = list(kept_inputs(KEPT_CASES["keys"], torch.float32))
    for place, value in change.items():
        given[place] = value
    with pytest.raises(InputError, match=named):
        camera_heads_kept(*given)


def test_kernels_are_started_on_the_device_of_their_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from lightint_compile.kernels.portable import camera as portable

    found: list[Any] = []
    for operation, given in ((camera, inputs), (camera_kept, kept_inputs)):
        cases = (CASES, KEPT_CASES)[operation is camera_kept]
        arguments = given(next(iter(cases.values())), torch.bfloat16)
        heads = arguments[0 if operation is camera else 2]
        entered = lambda tensor: nullcontext(found.append(tensor.data_ptr()))  # noqa: E731
        monkeypatch.setattr(operation, "on_device_of", entered)
        monkeypatch.setattr(portable, operation.__name__.rpartition(".")[2].replace("camera", "camera_heads"), len_of)
        assert operation._on_gpu(*arguments) == len(arguments)
        assert found.pop() == heads.data_ptr() and not found


def len_of(*arguments: Any) -> int:
    return len(arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*KEPT_CASES, "large"])
def test_kept_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    large = KeptCase(slots=(*range(4), *range(12, 16)), capacity=20, frame=1560, fresh=6240, heads=16, dim=128)
    given = kept_inputs(KEPT_CASES.get(name, large), dtype, "cuda")
    with torch.no_grad():
        found, expected = camera_heads_kept(*given), camera_heads(*joined(*given)).double()
    eps = torch.finfo(dtype).eps  # one rounding: products may be contracted otherwise in the other kernel
    assert ((found.double() - expected).abs() <= eps * (1e-2 + expected.abs())).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*CASES, "large"])
def test_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    case = CASES.get(name, Case(batch=1, tokens=6240, heads=16, dim=128))
    given = inputs(case, dtype, "cuda")
    with torch.no_grad():
        expected, got = (
            modelled(case, *(v.cpu() if isinstance(v, torch.Tensor) else v for v in given)),
            camera_heads(*given),
        )
    eps = torch.finfo(dtype).eps
    assert ((got.cpu().double() - expected).abs() <= eps * (1e-2 + expected.abs())).all()
