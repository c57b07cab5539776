"""The options of the benchmarks are options of the command line: in --help, and one line for a bad value."""

from __future__ import annotations

import sys

import pytest
from typer.main import get_command

from lightint_compile.cli import app, main

OPTIONS = {
    "kernels": {"device", "table", "length", "density", "seconds", "flex", "width", "json"},
    "rollout": {
        *("model", "variant", "depth", "inductor-depth", "trajectory", "chunks"),
        *("repeats", "at-once", "patience", "json"),
        *("end-to-end", "decode", "decode-device", "decode-backend", "decoder", "text", "timeline"),
    },
    "ranks": {"model", "variant", "depth", "trajectory", "chunks", "repeats", "json"},
    "compile": {"model", "depth", "inductor-up-to", "history", "device", "json"},
    "checks": {"model", "device", "chunk", "seconds", "width", "json"},
    "flops": {"model", "variant", "trajectory", "latents", "depth", "json"},
    "budgets": {
        *("model", "preset", "budget", "families", "mazes", "calibrated", "latents", "given"),
        *("seed", "device", "dtype", "weights", "json"),
    },
    "all": {"out", "part", "device", "patience", "again", "brief"},
}

SHORT = {"budgets": {"-p"}}


def test_every_benchmark_declares_its_options_with_a_help() -> None:
    commands = get_command(app).commands["bench"].commands  # type: ignore[attr-defined]
    assert {name: {o for each in command.params for o in each.opts} for name, command in commands.items()} == {
        name: {f"--{option}" for option in options} | SHORT.get(name, set()) for name, options in OPTIONS.items()
    }
    assert all(each.help for command in commands.values() for each in command.params)


@pytest.mark.parametrize("command", OPTIONS)
def test_help_shows_them(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, command, "--help") == 0
    shown = capsys.readouterr().out
    flags = ("--help", "--flex", "--end-to-end", "--text", "--again", "--brief")
    rows = [line for line in shown.splitlines() if "--" in line and not line.lstrip("│ ").startswith(flags)]
    assert all("[default: " in row or "--json" in row for row in rows), "every option shows its default"
    assert all(f"--{option}" in shown for option in OPTIONS[command])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kernels", "--table", "speed"], "'speed' is not one of"),
        (["kernels", "--length", "1k"], "Invalid value for '--length'"),
        (["kernels", "--length", "100"], "Invalid value for '--length'"),
        (["kernels", "--length", "600"], "600 is no power of two"),
        (["kernels", "--density", "0"], "Invalid value for '--density'"),
        (["kernels", "--density", "1.5"], "Invalid value for '--density'"),
        (["kernels", "--json", "no/such/folder/file"], "cannot be written"),
        (["kernels", "--tables", "sites"], "No such option"),
        (["ranks"], "torchrun did not start it"),
        (["rollout", "--model", "worldplay:tyni"], "did you mean 'worldplay:tiny'?"),
        (["rollout", "--model", "worldplay"], "worldplay has several sizes"),
        (["rollout", "--model", "worldplay:tiny", "--variant", "exakt"], "did you mean 'exact'?"),
        (["rollout", "--model", "worldplay:tiny", "--variant", "all:drift"], "'all:drift' cannot be read"),
        (["rollout", "--model", "worldplay:tiny", "--variant", "all:density=7"], "7 cannot be taken"),
        (["rollout", "--model", "worldplay:tiny", "--trajectory", "jump-3"], "the key 'jump' is unknown"),
        (["worldplay:tyni"], "did you mean 'worldplay:tiny'?"),
        (["worldply"], "No such command 'worldply'"),
        (["matrix-game:tiny", "--variant", "all@tiny-int4"], "did you mean 'matrix-game:tiny-int8'?"),
        (["flops", "--model", "matrix-game:5b-720p", "--depth", "2", "--depth", "3"], "not on a line to 30 blocks"),
        (["rollout", "--depth", "0"], "Invalid value for '--depth'"),
        (["compile", "--history", "6"], "no whole number of chunks"),
        (["compile", "--model", "warpplay:tiny"], "did you mean 'worldplay'?"),
        (["checks", "--device", "gpu"], "'gpu' is no device"),
        (["checks", "--chunk", "0"], "Invalid value for '--chunk'"),
        (["flops", "--variant", "of"], "did you mean 'off'?"),
        (["all", "--part", "kernels", "--part", "wordplay"], "there is no part 'wordplay'"),
        (["all", "--part", "wordplay"], "did you mean 'worldplay'?"),
        (["all", "--device", "gpu"], "'gpu' is no device"),
        (["all", "--device", "meta"], "parts do not run on meta"),
        (["all", "--patience", "-1"], "Invalid value for '--patience'"),
        (["all", "--out", __file__], "cannot be written"),
        (["all", "--out", "/proc/nothing/there"], "cannot be written to"),
        (["compile", "--json", "no/such/folder/file"], "cannot be written"),
        (["flops", "--depth", "2"], "a line needs two depths"),
        (["flops", "--model", "worldplay:tiny", "--latents", "99"], "The path is too short"),
    ],
)
def test_a_bad_value_is_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lightint: ") and error.count("\n") == 1 and said in error


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lightint", "bench", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)
