"""Bad command lines, drawn at random: whatever is wrong with one, it is one line on stderr and exit code 2."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from lightint_compile import __version__
from lightint_compile.cli import main
from lightint_compile.cli.failing import check_folder, check_writable

PROJECT = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, tokens, scale=1.0, **more):
        return self.linear(tokens) * scale

def call():
    return Model().eval(), (torch.randn(4, 8),), {}

def misfit():
    return Model().eval(), (torch.randn(4, 9),), {}

def too_many():
    return Model().eval(), (torch.randn(4, 8), 1.0, 2, 3), {}

def bad_inside():
    def forward(x):
        raise KeyError("no such layer")
    return forward, (torch.randn(2),), {}

def raises():
    raise RuntimeError("weights are not\\nthere")

def leaves():
    raise SystemExit(3)

def wants(size):
    return call()

def number():
    return 3

def pair():
    return Model(), (torch.randn(4, 8),)

def tensor_for_args():
    return Model(), torch.randn(4, 8), {}

def list_for_kwargs():
    return Model(), (torch.randn(4, 8),), [1]

def no_module():
    return "model", (), {}

constant = 7
"""

TARGETS = [
    *("", ":", "a:", ":b", ".", "/", "..", "worldplay", "worldplay:", "worldplay:huge", "no_such_package:call"),
    *("bad lines:call", "bad_lines_broken:call", "bad_lines_leaving:call", "bad_lines_project.deep:call"),
    *(f"bad_lines_project:{name}" for name in ("misfit", "too_many", "bad_inside", "raises", "leaves", "wants")),
    *(f"bad_lines_project:{name}" for name in ("number", "pair", "tensor_for_args", "list_for_kwargs", "no_module")),
    *(f"bad_lines_project:{name}" for name in ("constant", "absent", "Model.forward", "torch")),
]
OPTIONS = [
    *(["-p", name] for name in ("", "exakt", "ALL", "0")),
    *(["-o", pair] for pair in ("density", "=", "density=2", "density=no", "passes=nope", "passes=a{", "roles=3")),
    *(["-o", pair] for pair in ("tile=[1,2]", "require=[1]", "strict=maybe", "unknown=1", 'roles={"tokens":"cam"}')),
    *(["-d", pair] for pair in ("tokens", "tokens=", "tokens=x", "=0", "tokens=2", "tokens=-3", "scale=0", "token=0")),
    *(["-d", "tokens=0,7"], ["--dynamic"], ["--nonsense"], ["--preset"], ["-o"]),
]
PLACES = ["", ".", "taken", "absent/deep/file", "plain/file", "taken/"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_lines_project.py").write_text(PROJECT)
    (tmp_path / "bad_lines_broken.py").write_text("def call(:\n")
    (tmp_path / "bad_lines_leaving.py").write_text("raise SystemExit('bye')\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "plain").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("project", "broken", "leaving"):
        monkeypatch.delitem(sys.modules, f"bad_lines_{name}", raising=False)


def fails(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["lightint", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capfd.readouterr()
    assert stopped.value.code == 2, (arguments, out, err)
    assert err.startswith("lightint: ") and err.count("\n") == 1 and not out, (arguments, out, err)
    assert "Traceback" not in err and len(err) < 1500, (arguments, err)
    return err


@pytest.mark.parametrize("target", TARGETS)
def test_a_bad_target_is_one_line(
    target: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fails(["explain", target, "-p", "exact"], monkeypatch, capfd)


@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_a_bad_option_is_one_line(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fails(["explain", "bad_lines_project:call", *option], monkeypatch, capfd)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_is_told_before_any_work(
    place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("lightint_compile.explaining.explain", refuse)
    monkeypatch.setattr("lightint_compile.exporting.export", refuse)
    for option in ("--json", "--html"):
        said = fails(["explain", "bad_lines_project:call", option, place], monkeypatch, capfd)
        assert "cannot be written" in said and option in said
    for into in (f"{place.rstrip('/')}.pt2/m.pt2/", "absent/deep/m.pt2", "/proc/m.pt2"):
        said = fails(["export", "bad_lines_project:call", into], monkeypatch, capfd)
        assert "cannot be written" in said and "at PATH" in said
    assert not Path("absent").exists()


@pytest.mark.parametrize("folder", ["plain", "plain/deep", "/proc/absent", "/proc/absent/deep"])
@pytest.mark.parametrize(
    "command",
    [["compile", "bad_lines_project:call"], ["demo"], ["train", "maze"], ["bench", "all"]],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(
    command: list[str], folder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the work was begun")

    works = ("cli.compiling.compile_ahead", "demo.run_demo", "training.train", "bench.parts.job.run_all")
    for work in works:
        monkeypatch.setattr(f"lightint_compile.{work}", refuse)
    said = fails([*command, "--out", folder], monkeypatch, capfd)
    assert "cannot be written to · at --out" in said and "fix: name a folder of yours" in said


@pytest.mark.parametrize("path", ["/proc/report", "/proc/version"])
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_rights_alone_do_not_make_a_file_writable(
    option: str, path: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = fails(["explain", "bad_lines_project:call", option, path], monkeypatch, capfd)
    assert "cannot be written" in said and "Errno" not in said


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_writable("--json", Path("plain"))
    check_writable("--json", Path("taken/new"))
    check_folder("--out", Path("absent/deep"))
    check_folder("--out", Path("taken"))
    assert Path("plain").read_text() == "a file"
    assert not Path("absent").exists() and not list(Path("taken").iterdir())


@pytest.mark.parametrize("group", [[], ["train"], ["bench"]], ids=" ".join)
def test_a_group_without_a_command_prints_its_help(
    group: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightint", *group])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capfd.readouterr()
    assert stopped.value.code == 2 and "Usage" in out + err and "fix:" not in err


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lightint", "--version"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code and capfd.readouterr().out == f"lightint {__version__}\n"


@pytest.mark.parametrize("seed", range(30))
def test_several_faults_at_once_are_one_line(
    seed: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(seed)
    target = draw.choice([*TARGETS, "bad_lines_project:call"])
    command = draw.choice(["explain", "export"])
    arguments = [command, target] + (["m.pt2"] if command == "export" else [])
    for _ in range(draw.randint(1, 3)):
        arguments += draw.choice(OPTIONS)
    if command == "explain":
        arguments += [draw.choice(["--json", "--html"]), draw.choice(PLACES)]
    fails(arguments, monkeypatch, capfd)


def test_what_went_wrong_and_where_is_in_the_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = {
        "misfit": ["reduction dim", "bad_lines_project.py:10"],
        "too_many": ["too many positional arguments"],
        "bad_inside": ["KeyError: 'no such layer'", "bad_lines_project.py:23"],
        "raises": ["RuntimeError: weights are not there", "bad_lines_project.py:27"],
        "wants": ["missing a required argument: 'size'"],
        "pair": ["it returned (Model, tuple)"],
        "constant": ["it is int"],
    }
    for name, words in said.items():
        line = fails(["explain", f"bad_lines_project:{name}", "-p", "exact"], monkeypatch, capfd)
        assert all(word in line for word in words), line
