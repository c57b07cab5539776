"""Whatever stands in a file that is read back, its reader says so, or does without: no other error reaches a user."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lightint_compile import WorldState
from lightint_compile.bench.parts.kept import Folder
from lightint_compile.error_budget.table import Measured, Table
from lightint_compile.error_budget.table import load as load_table
from lightint_compile.errors import LightintError
from lightint_compile.evaluating import work_file
from lightint_compile.exporting.loading import _report
from lightint_compile.exporting.results import restored
from lightint_compile.kept_traces.record import Trace
from lightint_compile.kernels import cost
from lightint_compile.lowering.artifact_store import Store, read_record
from lightint_compile.lowering.shipped_programs import kept, why_none_fits
from lightint_compile.models.camera_paths.pose_files import read_pose_file
from lightint_compile.models.checkpoint import locate_keys
from lightint_compile.models.maze.weight_folder import card_of, rest_of
from lightint_compile.options.error_limits import Budget, Deviation
from lightint_compile.read_back import UnreadableError, of_type
from lightint_compile.trace_parts import UnkeepableError
from lightint_compile.training.logbook import Logbook
from lightint_compile.world_state import file as state_file

PART = SimpleNamespace(name="part")
BUDGET = Budget(max_relative_error=0.1, min_psnr=20.0)
TABLE = Table((Measured("sparse", Deviation(0.1, 20.0), 3, rollouts=(Deviation(0.1, 20.0),)),))


def calibration(path: Path) -> None:
    table = load_table(path)
    if table is not None:
        str([*map(str, table.rows), table.choice(BUDGET), TABLE.joined(table).smallest()])


def work(path: Path) -> None:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        result = work_file._read(line)
        assert result is None or result.walk


def rates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost._kept_rates.cache_clear()
    monkeypatch.setattr(cost, "_path", lambda *_: path)
    cost.prefers_sparse("cpu", torch.float32, 1, 2, 16, 512, 512, 0.3)


def losses(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font has not every letter
        Logbook(path.parent).draw()


READERS: dict[str, tuple[str, Callable[[Path], Any], Any]] = {
    "the index of programs": (
        "artifacts.json",
        lambda path: why_none_fits(path.parent),
        {"schema": 1, "surroundings": {"Triton": "'3'"}},
    ),
    "the record of a program": (
        "program/record.json",
        lambda path: kept(path.parent.parent),
        {"leaves": {}, "files": {}, "hash": ""},
    ),
    "a kept program": (
        "program/record.json",
        lambda path: Store(path.parent.parent).load("program", None, None),  # type: ignore[arg-type]
        {"leaves": {}, "files": {}, "hash": ""},
    ),
    "a calibration": ("table.json", calibration, TABLE.to_dict()),
    "results of an evaluation": ("results.jsonl", work, {"variant": "all", "family": "maze", "number": 1}),
    "the record of a run": (
        "part.run.json",
        lambda path: Folder(path.parent).last(PART),  # type: ignore[arg-type]
        {"arguments": ["bench"], "machine": {}, "date": "", "seconds": 1.0},
    ),
    "figures": ("part.json", lambda path: Folder(path.parent).figures(PART), {"rows": []}),  # type: ignore[arg-type]
    "the card of weights": (
        "card.json",
        lambda path: (card_of(path.parent), rest_of(path.parent)),
        {"model": "maze:tiny", "steps": {"flow": 1}, "rest": "base"},
    ),
    "the index of a checkpoint": (
        "model.safetensors.index.json",
        lambda path: locate_keys(path.parent),
        {"weight_map": {"weight": "model.safetensors"}},
    ),
    "recorded cameras": (
        "path.json",
        read_pose_file,
        {"extrinsics": [torch.eye(4).tolist()], "times": [0.0], "intrinsics": torch.eye(3).tolist()},
    ),
    "the losses of a training": ("log.jsonl", losses, {"phase": "flow", "step": 1, "loss": 0.5}),
    "the results of an export": (
        "results.json",
        lambda path: restored(path.read_text(encoding="utf-8", errors="replace")),
        {"modules": ["json"], "spec": ""},
    ),
    "a trace": ("a.trace", lambda path: refused(lambda: Trace.from_bytes(path.read_bytes())), {}),
    "the state of a world": ("state.safetensors", WorldState.load, {}),
}

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400)
VALUES = st.recursive(SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=8), each))


def refused(read: Callable[[], Any]) -> None:
    with pytest.raises(UnkeepableError):
        read()


def spoilt(data: Any, draw: Callable[[Any], Any]) -> Any:
    """``data`` with another value in one place."""
    if not isinstance(data, (dict, list)) or not data or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    place = draw(st.sampled_from(sorted(data) if isinstance(data, dict) else range(len(data))))
    entries = dict(data) if isinstance(data, dict) else list(data)
    entries[place] = spoilt(data[place], draw)
    return entries


@st.composite
def contents(draw: Callable[[Any], Any], whole: Any) -> bytes:
    """What may stand in a file: other JSON, what was written with one value changed, a part of it, or anything."""
    kind = draw(st.sampled_from(("spoilt", "value", "cut", "bytes")))
    if kind == "bytes":
        return bytes(draw(st.binary(max_size=64)))
    data = json.dumps({"spoilt": lambda: spoilt(whole, draw), "value": lambda: draw(VALUES)}.get(kind, lambda: whole)())
    return data.encode()[: draw(st.integers(0, len(data))) if kind == "cut" else None]


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_whatever_stands_in_its_file(name: str, tmp_path: Path) -> None:
    file, read, whole = READERS[name]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)

    @settings(max_examples=25, deadline=None)
    @given(contents(whole))
    def reads(content: bytes) -> None:
        path.write_bytes(content)
        outcome(read, path)

    reads()
    for deep in ("[" * 100_000, '{"surroundings":' * 100_000):
        path.write_text(deep)
        outcome(read, path)


def outcome(read: Callable[[Path], Any], path: Path) -> None:
    """An error of ours is a right answer."""
    try:
        read(path)
    except LightintError as error:
        assert str(error)


def test_rates_are_those_of_the_table_where_the_file_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "rates.json", {"rates": vars(cost._CPU)}

    @settings(max_examples=25, deadline=None)
    @given(contents(whole))
    def reads(content: bytes) -> None:
        path.write_bytes(content)
        rates(path, monkeypatch)

    reads()
    path.write_text(json.dumps(whole))
    cost._kept_rates.cache_clear()
    assert cost._kept_rates(torch.device("cpu"), None, 1) == (cost._CPU, cost.Origin.MEASURED)
    cost._kept_rates.cache_clear()


@pytest.mark.parametrize("state", [[], 3, {}, {"memory": [], "world": {}}, {"memory": {}, "world": {"x": 1}}])
def test_a_state_of_another_form_is_an_error_of_ours(state: Any, tmp_path: Path) -> None:
    path = state_file.write_state(tmp_path / "state.safetensors", state)
    with pytest.raises(LightintError):
        WorldState.load(path)


@settings(max_examples=25, deadline=None)
@given(VALUES)
def test_a_header_of_another_form_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    content = json.dumps(data)
    header = {"lightint_state": state_file.FORMAT, "lightint_content": content}
    save_file({"x": torch.zeros(1)}, path, metadata={**header, "lightint_content_sha256": state_file._hash(content)})
    outcome(WorldState.load, path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"'])
def test_a_report_of_another_form_is_unreadable(text: str) -> None:
    with pytest.raises(TypeError, match="an object is expected"):
        _report(text)


def test_a_damaged_program_is_named_and_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, text in {"empty": "", "list": "[]", "other": '{"leaves": {}, "files": {}, "hash": "x"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
        with pytest.raises(UnreadableError):
            read_record(tmp_path / name)
    (tmp_path / "folder" / "record.json").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert kept(tmp_path).programs == 0
    assert all(f"{tmp_path / name} is damaged" in caplog.text for name in ("empty", "list", "other", "folder"))


def test_fields_have_the_types_of_their_annotations() -> None:
    made = of_type(work_file.Result, {**_RESULT, "peak_gigabytes": 3, "revisited": [True]})
    assert made.peak_gigabytes == 3.0 and made.revisited == (True,)
    for wrong in ({"number": "1"}, {"number": True}, {"revisited": [1]}, {"psnr_truth": "x"}, {"unknown": 1}):
        with pytest.raises(TypeError):
            of_type(work_file.Result, {**_RESULT, **wrong})


_LISTS = ("psnr_truth", "ssim_truth", "psnr_eager", "ssim_eager", "revisited")
_RESULT = {"variant": "all", "family": "maze", "number": 1, "seed": 0, "chunk": 4, **{name: [] for name in _LISTS}}
