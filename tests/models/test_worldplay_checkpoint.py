"""Released weights load strictly and file by file; anything else is one error that names the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightint_compile.errors import CheckpointError, DeviceError
from lightint_compile.models.worldplay import (
    WorldPlayConfig,
    WorldPlayTransformer,
    example_inputs,
    fill_random,
    load_checkpoint,
    load_chunk,
)

CONFIG = WorldPlayConfig.tiny()
KEY = "double_blocks.1.img_attn_q.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {key: value.clone() for key, value in fill_random(WorldPlayTransformer(CONFIG), seed=5).state_dict().items()}


def write(folder: Path, weights: dict[str, Tensor], shards: int = 1, index: bool = False) -> Path:
    keys = sorted(weights)
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard}.safetensors"
        held = keys[shard::shards]
        save_file({key: weights[key] for key in held}, folder / name)
        weight_map |= dict.fromkeys(held, name)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(("shards", "index"), [(1, False), (3, False), (3, True)])
def test_weights_arrive(tmp_path: Path, weights: dict[str, Tensor], shards: int, index: bool) -> None:
    module = load_checkpoint(WorldPlayTransformer(CONFIG), write(tmp_path, weights, shards, index))
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())


@torch.no_grad()
def test_a_chunk_is_built_on_meta_and_runs(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    chunk = load_chunk(CONFIG, write(tmp_path, weights), dtype=torch.float64)
    assert {value.dtype for value in chunk.parameters()} == {torch.float64}
    args, _ = example_inputs(CONFIG, 24, dtype=torch.float64)
    assert torch.isfinite(chunk(*args)).all()


def without(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if key != KEY}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: without(weights), f"lacks key '{KEY}'"),
        (lambda weights: weights | {"extra.weight": torch.zeros(1)}, "unknown key 'extra.weight'"),
        (lambda weights: weights | {KEY: torch.zeros(64, 32)}, f"key '{KEY}' has a wrong shape"),
        (lambda weights: {"extra.weight": torch.zeros(1)}, "lacks key 'action_in"),
    ],
)
def test_wrong_keys_are_named_and_nothing_is_loaded(
    tmp_path: Path, weights: dict[str, Tensor], change, message: str
) -> None:
    module = WorldPlayTransformer(CONFIG)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(module, write(tmp_path, change(weights)))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_broken_folders_are_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    module = WorldPlayTransformer(CONFIG)
    with pytest.raises(CheckpointError, match="not there"):
        load_checkpoint(module, tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no weights"):
        load_checkpoint(module, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(module, tmp_path)


def test_a_key_in_two_files_is_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    write(tmp_path, weights)
    save_file({KEY: weights[KEY]}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match=f"key '{KEY}' is there twice"):
        load_checkpoint(WorldPlayTransformer(CONFIG), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "index cannot be read"),
        (lambda index: index["weight_map"].pop(KEY), f"disagree on the key '{KEY}'"),
        (lambda index: index["weight_map"].update({KEY: "model-9.safetensors"}), r"model-9\.safetensors"),
        (lambda index: index["weight_map"].update({"ghost": "model-0.safetensors"}), "disagree on the key 'ghost'"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, weights: dict[str, Tensor], change, message: str) -> None:
    path = write(tmp_path, weights, 2, index=True) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(WorldPlayTransformer(CONFIG), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize(("device", "said"), [("cuda", "there is no device cuda"), ("gpu", "'gpu' is no device")])
def test_a_device_that_is_not_there_is_named(
    tmp_path: Path, weights: dict[str, Tensor], device: str, said: str
) -> None:
    with pytest.raises(DeviceError, match=said) as caught:
        load_chunk(CONFIG, write(tmp_path, weights, 1, False), device)
    assert caught.value.fix
