"""Models whose drivers record stretches: results are those without recordings, call after call.

On a CPU recordings are the tests' own, which read addresses as a CUDA graph does; with ``-m gpu`` they are CUDA graphs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import in_place_context
import pytest
import torch
from quick_variants import mostly_slow
from recorded_here import recorded_here
from torch import Tensor, nn
from toy_world import ToyWorld, there_and_back, toy_rollout

import lightint_compile
from lightint_compile.compiled import CompiledGraph

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "one_thread")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {"preset": "exact"},
    "published": {"preset": "published"},
    "all": {"preset": "all", "drift": 1e9},
    "all, guarded": {"preset": "all", "drift": 0.05},
    "keys and values kept": {"preset": "all", "drift": 1e9, "age": 4},
}
QUICK = ("exact", "all, guarded", "keys and values kept")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        recorded_here(monkeypatch)
    return str(request.param)


def compiled(module: nn.Module, **options: Any) -> Any:
    delegate = {} if next(module.parameters()).is_cuda else {"delegate": "eager"}
    settings = {"strict": True, **delegate, **options}
    return torch.compile(module, backend="lightint", fullgraph=True, options=settings)


def rolled(model: Any, device: str, frames: int = 32, seed: int = 0) -> list[Tensor]:
    def on_device(noise: Tensor, history: Tensor | None, cameras: Tensor) -> Tensor:
        given = [None if each is None else each.to(device) for each in (noise, history, cameras)]
        if given[1] is not None:
            torch._dynamo.mark_dynamic(given[1], 2)
            torch._dynamo.mark_dynamic(given[2], 1)
        return model(*given)

    return [chunk.clone() for chunk in toy_rollout(on_device, there_and_back(frames), seed=seed)]


def played(model: Any) -> tuple[int, int]:
    """How many stretches the drivers of a model recorded, and how often they played one."""
    told = [graph.driver.replays.told for graph in CompiledGraph.of(model) if graph.driver is not None]
    return sum(each.recorded for each in told), sum(each.played for each in told)


@pytest.mark.parametrize("name", mostly_slow(SETTINGS, quick=QUICK))
def test_a_rollout_gives_what_it_gives_without_recordings(name: str, device: str) -> None:
    world, results = ToyWorld().eval().to(device), []
    for more in ({}, {"cuda_graphs": True}):
        torch._dynamo.reset()
        model = compiled(copy.deepcopy(world), **SETTINGS[name], **more)
        results.append([chunk for seed in range(3) for chunk in rolled(model, device, seed=seed)])
    recorded, plays = played(model)
    assert recorded and plays > recorded
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if device == "cpu" else 1e-5)


class OneCall(nn.Module):
    """Blocks whose call returns an input, a view, and what it computed; a cache is written in place."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(8))

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, ...]:
        value = x
        for number, block in enumerate(self.blocks):
            value = value + block(value).relu()
            cache[:, number] = value.mean(0)
        return value, value[:2], x, cache.sum()


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (4, 6, 4, 6, 4, 6, 8)])
def test_results_outlive_later_calls_and_caches_are_written_in_place(sizes: tuple[int, ...], device: str) -> None:
    plain = OneCall().eval().to(device)
    model = compiled(copy.deepcopy(plain), cuda_graphs=True)
    ours, theirs = (torch.zeros(16, 8, device=device) for _ in "ab")
    held = []
    for number, size in enumerate(sizes):
        x = torch.randn(size, 16, generator=torch.Generator().manual_seed(number)).to(device)
        found, wanted = model(x, ours), plain(x, theirs)
        held.append((found, [value.clone() for value in wanted]))
        assert found[2] is x
        torch.testing.assert_close(ours, theirs)
        for mine, his in held:
            torch.testing.assert_close(list(mine), his)
    assert played(model)[1]


