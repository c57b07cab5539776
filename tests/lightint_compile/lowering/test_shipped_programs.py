"""Programs that are made ahead of time into a folder: another process starts with them, and says so where it cannot."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import lightint_compile
from lightint_compile.cli.app import app
from lightint_compile.compilation import not_shipped
from lightint_compile.errors import DeviceError, InputError, LightintError, OptionError, StateError
from lightint_compile.lowering import artifact_folder
from lightint_compile.lowering.artifact_keys import SURROUNDINGS
from lightint_compile.lowering.shipped_programs import kept
from lightint_compile.options import LightintOptions

MODULE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.linear(x.repeat_interleave(16, 0)))

def factory():
    torch.manual_seed(0)
    return Model().eval().requires_grad_(False), (torch.randn(2, 8),), {}

def plain():
    return nn.Linear(8, 8).requires_grad_(False), (torch.randn(2, 8),), {}
"""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x.repeat_interleave(16, 0)))


class Other(nn.Module):
    """Another graph."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x) + 1
        return out


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where this machine keeps what it compiles."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def forgotten(cache: Path) -> None:
    """This machine keeps no program."""
    shutil.rmtree(cache / "lightint", ignore_errors=True)
    artifact_folder._warn_once.cache_clear()


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def shipped(cache: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "programs"
    torch._dynamo.reset()
    with lightint_compile.keep_artifacts(folder):
        call(model)
    return folder


def call(model: nn.Module, **options: Any) -> Any:
    """The section of one call, whose result is right."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact", **options})
    x = torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    (section,) = lightint_compile.report(compiled).sections
    return section


def test_another_machine_starts_with_them(model: Model, shipped: Path, cache: Path) -> None:
    assert (kept(shipped).programs, kept(shipped).regions) == (1, 1) and kept(shipped).size > 1000
    assert not call(model).measurements["warm start"], "nothing is in the cache of this machine"
    shutil.rmtree(cache / "lightint")
    before = {file: file.read_bytes() for file in shipped.rglob("*") if file.is_file()}
    section = call(model, artifacts=str(shipped))
    assert section.measurements["warm start"]
    assert not [remark for remark in section.remarks if remark.rule == "artifacts"]
    assert {file: file.read_bytes() for file in shipped.rglob("*") if file.is_file()} == before
    assert call(model, artifacts=shipped).measurements["warm start"], "a path is taken as well as text"


def test_where_no_program_fits_it_is_compiled_and_the_difference_is_named(
    model: Model, shipped: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SURROUNDINGS, "Triton", lambda: "9.9.9")
    with caplog.at_level(logging.WARNING):
        section = call(model, artifacts=str(shipped))
    assert not section.measurements["warm start"]
    (remark,) = [remark for remark in section.remarks if remark.rule == "artifacts"]
    assert "Triton: " in remark.message and remark.message.endswith("'9.9.9' here")
    assert str(shipped) in caplog.text


def test_another_graph_is_none_of_them(model: Model, shipped: Path) -> None:
    section = call(Other(model), artifacts=str(shipped))
    (remark,) = [remark for remark in section.remarks if remark.rule == "artifacts"]
    assert remark.message.endswith("it holds none of this graph with these options")


def test_a_damaged_program_is_compiled_anew_and_stays_as_it_is(model: Model, shipped: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shipped, damaged)
    binary = next(damaged.glob("*/*.bin"))
    binary.write_bytes(b"no program")
    assert not call(model, artifacts=str(damaged)).measurements["warm start"]
    assert binary.read_bytes() == b"no program"


