"""The benchmark of content checks measures what a call does."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import pytest
import torch

from lightint_compile.bench import checks
from lightint_compile.bench.checks import COLUMNS, measure, run
from lightint_compile.models.registry import world_model
from lightint_compile.passes.ir.remarks import generic_path


def of_one_step(name: str) -> Any:
    """A model with one denoising step, which reads the text as all of them do."""
    model: Any = world_model(name)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, steps=1))


@pytest.fixture(scope="module", autouse=True)
def text_branch():
    """It is traced once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "world_model", of_one_step)
        patch.setattr(checks, "_text_branch", functools.cache(checks._text_branch))
        yield


def test_the_figures_are_those_of_the_given_tensors() -> None:
    found = measure([torch.zeros(1000), torch.zeros(24, dtype=torch.bfloat16)], torch.device("cpu"), 0.0)
    assert list(found) == list(COLUMNS[:-1])
    assert found["tensors"] == 2 and found["GB"] == 4048 / 1e9
    assert min(found.values()) > 0


def test_the_text_branch_is_found_by_what_the_prompt_goes_through() -> None:
    model = of_one_step("worldplay:tiny")
    found = checks._text_branch(model)
    names = {generic_path(name) for name, _ in model.module("meta").named_parameters()}
    assert found < names
    read = ("txt_in.input_embedder.weight", "double_blocks.*.txt_attn_k.weight", "time_in.mlp.*.weight")
    assert found >= {f"transformer.{name}" for name in read}
    assert not any("img_" in name or "final" in name or "action" in name for name in found)


def test_the_command_prints_a_table_and_writes_its_figures(tmp_path, capsys) -> None:
    run(model="worldplay:tiny", device="cpu", seconds=0.0, json_file=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    found = figures["checks"]
    assert found["text branch"]["tensors"] < found["all parameters"]["tensors"] and figures["about"]["torch"]
    assert "all parameters" in capsys.readouterr().out