@pytest.mark.parametrize("kind", in_place_context.WORLDS)
def test_caches_that_a_loop_outside_holds(kind: str, device: str) -> None:
    if device == "cuda":
        pytest.skip("the small model makes its tensors on the host")
    world = in_place_context.WORLDS[kind]().eval()
    model = compiled(copy.deepcopy(world), cuda_graphs=True)
    ours, theirs = world.caches(), world.caches()
    for repeat in range(3):
        for start in range(0, 3 * 4, 4):
            latent = torch.randn(1, 4, 4, 2, 3, generator=torch.Generator().manual_seed(start + repeat))
            given = start * in_place_context.PLANE
            torch.testing.assert_close(model(latent, ours, given), world(latent, theirs, given))
            torch.testing.assert_close(ours, theirs)


def test_models_of_one_class_do_not_share_results(device: str) -> None:
    worlds = [ToyWorld().eval().to(device) for _ in range(2)]
    models = [compiled(world, preset="exact", cuda_graphs=True) for world in worlds]
    for seed in range(3):
        for world, model in zip(worlds, models, strict=True):
            pairs = zip(rolled(model, device, seed=seed), rolled(world, device, seed=seed), strict=True)
            for one, other in pairs:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _scaled(world: nn.Module) -> None:
    for parameter in world.parameters():
        parameter.data.mul_(1.1)


def _replaced(world: nn.Module) -> None:
    for parameter in world.parameters():
        parameter.data = parameter.data * 0.9


def _loaded(world: nn.Module) -> None:
    world.load_state_dict({name: value + 0.01 for name, value in world.state_dict().items()})


@pytest.mark.parametrize("change", [_scaled, _replaced, pytest.param(_loaded, marks=pytest.mark.slow)])
def test_weights_may_change_between_calls(change: Callable[[nn.Module], None], device: str) -> None:
    world = ToyWorld().eval().to(device)
    model = compiled(world, preset="exact", cuda_graphs=True)
    for seed in range(4):
        if seed >= 2:
            change(world)
        pairs = zip(rolled(model, device, 16, seed), rolled(world, device, 16, seed), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_mode_of_torch_compile_asks_for_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_here(monkeypatch)
    model = torch.compile(ToyWorld(depth=1, steps=2).eval(), backend="lightint", mode="reduce-overhead")
    for _ in range(3):
        rolled(model, "cpu", 16)
    assert played(model)[1]


def test_nothing_is_recorded_unless_asked(device: str) -> None:
    model = compiled(ToyWorld().eval().to(device), preset="exact")
    for _ in range(3):
        rolled(model, device, 16)
    assert played(model) == (0, 0)


def test_the_report_says_what_was_recorded(device: str) -> None:
    model = compiled(ToyWorld().eval().to(device), preset="exact", cuda_graphs=True)
    for _ in range(3):
        rolled(model, device, 16)
    said = str(lightint_compile.report(model))
    assert "recorded as CUDA graphs" in said and "played" in said


def test_without_a_gpu_the_report_says_that_nothing_is() -> None:
    model = compiled(ToyWorld().eval(), preset="exact", cuda_graphs=True)
    rolled(model, "cpu", 16)
    assert "nothing is recorded as a CUDA graph" in str(lightint_compile.report(model))


def test_a_graph_that_is_left_as_it_is_says_so() -> None:
    model = torch.compile(nn.Linear(3, 3), backend="lightint", options={"preset": "off", "cuda_graphs": True})
    model(torch.ones(2, 3))
    (section,) = lightint_compile.report(model).sections
    assert "Inductor has the graph as it is" in " ".join(r.message for r in section.remarks if r.rule == "cuda-graphs")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield


@pytest.mark.usefixtures("own_cache")
def test_programs_from_disk_record_too(device: str, caplog: pytest.LogCaptureFixture) -> None:
    world, results = ToyWorld(depth=1, steps=2).eval().to(device), []
    for _ in range(2):
        torch._dynamo.reset()
        model = compiled(world, preset="exact", cuda_graphs=True, delegate="inductor")
        with caplog.at_level(logging.WARNING):
            results.append([chunk for seed in (0, 0, 0) for chunk in rolled(model, device, 16, seed)])
        assert played(model)[1]
    warm = [graph.section.measurements["warm start"] for graph in CompiledGraph.of(model)]
    assert warm and all(warm), caplog.text
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
