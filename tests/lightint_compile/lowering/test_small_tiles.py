"""Regions that sum over few elements or for few results are compiled without writes in place on CUDA."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from region_graphs import region
from torch import Tensor, nn
from torch._inductor.runtime import triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties, ReductionHint
from torch.nn import functional as F

from lightint_compile.lowering.cuda_forms import spelled_for_cuda
from lightint_compile.lowering.small_tiles import APART, FEW, settings_for

SUMMING: dict[str, Callable[..., Any]] = {
    "mean": lambda x: x.mean(1),
    "several axes": lambda x: x.sum((-1, -2)),
    "kept axis": lambda x: x.amax(1, keepdim=True),
    "variance": lambda x: torch.var_mean(x, 1, correction=0)[0],
    "softmax": lambda x: x.softmax(1),
    "sum so far": lambda x: x.cumsum(1),
    "layer norm": lambda x: F.layer_norm(x.transpose(1, 2), (x.shape[1],)),
    "group norm": lambda x: F.group_norm(x, x.shape[1] // 4),
    "instance norm": lambda x: F.instance_norm(x),
}


@pytest.mark.parametrize("name", SUMMING)
def test_few_are_told_from_many(name: str) -> None:
    few, many = (40, 4, 2), (40, 64, 40)
    assert settings_for(region(SUMMING[name], torch.empty(few))) == APART
    assert settings_for(region(SUMMING[name], torch.empty(many))) == {}


def test_few_results_are_told_from_many() -> None:
    assert settings_for(region(lambda x: x.mean(0), torch.empty(1000, 16))) == APART
    assert settings_for(region(lambda x: x.mean(0), torch.empty(1000, 33))) == {}
    assert settings_for(region(lambda x: x.sum(), torch.empty(1000, 33))) == APART
    assert settings_for(region(lambda x: x.sum(), torch.empty(()))) == APART


def test_what_is_no_sum_does_not_ask() -> None:
    plain = region(lambda x, w: torch.cat([(x * 2).relu(), x @ w], 1)[:, :3].unsqueeze(-1), *torch.randn(2, 4, 4))
    assert settings_for(plain) == {}


class Mean(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axis)


@pytest.mark.parametrize(("axis", "found"), [(0, APART), (1, {})])
def test_a_symbolic_size_may_be_small_where_it_is_summed(axis: int, found: dict[str, Any]) -> None:
    sizes = ({0: torch.export.Dim("rows", min=2)},)
    assert (
        settings_for(torch.export.export(Mean(axis), (torch.randn(100, 64),), dynamic_shapes=sizes).module()) == found
    )


def test_the_cpu_is_left_alone() -> None:
    assert spelled_for_cuda(region(SUMMING["mean"], torch.empty(64, 4, 8))).config == {}


HINTS = [ReductionHint.DEFAULT, ReductionHint.INNER, ReductionHint.OUTER, ReductionHint.OUTER_TINY]


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: hint.name)
def test_by_inductors_rules_tiles_are_small_nowhere_else(hint: ReductionHint) -> None:
    """A version of torch with other rules shows here."""
    made = 0
    for results, summed in itertools.product((64, 256, 4096, 1 << 20), (64, 128, 1024, 16384)):
        for config in _configs(results, summed, hint):
            tile = config.kwargs["XBLOCK"] * config.kwargs.get("R0_BLOCK", summed)
            assert tile >= 32 * config.num_warps, (results, summed, config)
            made += 1
    small = [config for config in _configs(16, 4096, ReductionHint.DEFAULT) if _is_small(config)]
    assert made > 16 and small and FEW < 64


def _is_small(config: Any) -> bool:
    return bool(config.kwargs["XBLOCK"] * config.kwargs.get("R0_BLOCK", 1 << 20) < 32 * config.num_warps)


def _configs(results: int, summed: int, hint: ReductionHint) -> list[Any]:
    """Tiles that Inductor tries for a reduction on an H100."""
    device = DeviceProperties("cuda", 0, 132, 90, major=9, regs_per_multiprocessor=65536, warp_size=32)
    told = {"reduction_hint": hint, "num_load": 3, "num_store": 2, "num_reduction": 1, "dynamic_scale_rblock": True}
    told |= {"max_autotune": False, "max_autotune_pointwise": False}
    given = {"size_hints": {"x": results, "r0_": summed}, "inductor_meta": told, "triton_meta": {"device": device}}
    found = triton_heuristics._reduction_configs(**given)
    if summed <= 1024:
        found = [*found, *triton_heuristics._persistent_reduction_configs(reduction_hint=hint, **given)]
    return list(found)


class Steps(nn.Module):
    """A product whose result is changed in place and averaged over a few rows, as Inductor puts it into one kernel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(8))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        means = []
        for block in self.blocks:
            x = x + block(x).relu()
            means.append(x.mean(0))
        return x, torch.stack(means)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [6, 12])
def test_on_a_gpu_means_of_a_few_rows_are_right_every_time(rows: int, fresh_dynamo: None) -> None:
    model = Steps().cuda().eval()
    compiled = torch.compile(model, backend="lightint", dynamic=True, options={"preset": "exact", "strict": True})
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for _ in range(200):
            x = torch.randn(rows, 16, device="cuda", generator=generator)
            for mine, his in zip(compiled(x), model(x), strict=True):
                torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-4)
