"""Programs on disk: damaged in any way they are a cold start, in a folder of somebody else's they are not touched."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.lowering import artifact_folder as cachefolder
from lightint_compile.lowering import artifact_store as store
from lightint_compile.lowering.artifact_folder import LIMIT, CacheFolder
from lightint_compile.reporting import Report
from lightint_compile.reporting.page.graph_data import graph_data
from lightint_compile.reporting.readable import readable


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x.repeat_interleave(16, 0)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def fresh(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    cachefolder._warn_once.cache_clear()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval().requires_grad_(False)


def _run(model: Model) -> bool:
    """One call in a process that has compiled nothing yet: right, and whether it was a warm start."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact"})
    x = torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    (section,) = lightint_compile.report(compiled).sections
    return bool(section.measurements["warm start"])


def _report(model: Model) -> Report:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact"})
    with torch.no_grad():
        compiled(torch.randn(2, 8))
    return lightint_compile.report(compiled)


def test_a_warm_start_has_the_report_of_the_cold_one_its_graphs_included(cache: Path, model: Model) -> None:
    for record in (cache / "lightint").glob("*/record.json"):
        record.unlink()
    cold, warm = _report(model), _report(model)
    assert [r.sections[0].measurements["warm start"] for r in (cold, warm)] == [0, 1]
    assert [dataclasses.replace(s, measurements={}) for s in cold.sections] == [
        dataclasses.replace(s, measurements={}) for s in warm.sections
    ]
    first, second = ([s.graphs for s in r.sections] for r in (cold, warm))
    for (one, other), section in zip(zip(first, second, strict=True), warm.sections, strict=True):
        assert one is not None and other is not None and readable(one.after) == readable(other.after)
        assert graph_data(one, section.remarks) == graph_data(other, section.remarks)


def _record(cache: Path) -> Path:
    (found,) = (cache / "lightint").glob("*/record.json")
    return found


def test_a_record_damaged_in_any_way_is_a_cold_start(
    cache: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(model)
    assert _run(model)
    path = _record(cache)
    binary = next(path.parent.glob("*.bin"))
    kept = {file: file.read_bytes() for file in (path, binary)}
    draw = random.Random(0)
    damages: list[Callable[[], object]] = [
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(kept[path][: draw.randrange(len(kept[path]))]),
        lambda: path.write_text("[]"),
        lambda: path.write_bytes(os.urandom(200)),
        lambda: binary.write_bytes(b""),
        lambda: binary.write_bytes(kept[binary][: draw.randrange(len(kept[binary]))]),
        lambda: binary.write_bytes(bytes([kept[binary][0] ^ 1]) + kept[binary][1:]),
        binary.unlink,
        lambda: (path.unlink(), path.mkdir()),
    ]
    for damage in damages:
        damage()
        assert not _run(model), "a damaged record was used"
        assert _run(model), "it was not made again"
        path = _record(cache)
        binary = next(path.parent.glob("*.bin"))


def test_a_field_that_is_missing_or_of_another_type_is_a_cold_start(cache: Path, model: Model) -> None:
    _run(model)
    assert _run(model)
    path = _record(cache)
    record = json.loads(path.read_text())
    record.pop("hash")
    draw = random.Random(1)
    damaged = [{key: value for key, value in record.items() if key != dropped} for dropped in record]
    damaged += [{**record, key: draw.choice([None, 3, "x", ["x"]])} for key in record if key != "guard"]
    damaged += [{**record, "source": record["source"][:-7] + "("}]
    (name,) = record["leaves"]
    damaged += [
        {**record, "leaves": {name: {k: v for k, v in record["leaves"][name].items() if k != dropped}}}
        for dropped in record["leaves"][name]
    ]
    folder = CacheFolder(cache / "lightint")
    for one in damaged:
        path.write_text(json.dumps(store._sealed(one)))
        with pytest.MonkeyPatch.context() as patch:  # reading is what is tried; making it again was tried above
            patch.setattr(folder, "remove", lambda _: None)
            found = store.Store().load(path.parent.name, lambda *_: None, lambda _: None)  # type: ignore[arg-type,return-value]
        assert found is None or one.get("branches") is None or one["source"] != record["source"], sorted(one)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            assert not list(path.parent.iterdir())
            path.parent.rmdir()
            assert not _run(model)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owner here")
def test_a_folder_that_others_may_write_to_is_not_used(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert not _run(model) and _run(model)
    assert os.stat(tmp_path / "lightint").st_mode & 0o777 == 0o700
    (tmp_path / "lightint").chmod(0o777)
    assert not _run(model) and not _run(model)
    assert sum("others may write" in record.message for record in caplog.records) == 1
    (tmp_path / "lightint").chmod(0o700)
    assert _run(model)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert not _run(model)
    assert "belongs to user" in caplog.text


def _fill(folder: Path, name: str, size: int, used: float) -> Path:
    staging = folder / f"staging-{name}"
    staging.mkdir(parents=True)
    (staging / "record.json").write_bytes(b"x" * size)
    os.utime(staging, (used, used))
    return staging.rename(folder / name)


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, now = CacheFolder(tmp_path / "lightint"), time.time()
    records = [_fill(folder.path, f"r{age}", 1000, now - age) for age in (50, 40, 30, 20)]
    abandoned = folder.path / "staging-old"
    abandoned.mkdir()
    os.utime(abandoned, (now - 1e6, now - 1e6))
    (folder.path / "calibration").mkdir()
    folder.used(records[0])
    monkeypatch.setenv(LIMIT, "0.0000021")
    folder.evict()
    assert [record.exists() for record in records] == [True, False, False, True]
    assert not abandoned.exists() and (folder.path / "calibration").exists()


def test_a_limit_of_nothing_keeps_nothing(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv(LIMIT, "0")
    assert not _run(model) and not _run(model)
    monkeypatch.setenv(LIMIT, "plenty")
    assert cachefolder.limit() == cachefolder.DEFAULT_LIMIT


def test_processes_that_evict_and_read_at_once_do_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "0.000003")
    folder = CacheFolder(tmp_path / "lightint")
    assert folder.is_ready()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                _fill(folder.path, f"{number}-{turn}", 1000, time.time())
                folder.evict()
                folder.used(folder.path / f"{number}-{turn}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    folder.evict()
    assert len(list(folder.path.glob("*/record.json"))) <= 3


def test_a_region_of_a_warm_start_compiles_a_later_size(cache: Path, model: Model) -> None:
    _run(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "strict": True})
    x = torch.randn(2, 8)
    with torch.no_grad():
        for _ in range(2):
            compiled(x)
            torch._dynamo.reset()
        compiled(x)
        (graph,) = CompiledGraph.of(compiled)
        assert graph.section.measurements["warm start"] == 1 and graph.driver is not None
        for leaf in graph.driver.leaves.values():
            leaf.variants.clear()
        torch.testing.assert_close(compiled(x), model(x))
        assert graph.driver.compilations == len(graph.driver.leaves)
