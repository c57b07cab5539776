"""Weights of a folder that a caller names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightint_compile.demo import run_demo
from lightint_compile.errors import InputError
from lightint_compile.evaluating.asked import true_world
from lightint_compile.models.registry import TINY, world_model
from lightint_compile.models.world_model import with_weights
from lightint_compile.play.opening import Played

SMALL = "maze:tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
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
