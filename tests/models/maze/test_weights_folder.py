"""Weights of a folder that a caller names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightint_compile.demo import run_demo
from lightint_compile.errors import CheckpointError, InputError
from lightint_compile.evaluating.asked import true_world
from lightint_compile.models.registry import TINY, world_model
from lightint_compile.models.world_model import with_weights
from lightint_compile.play.opening import Played

SMALL = "maze:tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path = tmp_path / "whole"
    tmp_path.mkdir()
    with pytest.warns(UserWarning, match="no trained weights"):
        model = world_model(SMALL)
        parts = {"transformer": model.module(seed=7).transformer, "codec": model.codec(seed=7)}  # type: ignore
    for name, part in parts.items():
        (tmp_path / name).mkdir()
        save_file(
            {key: value.contiguous() for key, value in part.state_dict().items()}, tmp_path / name / "model.safetensors"
        )
    return tmp_path


def test_a_model_reads_the_weights_of_a_folder(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = with_weights(world_model(SMALL), folder)
    played = Played.open(SMALL, preset="exact", device="cpu", weights=folder)
    for module in (model.module(), played.module):
        kept, known = module.state_dict(), world_model(SMALL).module(seed=7).state_dict()
        assert all(torch.equal(kept[name], known[name]) for name in known)
    assert with_weights(model, None) is model and "trained" in str(model)


def over(folder: Path, rest: str, *keys: str) -> Path:
    """A folder beside `folder` with the named tensors of the transformer, each one higher, and a card."""
    made = folder.parent / "over"
    (made / "transformer").mkdir(parents=True)
    known = load_file(folder / "transformer/model.safetensors")
    save_file({key: known[key] + 1.0 for key in keys}, made / "transformer/model.safetensors")
    (made / "card.json").write_text(json.dumps({"rest": rest}))
    return made


def test_weights_that_stand_over_others_are_read_with_them(folder: Path) -> None:
    model, whole = world_model(SMALL), with_weights(world_model(SMALL), folder)
    key = "final_layer.linear.bias"
    changed = with_weights(model, over(folder, folder.name, key))
    mine, theirs = (each.module().transformer.state_dict() for each in (changed, whole))  # type: ignore[union-attr]
    assert all(torch.equal(mine[name], value + 1.0 if name == key else value) for name, value in theirs.items())
    codecs = [each.codec().state_dict() for each in (changed, whole)]  # type: ignore[attr-defined]
    assert all(torch.equal(codecs[0][name], value) for name, value in codecs[1].items())


@pytest.mark.parametrize("name", ["elsewhere", "../x", "", "..", "a/b", 3])
def test_a_rest_that_is_not_there_is_named(folder: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="rest of the weights") as told:
        with_weights(world_model(SMALL), over(folder, name, "final_layer.linear.bias"))
    assert repr(name) in str(told.value) and "card.json" in str(told.value)


def test_a_key_of_neither_folder_and_a_key_too_many_are_named(folder: Path) -> None:
    made = over(folder, folder.name, "final_layer.linear.bias")
    save_file({"extra": torch.zeros(1)}, made / "transformer/more.safetensors")
    with pytest.raises(CheckpointError, match="unknown key 'extra'"):
        with_weights(world_model(SMALL), made).module()
    (made / "transformer/more.safetensors").unlink()
    (folder / "transformer/model.safetensors").unlink()
    save_file({"img_in.proj.bias": torch.zeros(1)}, folder / "transformer/model.safetensors")
    with pytest.raises(CheckpointError, match="lacks key"):
        with_weights(world_model(SMALL), made).module()


def test_a_folder_without_weights_and_a_model_that_reads_none_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no trained weights"):
        with_weights(world_model(SMALL), tmp_path)
    with pytest.raises(InputError, match="leave --weights out"):
        with_weights(world_model(TINY), tmp_path)
    with pytest.raises(InputError, match="weights/ of a training"):
        run_demo(tmp_path / "out", model=SMALL, weights=tmp_path)


@pytest.mark.filterwarnings("ignore:.*no trained weights")
def test_an_evaluation_judges_the_weights_of_a_folder(folder: Path) -> None:
    world = true_world(SMALL, torch.device("cpu"), 0, folder)
    kept, known = world.model.module().state_dict(), world_model(SMALL).module(seed=7).state_dict()
    assert world.is_trained and all(torch.equal(kept[name], known[name]) for name in known)
    with pytest.raises(InputError, match="leave --weights out"):
        true_world(TINY, torch.device("cpu"), 0, folder)
