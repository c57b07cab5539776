"""Bad command lines, drawn at random: whatever is wrong with one, it is one line on stderr and exit code 2."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from lightint_compile.cli import main

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
    if place not in ("", ".", "absent/deep/file"):
        fails(["export", "bad_lines_project:call", f"{place.rstrip('/')}.pt2/m.pt2/"], monkeypatch, capfd)


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
