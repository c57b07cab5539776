"""Regions of the host beside an accelerator: run by their operators, kept on disk as text. Float64 plays the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx as fx
from torch import Tensor, nn

import lightint_compile
from lightint_compile import capture, lowering
from lightint_compile.compiled import CompiledGraph
from lightint_compile.lowering import lower, region
from lightint_compile.lowering.driver import Driver
from lightint_compile.lowering.host_region import host_compiler, host_variant, is_on_host
from lightint_compile.lowering.region import eager_compiler
from lightint_compile.options import LightintOptions
from lightint_compile.passes.outline_regions import OutlineRegions, host_work

WIDTH = 16


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scales", torch.rand(WIDTH, dtype=torch.float64))

    def forward(self, video: Tensor, shift: float) -> Tensor:
        rows = torch.arange(video.shape[0], dtype=torch.float64)
        table = (torch.outer(rows, self.scales) @ torch.diag(self.scales) + shift).cos().view(-1, WIDTH)
        return torch.tanh(self.layer(video.repeat_interleave(16, 0))).reshape(-1, 16, WIDTH) * table.float()[:, None]


@pytest.fixture(autouse=True)
def float64_is_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def on_accelerator(node: fx.Node) -> bool:
        return any(tensor.dtype != torch.float64 for tensor in host_work._tensors(node))

    monkeypatch.setattr(host_work, "_on_accelerator", on_accelerator)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_and_called(model: Model, *calls: tuple[int, float]) -> tuple[Driver, bool]:
    """The driver of a process that has compiled nothing yet, its results compared; whether it was a warm start."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="lightint", dynamic=True, options={"preset": "exact", "strict": True})
    with torch.no_grad():
        for rows, shift in calls:
            video = torch.randn(rows, WIDTH)
            torch.testing.assert_close(compiled(video, shift), model(video, shift))
    (graph,) = CompiledGraph.of(compiled)
    assert graph.driver is not None
    (section,) = lightint_compile.report(compiled).sections
    assert any("operator by operator" in said for _, said in section.runs)
    return graph.driver, bool(section.measurements["warm start"])


def test_their_compiled_form_is_a_text_that_comes_back_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "compiler_of", lambda options, config: lambda *region: eager_compiler(*region))
    model = Model().eval().requires_grad_(False)
    program = capture.trace(model, (torch.randn(3, WIDTH), 0.5))
    OutlineRegions().run(program)
    lowered = lower(program, LightintOptions(preset="exact"), {})
    (name,) = (name for name, found in lowered.regions.items() if is_on_host(found))
    leaf, path = lowered.driver.leaves[name], tmp_path / "region.py"
    save = leaf.variants[0].save
    assert leaf.compiler is host_compiler and save is not None
    save(str(path))
    again = host_variant(path.read_text())
    args = [torch.rand(node.meta["val"].shape, dtype=torch.float64) for node in _inputs(lowered.regions[name])]
    for got, expected in zip(again(args), lowered.regions[name](*args), strict=True):
        assert torch.equal(got, expected)


def _inputs(graph_module: fx.GraphModule) -> list[fx.Node]:
    return graph_module.graph.find_nodes(op="placeholder")


@pytest.mark.slow
def test_they_are_kept_as_text_and_no_compiler_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[fx.GraphModule] = []
    spelled = region.spelled_for_cuda
    monkeypatch.setattr(region, "spelled_for_cuda", lambda graph: (seen.append(graph), spelled(graph))[1])
    model = Model().eval().requires_grad_(False)
    cold, warm_start = compiled_and_called(model, (3, 0.5), (5, 0.25))
    assert not warm_start and seen and not any(map(is_on_host, seen))
    texts = [leaf.variants[0] for leaf in cold.leaves.values() if leaf.variants[0].is_text]
    assert texts and all(variant.guard is None for variant in texts)
    assert list((tmp_path / "lightint").glob("*/*.py"))
    warm, warm_start = compiled_and_called(model, (3, 0.5), (7, 2.0))
    assert warm_start and not warm.compilations
    assert sum(leaf.variants[0].is_text for leaf in warm.leaves.values()) == len(texts)


def test_autocast_does_not_reach_their_operators() -> None:
    source = "def forward(self, a, b):\n    return (torch.ops.aten.mm.default(a, b),)"
    variant = host_variant(source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (product,) = variant((torch.ones(2, 2), torch.ones(2, 2)))
    assert product.dtype == torch.float32
