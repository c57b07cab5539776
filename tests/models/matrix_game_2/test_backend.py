"""Under the backend a chunk is one graph for each way that it is called, and writes to the caller's caches as eager."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.models.matrix_game_2 import (
    Actions,
    Caches,
    MatrixGame2Chunk,
    MatrixGame2Config,
    example_scene,
    fill_random,
    rollout,
)
from lightint_compile.passes.ir.remarks import RemarkKind

TINY = MatrixGame2Config.tiny()
SMALLEST = dataclasses.replace(TINY, depth=1, levels=(1000,))
"""A graph is traced as often as there are blocks and steps: one, and the pass that commits, are what every size has."""

SPARSE = "dead-tail,sparse-attention{density=0.5,context-density=none,min-tokens=0,tile=1x2x2},outline-regions"
CHUNKS = 5

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Watched:
    """A chunk module that remembers its latents and graphs of every call, where its caches lie, and their versions."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        self.call, self.latents, self.graphs = call, list[Tensor](), list[int]()
        self.caches: Caches | None = None
        self.places: list[list[int]] = []

    def __call__(self, *given: Any) -> Tensor:
        self.caches = given[6]
        self.latents.append(self.call(*given))
        self.graphs.append(counters["stats"]["unique_graphs"])
        self.places.append([each.data_ptr() for each in self.kept()])
        return self.latents[-1]

    def kept(self) -> list[Tensor]:
        assert self.caches is not None
        return [each for part in self.caches for pair in part for each in pair]


def rolled(call: Callable[..., Tensor], config: MatrixGame2Config, chunks: int = CHUNKS) -> Watched:
    watched, frames = Watched(call), config.chunk * chunks
    actions = Actions.held(f"w+left-5,d-{frames - 6}")
    list(rollout(watched, config, example_scene(config, frames), actions, seed=3))
    return watched


def made(config: MatrixGame2Config) -> MatrixGame2Chunk:
    return fill_random(MatrixGame2Chunk(config)).eval().requires_grad_(False)


def compiled(chunk: MatrixGame2Chunk, **options: Any) -> Callable[..., Tensor]:
    return torch.compile(copy.deepcopy(chunk), backend="lightint", options=options, fullgraph=True)


@pytest.mark.parametrize("config", [SMALLEST, pytest.param(TINY, marks=pytest.mark.slow)], ids=["smallest", "tiny"])
def test_exact_is_eager_and_compiles_nothing_once_the_window_is_full(config: MatrixGame2Config) -> None:
    chunk = made(config)
    call = compiled(chunk, preset="exact", delegate="eager", strict=True)
    expected, found = rolled(chunk, config), rolled(call, config)
    for mine, theirs in zip(found.latents + found.kept(), expected.latents + expected.kept(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    # Written as often as in eager, and where they were.
    assert [each._version for each in found.kept()] == [each._version for each in expected.kept()]
    assert all(places == found.places[0] for places in found.places)
    # The first chunk reads the image, the second finds room, every later one makes it.
    assert found.graphs == [1, 2, 3, 3, 3]
    assert rolled(call, config).graphs == [3] * CHUNKS
    sections = lightint_compile.report(call).sections
    assert [section.untouched for section in sections] == [""] * 3


def test_the_image_is_read_once_a_rollout() -> None:
    """Its keys and values are kept by the model itself: the first step of the first chunk writes them."""
    found = rolled(made(TINY), TINY, 3)
    image = [each for pair in found.caches.image for each in pair]
    assert all(each.any() and each._version == 1 for each in image)


def attention(call: Callable[..., Tensor]) -> list[str]:
    """What the report says of each attention of the latest graph that is sparse."""
    remarks = lightint_compile.report(call).sections[-1].remarks
    found = [each for each in remarks if each.pass_name == "sparse-attention" and each.kind is RemarkKind.APPLIED]
    return [each.message for each in found for _ in range(each.count)]


def near(mine: Watched, theirs: Watched) -> None:
    for one, other in zip(mine.latents + mine.kept(), theirs.latents + theirs.kept(), strict=True):
        assert float((one - other).norm() / other.norm()) < 0.05
    assert not torch.equal(mine.latents[-1], theirs.latents[-1])


def test_self_attention_over_a_full_window_is_sparse() -> None:
    chunk = made(SMALLEST)
    call = compiled(chunk, passes=SPARSE, delegate="eager")

    def later(*given: Any) -> Tensor:
        return (call if given[7] == SMALLEST.window else chunk)(*given)

    near(rolled(later, SMALLEST), rolled(chunk, SMALLEST))
    said = attention(call)  # of the step, and of the pass that commits: the mouse's keys come from it
    assert len(said) == 2 and all("grid 3x4x6 attends to 18 of 36 key tiles of 6x4x6" in each for each in said)


@pytest.mark.slow
def test_every_chunk_of_a_rollout_is_sparse() -> None:
    chunk = made(TINY)
    call = compiled(chunk, passes=SPARSE, delegate="eager")
    found = rolled(call, TINY)
    assert found.graphs == [1, 2, 3, 3, 3]
    near(found, rolled(chunk, TINY))
    # Two blocks in three steps, and one where clean latents are committed: nothing reads the last block's.
    assert len(attention(call)) == 7
