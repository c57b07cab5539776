"""The benchmark of content checks measures what a call does."""

from __future__ import annotations

import json

import torch

from lightint_compile.bench.checks import COLUMNS, measure, run


def test_the_figures_are_those_of_the_given_tensors() -> None:
    found = measure([torch.zeros(1000), torch.zeros(24, dtype=torch.bfloat16)], torch.device("cpu"), 0.0)
    assert list(found) == list(COLUMNS[:-1])
    assert found["tensors"] == 2 and found["GB"] == 4048 / 1e9
    assert min(found.values()) > 0


def test_the_command_prints_a_table_and_writes_its_figures(tmp_path, capsys) -> None:
    run(device="cpu", seconds=0.0, json_file=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert figures["text branch"]["tensors"] < figures["all parameters"]["tensors"]
    assert "all parameters" in capsys.readouterr().out
