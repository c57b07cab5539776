"""Bisection names the pass, then its sites; the region that Inductor spoils; and nothing where nothing differs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx as fx
from accelerated_here import accelerated_here
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import lightint_compile
from lightint_compile import LightintOptions, lowering
from lightint_compile.bisecting import Finding, Tolerance, Verdict, bisect
from lightint_compile.bisecting.captured_call import CapturedCall, as_captured
from lightint_compile.bisecting.judging import distance
from lightint_compile.errors import InputError
from lightint_compile.lowering.region import Variant, eager_compiler

pytestmark = pytest.mark.usefixtures("undone")

WIDTH, HEADS = 16, 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm(tokens)).chunk(3, -1)
        )
        return tokens + self.out(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList([Block() for _ in range(2)])

    def forward(self, latent: Tensor) -> Tensor:
        tokens = self.embed(latent).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def found(options: dict[str, Any], judge: Any = None, size: int = 16) -> tuple[Finding, list[str]]:
    torch.manual_seed(0)
    call = (Video().eval(), (torch.randn(1, 4, size // 4, size, size),), {})
    lines: list[str] = []
    return bisect(call, LightintOptions.from_mapping(options), judge, lines.append), lines


SPARSE = {"preset": "sparse", "min_tokens": 0, "density": 0.2}


def test_the_pass_is_named_and_each_of_its_sites_with_module_and_line() -> None:
    finding, lines = found(SPARSE, Tolerance(1e-5), size=32)
    assert (finding.cause, finding.name, finding.graph) == ("pass", "sparse-attention", 0)
    assert [site.module_path for site in finding.sites] == ["blocks.0", "blocks.1"]
    assert all("test_bisect.py:" in site.source and site.error > 1e-5 for site in finding.sites)
    assert any("sparse-attention" in rule for rule in finding.sites[0].made)
    assert lines[0].startswith("good  as captured") and lines[1].startswith("bad   all passes")
    assert "sparse-attention makes the difference" in str(finding) and "blocks.1 at " in str(finding)


def spoilt(graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    """A backend whose results are off by a percent."""
    return lambda *args: tuple(1.01 * value for value in graph.forward(*args))


def whole(module: nn.Module) -> Any:
    return torch.compile(module, backend=spoilt)


def in_place(module: nn.Module) -> Any:
    module.compile(backend=spoilt)
    return module


def its_forward(module: nn.Module) -> Any:
    module.forward = torch.compile(module.forward, backend=spoilt)  # type: ignore[method-assign]
    return module


def its_parts(module: Video) -> Any:
    module.blocks[0] = torch.compile(module.blocks[0], backend=spoilt)
    module.blocks[1].compile(backend=spoilt)
    return module


def its_method(module: nn.Module) -> Any:
    return torch.compile(module.forward, backend=spoilt)


def a_function_around_it(module: nn.Module) -> Any:
    compiled = torch.compile(module, backend=spoilt)
    return lambda latent: compiled(latent)


def accelerated(module: nn.Module) -> Any:
    accelerated_here(module, delegate="eager", **SPARSE)
    return module


WAYS = (whole, in_place, its_forward, its_parts, its_method, a_function_around_it, accelerated)


QUICK = (in_place, its_parts, a_function_around_it, accelerated)


@pytest.mark.parametrize(
    "way", [pytest.param(way, id=way.__name__, marks=() if way in QUICK else pytest.mark.slow) for way in WAYS]
)
def test_of_what_is_compiled_already_the_code_before_is_judged(way: Callable[[Video], Any]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, latents = Video().eval(), torch.randn(1, 4, 8, 32, 32)
    with torch.no_grad():
        eager = module(latents)
        made = way(module)
        assert not torch.equal(made(latents), eager)
        call = CapturedCall((made, (latents,), {}), LightintOptions.from_mapping(SPARSE))
        assert torch.equal(call.exact(), eager) and torch.equal(call.run(as_captured), eager)
        assert not torch.equal(made(latents), eager), "the module stays as it is"
    finding = bisect((made, (latents,), {}), LightintOptions.from_mapping(SPARSE), Tolerance(1e-5))
    assert (finding.cause, finding.name, len(finding.sites)) == ("pass", "sparse-attention", 2)


def test_behind_a_break_the_parts_are_judged_as_they_were_too() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            torch._dynamo.graph_break()
            out: Tensor = self.second(x)
            return out

    module, x = Broken().eval(), torch.randn(2, 4)
    with torch.no_grad():
        eager = module(x)
        module.second = torch.compile(module.second, backend=spoilt)
        call = CapturedCall((module, (x,), {}), LightintOptions(preset="exact"))
        assert torch.equal(call.exact(), eager) and torch.equal(call.run(as_captured), eager)


def test_a_class_that_was_compiled_before_is_searched_alike() -> None:
    """Dynamo keeps what it made for the code of a class: each run has its own graphs, and their number has no limit."""
    torch._dynamo.reset()
    latents = torch.randn(1, 4, 8, 32, 32)
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(2):
            torch.compile(Video().eval(), backend="lightint", options={"delegate": "eager"})(latents)
        finding, _ = found(SPARSE, Tolerance(1e-5), size=32)
    assert (finding.cause, finding.name) == ("pass", "sparse-attention")


def test_a_rollout_is_searched_as_a_whole_and_the_first_chunk_that_differs_is_named() -> None:
    torch.manual_seed(0)
    module, latents = Video().eval(), torch.randn(1, 4, 8, 32, 32)

    def rollout(call: Callable[..., Any]) -> list[Tensor]:
        """A chunk whose tokens are all alike, so that it is no matter which are read, and two others."""
        return [call(0 * latents), call(latents), call(latents + 1)]

    lines: list[str] = []
    finding = bisect((module, (), {}), LightintOptions.from_mapping(SPARSE), None, lines.append, rollout)
    assert (finding.cause, finding.name) == ("pass", "sparse-attention")
    assert lines[0].startswith("good  as captured") and "from output 1 on" in lines[1]


def spoiling(name: str, ran: list[str]) -> Callable[..., Callable[[fx.GraphModule, Any], Variant]]:
    """In the place of Inductor: regions operator by operator, one of them off by a percent."""

    def compile_region(graph: fx.GraphModule, inputs: Any) -> Variant:
        variant = eager_compiler(graph, inputs)
        spoilt = any(name in str(node.target) for node in graph.graph.nodes)
        ran.append(name)
        right = variant.function
        off = (lambda *args: tuple(1.01 * value for value in right(*args))) if spoilt else right
        return Variant(off, bindings=variant.bindings, extra=variant.extra, floats=variant.floats)

    return lambda config: compile_region


def test_where_no_pass_is_to_blame_the_region_is_and_its_script_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(lowering, "inductor_compiler", spoiling("conv3d", ran))
    finding, lines = found({"preset": "exact", "require": ["outline-regions"]})
    assert ran and finding.cause == "region" and finding.name.startswith("glue")
    assert any(line.startswith("bad   all regions by Inductor") for line in lines)
    assert finding.repro is not None and finding.repro.args is not None
    script = finding.repro.write_repro(tmp_path / "repro.py")
    assert {path.name for path in tmp_path.iterdir()} == {"repro.py", "repro.py.inputs.pt"}
    text = script.read_text()
    assert "torch.ops.aten.conv3d" in text
    compile(text, "repro.py", "exec")


class Noisy(nn.Module):
    """It draws random numbers in two ways, in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.dropout(self.linear(x.repeat_interleave(16, 0))))
        return hidden + torch.rand_like(hidden)