@pytest.mark.parametrize("text", ["[]", "3", '{"surroundings": null}', '{"surroundings": []}', "{", None])
def test_a_damaged_index_is_a_remark(text: str | None, model: Model, shipped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    shutil.copytree(shipped, folder)
    index = folder / "artifacts.json"
    index.unlink()
    index.mkdir() if text is None else index.write_text(text)
    assert not_shipped(str(folder)).message.count("artifacts.json cannot be read")
    if text == "[]":
        section = call(Other(model), artifacts=str(folder))
        assert any("artifacts.json cannot be read" in remark.message for remark in section.remarks)


@pytest.mark.parametrize("text", ["", "[]", None])
def test_a_damaged_program_of_another_graph_is_left_out(
    text: str | None, model: Model, shipped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "programs"
    shutil.copytree(shipped, folder)
    (folder / "other").mkdir()
    record = folder / "other" / "record.json"
    record.mkdir() if text is None else record.write_text(text)
    with caplog.at_level(logging.WARNING), lightint_compile.keep_artifacts(folder):
        pass
    assert kept(folder).programs == 1 and "other is damaged" in caplog.text
    assert json.loads((folder / "artifacts.json").read_text())["surroundings"].keys() == SURROUNDINGS.keys()


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path, shipped: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StateError, match="the programs cannot be kept"), lightint_compile.keep_artifacts(file):
        pass
    folder = tmp_path / "programs"
    shutil.copytree(shipped, folder)
    (folder / "artifacts.json").unlink()
    (folder / "artifacts.json").mkdir()
    with pytest.raises(StateError, match="the programs cannot be kept"), lightint_compile.keep_artifacts(folder):
        pass


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owner here")
def test_a_folder_that_others_may_write_to_is_not_used_and_one_of_root_is(
    model: Model, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(shipped, copied)
    copied.chmod(0o777)
    assert not call(model, artifacts=str(copied)).measurements["warm start"]
    copied.chmod(0o755)
    artifact_folder._warn_once.cache_clear()
    owner = copied.stat().st_uid
    assert not artifact_folder.distrust(copied, root=True)
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert bool(artifact_folder.distrust(copied, root=True)) == (owner != 0)
    assert "belongs to user" in artifact_folder.distrust(copied)


@pytest.mark.parametrize(
    ("folder", "why"), [("nowhere", "there is no such folder"), (".", "it has no artifacts.json"), (3, "a folder")]
)
def test_what_is_no_such_folder_is_an_error(folder: Any, why: str, tmp_path: Path) -> None:
    given = str(tmp_path / folder) if isinstance(folder, str) else folder
    with pytest.raises(OptionError, match=why):
        LightintOptions(artifacts=given)


def test_what_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    plain = nn.Linear(8, 8).requires_grad_(False)
    with pytest.raises(StateError, match="no program was kept"), lightint_compile.keep_artifacts(tmp_path / "none"):
        call(plain)
    with pytest.raises(ZeroDivisionError), lightint_compile.keep_artifacts(tmp_path / "none"):
        raise ZeroDivisionError
    assert not (tmp_path / "none" / "artifacts.json").exists()


def test_the_command_makes_them_and_a_fresh_process_starts_with_them(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    where: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    command = [sys.executable, "-m", "lightint_compile", "compile", "mine:factory", "-p", "exact", "--out", "programs"]
    made = subprocess.run(command, **where)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("programs: 1 program of 1 regions, ")
    about = json.loads((tmp_path / "programs" / "artifacts.json").read_text())["surroundings"]
    assert about.keys() == SURROUNDINGS.keys()
    script = (
        "import torch, mine, lightint_compile\n"
        "module, args, _ = mine.factory()\n"
        "options = {'preset': 'exact', 'artifacts': 'programs'}\n"
        "compiled = torch.compile(module, backend='lightint', options=options)\n"
        "with torch.no_grad():\n"
        "    torch.testing.assert_close(compiled(*args), module(*args))\n"
        "print(lightint_compile.report(compiled).sections[0].measurements['warm start'])\n"
    )
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "another"), "PYTHONPATH": str(tmp_path)}
    used = subprocess.run([sys.executable, "-c", script], env=env, **where)
    assert used.stdout.strip() == "1.0", used.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["worldplay:tyni"], InputError, "worldplay:tiny"),
        (["worldplay:tiny", "--dynamic", "x=0"], OptionError, "--dynamic is for factories"),
        (["torch:rand", "--chunks", "3"], OptionError, "--chunks is for a FAMILY:SIZE"),
        (["torch:rand", "--device", "cpu"], OptionError, "--device is for a FAMILY:SIZE"),
        (["worldplay:tiny", "-o", "delegate=eager"], OptionError, "delegate cannot be set here"),
        (["worldplay:tiny", "-p", "exakt"], OptionError, "exact"),
        (["worldplay:8b-480p", "--device", "cpu"], DeviceError, "needs a CUDA device"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    arguments: list[str], kind: type[LightintError], said: str, tmp_path: Path
) -> None:
    refused = CliRunner().invoke(app, ["compile", *arguments, "--out", str(tmp_path / "out")])
    assert isinstance(refused.exception, kind) and said in str(refused.exception)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
