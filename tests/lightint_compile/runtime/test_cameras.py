"""Cameras and intrinsics as callers give them: the same decisions whatever they come in, or one clear refusal."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cameras import camera
from toy_world import there_and_back
from typer.testing import CliRunner

import lightint_compile
from lightint_compile.cli.app import app
from lightint_compile.errors import InputError
from lightint_compile.runtime.cameras import rigid, view_of
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.rules import PublishedRules

PATH = there_and_back(40)[0]
FOCAL = (0.505, 0.898)
"""Over width and height."""


def decided(cameras: Any, **given: Any):
    with lightint_compile.rollout(cameras=cameras, **given) as run:
        for chunk in range(len(PATH) // 4):
            run.chunk(chunk)
        return run.decisions


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "lists": lambda path: path.tolist(),
    "an array": lambda path: path.numpy(),
    "a list of tensors": lambda path: list(path),
    "a list of arrays": lambda path: [each.numpy() for each in path],
    "an axis of one in front": lambda path: path[None],
    "three rows": lambda path: path[:, :3],
    "float64": lambda path: path.double(),
    "not contiguous": lambda path: path.mT.contiguous().mT,
    "requires a gradient": lambda path: path.clone().requires_grad_(),
    "a float32 array in Fortran's order": lambda path: np.asfortranarray(path.numpy()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_path_is_the_same_in_whatever_it_comes(form: str) -> None:
    assert decided(FORMS[form](PATH)) == decided(PATH)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_cameras_are_rigid_again_and_decide_alike(dtype: torch.dtype) -> None:
    found = rigid(PATH.to(dtype))
    turned = found[:, :3, :3] @ found[:, :3, :3].mT
    assert float((turned - torch.eye(3)).abs().max()) < 1e-6
    torch.testing.assert_close(found, PATH.double(), atol=2 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)
    assert [d.reused_steps for d in decided(PATH.to(dtype))] == [d.reused_steps for d in decided(PATH)]


@pytest.mark.parametrize("seed", range(4))
def test_any_rotation_survives_any_format(seed: int) -> None:
    draw = random.Random(seed)
    poses = [camera(draw.uniform(-180, 180), draw.uniform(-85, 85), (draw.gauss(0, 9), 0.0, 1.0)) for _ in range(64)]
    exact = torch.stack(poses)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        allowed = 4 * torch.finfo(dtype).eps
        found = rigid(exact.to(dtype))[:, :3, :3]
        torch.testing.assert_close(found, exact[:, :3, :3], atol=allowed, rtol=0)
        torch.testing.assert_close(torch.linalg.det(found), torch.ones(64, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spoil", ["nan", "scale", "mirror", "bottom"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cameras_that_are_no_rigid_transforms_are_named(spoil: str, dtype: torch.dtype) -> None:
    cameras = torch.stack([camera(0), camera(5)])
    if spoil == "nan":
        cameras[1, 0, 3] = math.nan
    elif spoil == "scale":
        cameras[1, :3, :3] *= 1.1
    elif spoil == "mirror":
        cameras[1, 0] *= -1
    else:
        cameras[1, 3, 0] = 0.5
    said = {"nan": "NaN", "scale": "a scale or a shear", "mirror": "a reflection", "bottom": "bottom row [0.5,"}
    with pytest.raises(InputError, match="rigid") as caught:
        rigid(cameras.to(dtype))
    assert "frame 1" in str(caught.value) and said[spoil] in str(caught.value)


def test_what_is_kept_of_cameras_is_not_the_callers_memory() -> None:
    for dtype in (torch.float64, torch.float32):
        buffer = PATH.to(dtype)
        planner = Planner(PublishedRules())
        with lightint_compile.rollout(cameras=buffer) as run:
            for chunk in range(10):
                given = buffer[: 4 * (chunk + 1)].clone()
                assert planner.decide(given).chunk == chunk == run.chunk(chunk).chunk
                given.zero_()
                if chunk == 4:
                    buffer = PATH.to(dtype, copy=True)
        assert [d.chunk for d in planner.decisions] == list(range(10)), "every chunk continues the one before"
    overwritten = PATH.double()
    with lightint_compile.rollout(cameras=overwritten) as run:
        overwritten.zero_()
        for chunk in range(10):
            run.chunk(chunk)
        assert run.decisions == decided(PATH)


WIDE = torch.diag(torch.tensor([*FOCAL, 1.0]))
PIXELS = torch.tensor([[FOCAL[0] * 1920, 0, 960], [0, FOCAL[1] * 1080, 540], [0, 0, 1]])
INTRINSICS = {
    "a matrix": WIDE,
    "one a frame": WIDE.repeat(40, 1, 1),
    "with an axis of one": WIDE.repeat(1, 40, 1, 1),
    "four numbers": [*FOCAL, 0.5, 0.5],
    "four numbers a frame": torch.tensor([*FOCAL, 0.5, 0.5]).repeat(40, 1),
    "lists": WIDE.tolist(),
    "pixels": PIXELS,
    "pixels as four numbers": np.array([PIXELS[0, 0], PIXELS[1, 1], 960, 540]),
    "bf16": WIDE.bfloat16(),
}


@pytest.mark.parametrize("name", INTRINSICS)
def test_intrinsics_tell_one_field_of_view(name: str) -> None:
    view = view_of(INTRINSICS[name])
    expected = [math.degrees(2 * math.atan(0.5 / focal)) for focal in FOCAL]
    assert [view.horizontal, view.vertical] == pytest.approx(expected, rel=3e-3 if name == "bf16" else 1e-5)


def test_pixels_are_converted_aloud(caplog) -> None:
    with caplog.at_level("INFO", logger="lightint_compile.runtime"):
        view_of(PIXELS)
    assert "in pixels: taken over an image of 1920 by 1080" in caplog.text


def replaced(place, value) -> torch.Tensor:
    path = PATH.clone()
    path[place] = value
    return path


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"cameras": None}, "4x4"),
    "words": ({"cameras": "w-31"}, "are numbers"),
    "ragged": ({"cameras": [[[1.0]], [[1.0], [2.0]]]}, "are numbers"),
    "no frames": ({"cameras": torch.zeros(0, 4, 4)}, "is empty"),
    "complex": ({"cameras": PATH.to(torch.complex64)}, "is complex"),
    "no memory": ({"cameras": PATH.to("meta")}, "on the meta device"),
    "one matrix": ({"cameras": torch.eye(4)}, "4x4"),
    "other matrices": ({"cameras": torch.zeros(8, 3, 3)}, "4x4"),
    "two paths": ({"cameras": PATH.repeat(2, 1, 1, 1)}, "2 paths"),
    "half a chunk": ({"cameras": PATH[:14]}, "whole number"),
    "NaN": ({"cameras": replaced((5, 0, 0), math.nan)}, "frame 5 holds NaN"),
    "a scale in bf16": ({"cameras": (PATH @ torch.diag(torch.tensor([1.1, 1.1, 1.1, 1]))).bfloat16()}, "scale"),
    "a negative focal length": ({"cameras": PATH, "intrinsics": -WIDE}, "positive"),
    "an infinite focal length": ({"cameras": PATH, "intrinsics": WIDE * math.inf}, "positive"),
    "two numbers": ({"cameras": PATH, "intrinsics": FOCAL}, "no intrinsics"),
    "no intrinsics": ({"cameras": PATH, "intrinsics": torch.zeros(0, 3, 3)}, "is empty"),
    "text": ({"cameras": PATH, "intrinsics": "sixty"}, "are numbers"),
    "pixels without an image": ({"cameras": PATH, "intrinsics": [969.0, 969.0, 0.0, 0.0]}, "image size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_path_is_one_clear_error(name: str) -> None:
    given, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        lightint_compile.rollout(**given)
    error = caught.value
    assert message in str(error) and error.where in given and error.why and error.fix


@pytest.mark.parametrize("path", ["w-999999", f"w-{'9' * 5000}", "w-1000,s-1000,w-1000"])
def test_a_path_that_nobody_would_wait_for_is_refused_at_once(path: str) -> None:
    result = CliRunner().invoke(app, ["decisions", "--trajectory", path])
    assert isinstance(result.exception, InputError) and "too long" in str(result.exception)
    assert len(str(result.exception)) < 400