def test_random_numbers_are_drawn_alike_and_blame_no_region() -> None:
    torch.manual_seed(0)
    finding = bisect((Noisy().train(), (torch.randn(3, 8),), {}), LightintOptions(preset="exact"))
    assert finding.cause == "nothing" and "the compiled model draws others" in finding.text


def test_of_a_region_that_differs_the_draws_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lowering, "inductor_compiler", spoiling("rand_like", []))
    finding = bisect((Noisy().train(), (torch.randn(3, 8),), {}), LightintOptions(preset="exact"))
    assert finding.cause == "region" and "draws random numbers (aten.dropout.default, aten.rand" in finding.text
    assert finding.repro is not None
    script = finding.repro.write_repro(tmp_path / "repro.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert float(done.stdout.rpartition("relative error ")[2].split()[0]) < 1e-5, "the script draws alike as well"


@pytest.mark.slow
def test_a_script_compares_inductor_with_the_operators(tmp_path: Path) -> None:
    with torch.no_grad():
        report = lightint_compile.explain(Video().eval(), torch.randn(1, 4, 4, 16, 16), options={"preset": "exact"})
    for name in [key for key, module in report.graph.named_children() if isinstance(module, fx.GraphModule)]:
        path = report.region(name).write_repro(tmp_path / f"{name}.py")
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
        assert "relative error" in done.stdout
    with pytest.raises(InputError, match="no region 'blok_0'"):
        report.region("blok_0")


@pytest.mark.slow
def test_nothing_differs_by_inductor_either() -> None:
    finding, lines = found({"preset": "exact"})
    assert finding.cause == "nothing" and all(line.startswith("good") for line in lines)


def test_a_verdict_judges_by_its_exit_code() -> None:
    results = torch.zeros(3)
    assert Verdict('test -s "$LIGHTINT_OUTPUTS"').says(None, results)[0]
    assert not Verdict("exit 1").says(None, results)[0]
    with pytest.raises(InputError, match="exits with 3: oh no"):
        Verdict("echo oh no >&2; exit 3").says(None, results)


def test_a_verdict_that_finds_the_eager_results_bad_is_an_error() -> None:
    with pytest.raises(InputError, match="eager results are not good"):
        found(SPARSE, Verdict("exit 1"))


@pytest.mark.parametrize(
    ("exact", "got", "least", "most"),
    [
        ([torch.ones(4)], [torch.ones(4)], 0, 0),
        ([torch.ones(4)], [1.01 * torch.ones(4)], 0.009, 0.011),
        ([torch.tensor([float("nan"), 1.0])], [torch.tensor([float("nan"), 1.0])], 0, 0),
        ([torch.tensor([1.0])], [torch.tensor([float("nan")])], float("inf"), float("inf")),
        ([torch.ones(4)], [torch.ones(5)], float("inf"), float("inf")),
        ([torch.arange(3)], [torch.arange(3) + 1], float("inf"), float("inf")),
        ([torch.ones(1), 3], [torch.ones(1), 4], float("inf"), float("inf")),
        ([torch.ones(1)], [], float("inf"), float("inf")),
    ],
)
def test_distance_is_relative_and_infinite_where_results_are_of_another_form(
    exact: list[Any], got: list[Any], least: float, most: float
) -> None:
    assert least <= distance(exact, got) <= most
