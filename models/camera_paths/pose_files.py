"""Read recorded camera paths: JSON, and the text formats of the TUM and KITTI benchmarks.

A bad line or entry is an InputError that names the file and the line. Recorded paths are in metres, at camera rate and
anywhere in space; each model resamples, rescales and re-bases them to what it was trained on.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightint_compile.errors import InputError

from .poses import check_rigid, invert_rigid, normalise_intrinsics


@dataclass(frozen=True)
class RecordedPath:
    """Camera-to-world `poses` [n, 4, 4] float64 at `times` [n] (seconds or indices), perhaps with `intrinsics`."""

    poses: Tensor
    times: Tensor
    intrinsics: Tensor | None = None


def read_pose_file(path: str | Path) -> RecordedPath:
    """What a `.json`, TUM (8 numbers a line) or KITTI file (12 a line) holds; InputError if it cannot be read."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("The pose file cannot be read.", where=str(path), why=str(error)) from error
    return parse_json(text, str(path)) if path.suffix.lower() == ".json" else parse_lines(text, str(path))


def parse_lines(text: str, name: str) -> RecordedPath:
    """TUM (`time tx ty tz qx qy qz qw`) or KITTI (a 3x4 matrix by rows), told apart by the count of the first line."""
    rows = [
        (number, _numbers(line, f"{name}, line {number}"))
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not rows:
        raise InputError("The pose file is empty.", where=name, fix="give one pose a line")
    width = len(rows[0][1])
    if width not in (8, 12):
        why = f"it has {width} numbers"
        raise InputError(
            "The format is unknown.", where=f"{name}, line {rows[0][0]}", why=why, fix="8 (TUM) or 12 (KITTI)"
        )
    for number, row in rows:
        if len(row) != width:
            why = f"it has {len(row)} numbers, the lines before have {width}"
            raise InputError("A line is malformed.", where=f"{name}, line {number}", why=why)
    return _tum(rows, name) if width == 8 else _kitti(rows, name)


def _numbers(line: str, where: str) -> list[float]:
    numbers = []
    for column, word in enumerate(line.split(), start=1):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError("A line is malformed.", where=where, why=f"column {column}, {word!r}, is no finite number")
        numbers.append(value)
    return numbers


def _tum(rows: list[tuple[int, list[float]]], name: str) -> RecordedPath:
    poses: list[Tensor] = []
    times: list[float] = []
    for number, row in rows:
        if times and row[0] <= times[-1]:
            why = f"time {row[0]} follows {times[-1]}"
            raise InputError("Times must increase.", where=f"{name}, line {number}", why=why)
        times.append(row[0])
        poses.append(_rigid(_rotation(row[4:8], f"{name}, line {number}"), row[1:4]))
    return RecordedPath(torch.stack(poses), torch.tensor(times, dtype=torch.float64))


def _rotation(quaternion: list[float], where: str) -> Tensor:
    """Rotation [3, 3] of a quaternion (x, y, z, w), normalised."""
    norm = math.sqrt(sum(value * value for value in quaternion))
    if abs(norm - 1.0) > 1e-2:
        why = f"its quaternion has length {norm:.4g}"
        raise InputError("A line is malformed.", where=where, why=why, fix="the order is tx ty tz qx qy qz qw")
    x, y, z, w = (value / norm for value in quaternion)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _rigid(rotation: Tensor, translation: list[float]) -> Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation
    pose[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return pose


def _kitti(rows: list[tuple[int, list[float]]], name: str) -> RecordedPath:
    poses = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    for index, (number, row) in enumerate(rows):
        poses[index, :3] = torch.tensor(row, dtype=torch.float64).reshape(3, 4)
        check_rigid(poses[index : index + 1], f"{name}, line {number}")
    return RecordedPath(poses, torch.arange(len(rows), dtype=torch.float64))


def parse_json(text: str, name: str) -> RecordedPath:
    """An object with `extrinsics`, a list of 4x4 matrices, and optionally `intrinsics`, `times` and `convention`.

    `convention` is `"world_to_camera"` (the default) or `"camera_to_world"`. `intrinsics` is one 3x3 matrix or one a
    frame, normalised by the image size; a principal point beyond 1 says that they are in pixels.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("The pose file is no JSON.", where=name, why=str(error)) from error
    if not isinstance(data, dict) or "extrinsics" not in data:
        why = "the key 'extrinsics' is missing"
        raise InputError("The pose file lacks poses.", where=name, why=why, fix='write {"extrinsics": [4x4, ...]}')
    matrices = _array(data["extrinsics"], (4, 4), f"{name}, extrinsics")
    check_rigid(matrices, f"{name}, extrinsics")
    convention = data.get("convention", "world_to_camera")
    if convention not in ("world_to_camera", "camera_to_world"):
        fix = "use world_to_camera or camera_to_world"
        raise InputError(
            "The convention is unknown.", where=f"{name}, convention", why=f"it is {convention!r}", fix=fix
        )
    poses = invert_rigid(matrices) if convention == "world_to_camera" else matrices
    return RecordedPath(poses, _times(data, len(poses), name), _intrinsics(data, len(poses), name))


def _array(value: Any, shape: tuple[int, ...], where: str) -> Tensor:
    """A list of arrays of `shape`, float64; the first entry that is not is named."""
    if not isinstance(value, list) or not value:
        raise InputError("A list is expected.", where=where, why=f"it is {type(value).__name__}, or empty")
    entries = []
    for index, entry in enumerate(value):
        try:
            tensor = torch.tensor(entry, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError("An entry is no array.", where=f"{where}[{index}]", why=str(error)) from error
        if tuple(tensor.shape) != shape:
            why = f"its shape is {tuple(tensor.shape)}, expected {shape}"
            raise InputError("An entry has a wrong shape.", where=f"{where}[{index}]", why=why)
        entries.append(tensor)
    return torch.stack(entries)


def _times(data: dict[str, Any], count: int, name: str) -> Tensor:
    if "times" not in data:
        return torch.arange(count, dtype=torch.float64)
    times = _array(data["times"], (), f"{name}, times")
    if len(times) != count:
        raise InputError("One time a pose.", where=f"{name}, times", why=f"{len(times)} times for {count} poses")
    return times


def _intrinsics(data: dict[str, Any], count: int, name: str) -> Tensor | None:
    if "intrinsics" not in data:
        return None
    value, where = data["intrinsics"], f"{name}, intrinsics"
    nested = (
        isinstance(value, list) and value and isinstance(value[0], list) and value[0] and isinstance(value[0][0], list)
    )
    matrices = _array(value if nested else [value], (3, 3), where)
    matrices = normalise_intrinsics(matrices) if bool((matrices[:, :2, 2] > 1.0).all()) else matrices
    if not nested:
        return matrices[0]
    if len(matrices) != count:
        raise InputError("One matrix a pose.", where=where, why=f"{len(matrices)} matrices for {count} poses")
    return matrices
