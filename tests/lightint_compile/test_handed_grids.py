"""A graph break hides no grid: what one graph knows of the tokens that it returns, the next one starts from."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightint_compile
from lightint_compile.reporting.section import Section
from lightint_compile.runtime import handed_grids

WIDTH, HEADS = 32, 2
SPARSE = {"preset": "sparse", "delegate": "eager", "min_tokens": 0, "tile": [1, 4, 4], "density": 0.5}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in self.qkv(tokens).chunk(3, -1))
        return tokens + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Broken(nn.Module):
    """Tokens of a video, a number that is read in the middle, and blocks that are called behind it."""

    def __init__(self, *, copies: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.copies = copies

    def forward(self, latents: Tensor) -> Tensor:
        tokens = self.embed(latents).flatten(2).transpose(1, 2)
        scale = 1.0 + (tokens.mean() > 100).item()
        torch._dynamo.graph_break()
        if self.copies:
            tokens = anew(tokens)
        for block in self.blocks:
            tokens = block(tokens)
            torch._dynamo.graph_break()
        return tokens * scale


@torch.compiler.disable
def anew(tokens: Tensor) -> Tensor:
    return tokens.clone()


def latents(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 4, frames, 2 * height, 2 * width, generator=torch.Generator().manual_seed(seed))


def compiled(model: nn.Module, **options: Any) -> Any:
    model.eval().requires_grad_(False)
    return torch.compile(model, backend="lightint", dynamic=False, options={**SPARSE, **options})


def sparse_places(model: Any) -> int:
    remarks = [r for section in lightint_compile.report(model).sections for r in section.remarks]
    return sum(r.count for r in remarks if r.pass_name == "sparse-attention" and r.kind == "applied")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def test_attention_behind_a_break_is_sparse() -> None:
    model, given = Broken(), latents(4, 8, 8)
    fast = compiled(model, density=1.0)
    whole = compiled(model, density=0.3)
    with torch.no_grad():
        assert torch.allclose(fast(given), model(given), atol=1e-5)
        assert not torch.allclose(whole(given), model(given), atol=1e-4)
    assert sparse_places(fast) >= 1
    told = [r.message for s in lightint_compile.report(fast).sections for r in s.remarks if r.rule == "told-grid"]
    assert told and all("tokens of 4x8x8" in message for message in told)


def test_a_dry_run_says_the_same() -> None:
    report = lightint_compile.explain(Broken().eval().requires_grad_(False), latents(4, 8, 8), options=SPARSE)
    remarks = [remark for section in report.sections for remark in section.remarks]
    assert any(r.pass_name == "sparse-attention" and r.kind == "applied" for r in remarks)
    assert any(r.rule == "told-grid" and "tokens of 4x8x8" in r.message for r in remarks)


def test_tokens_that_nobody_knows_stay_dense() -> None:
    """One edit away: code outside of any graph makes a tensor of its own."""
    model, given = Broken(copies=True), latents(4, 8, 8)
    fast = compiled(model, density=0.3)
    with torch.no_grad():
        assert torch.allclose(fast(given), model(given), atol=1e-5)
    assert sparse_places(fast) == 0


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_graph_is_for_the_grid_that_it_was_told(first: bool) -> None:
    """As many tokens in frames of another size, and tokens of no grid, have a graph each; in any order."""
    model = Broken()
    fast, alone = compiled(model, density=0.3), [latents(4, 8, 8, 1), latents(2, 8, 16, 2), latents(4, 8, 8, 3)]
    given = alone if first else alone[::-1]
    with torch.no_grad():
        found = [fast(each) for each in (*given, *given)]
        for each, result in zip((*given, *given), found, strict=True):
            torch._dynamo.reset()
            assert torch.equal(compiled(Broken(), density=0.3)(each), result)


def told_block() -> tuple[Any, Any, Tensor]:
    """A block, what is compiled of it, and tokens that another compiled graph made."""
    model, block = Broken(), Broken().blocks[0].eval().requires_grad_(False)
    front = torch.compile(lambda x: model.embed(x).flatten(2).transpose(1, 2) * 1, backend="lightint", options=SPARSE)
    with torch.no_grad():
        return block, compiled(block, density=0.3), front(latents(4, 8, 8))


def test_a_block_that_gets_other_tensors_is_dense_for_them() -> None:
    block, fast, tokens = told_block()
    with torch.no_grad():
        sparse, copied = fast(tokens), tokens.clone()
        assert torch.allclose(fast(copied), block(copied), atol=1e-5)
        assert not torch.allclose(sparse, block(tokens), atol=1e-4)
        assert torch.equal(fast(tokens), sparse)


def weak_references(backend: str, **options: Any) -> list[int]:
    """How many there are to each weight, once a model is compiled."""
    torch._dynamo.reset()
    model = Broken().eval().requires_grad_(False)
    with torch.no_grad():
        torch.compile(model, backend=backend, dynamic=False, **options)(latents(4, 8, 8))
    gc.collect()  # as Dynamo does after a compilation, where tests do not forbid it
    return [len(weakref.getweakrefs(parameter)) for parameter in model.parameters()]


@pytest.mark.parametrize("density", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_weights_can_be_swapped_still(density: float) -> None:
    """A weak reference to a weight would keep ``swap_tensors`` from it; Dynamo of torch 2.11 itself leaves some."""
    assert weak_references("lightint", options={**SPARSE, "density": density}) == weak_references("eager")


def test_the_report_has_every_form_of_a_graph() -> None:
    _, fast, tokens = told_block()
    with torch.no_grad():
        fast(tokens), fast(tokens.clone()), fast(tokens.clone())
    sections = lightint_compile.report(fast).sections
    told = [any(remark.rule == "told-grid" for remark in section.remarks) for section in sections]
    assert sorted(told) == [False, True]


def test_a_graph_that_does_not_care_whose_tokens_it_gets_has_one_form() -> None:
    total = torch.compile(lambda tokens: tokens.sum(1) * 2, backend="lightint", options=SPARSE)
    _, _, tokens = told_block()
    with torch.no_grad():
        assert torch.allclose(total(tokens), total(tokens.clone()))
    assert len(lightint_compile.report(total).sections) == 1


def chunks(fast: Any, sizes: list[tuple[int, int, int]]) -> list[Tensor]:
    with torch.no_grad():
        return [fast(latents(*size, seed=size[0])) for size in sizes]


def test_numbers_of_frames_that_change_keep_it() -> None:
    """One program for all of them from the second on; each result is that of a program of its own."""
    sizes = [(2, 8, 8), (3, 8, 8), (5, 8, 8), (7, 8, 8), (3, 8, 8)]
    fast = torch.compile(Broken().eval().requires_grad_(False), backend="lightint", options={**SPARSE, "density": 0.3})
    found = chunks(fast, sizes)
    told = [r.message for s in lightint_compile.report(fast).sections for r in s.remarks if r.rule == "told-grid"]
    assert sum("tokens of nx8x8" in message for message in told) >= 1
    assert sum("tokens of nx8x8" in message for message in told) <= 2
    for size, result in zip(sizes, found, strict=True):
        torch._dynamo.reset()
        assert torch.allclose(chunks(compiled(Broken(), density=0.3), [size])[0], result, atol=1e-5)


def test_frames_of_another_size_have_a_form_of_their_own() -> None:
    """Where height and width change as well; all are sparse, and none by the frames of another."""
    sizes = [(2, 8, 8), (4, 8, 8), (6, 8, 8), (3, 8, 16), (6, 4, 16), (6, 8, 8), (2, 8, 8), (3, 16, 8)]
    fast = torch.compile(Broken().eval().requires_grad_(False), backend="lightint", options={**SPARSE, "density": 0.3})
    found, alone = chunks(fast, sizes), {}
    for size in set(sizes):
        torch._dynamo.reset()
        (alone[size],) = chunks(compiled(Broken(), density=0.3), [size])
    for size, result in zip(sizes, found, strict=True):
        assert torch.allclose(alone[size], result, atol=1e-5)


def test_frames_that_the_traced_tokens_are_no_multiple_of_stay_dense() -> None:
    fast = torch.compile(Broken().eval().requires_grad_(False), backend="lightint", options={**SPARSE, "density": 0.3})
    result = chunks(fast, [(2, 8, 8), (3, 8, 8), (3, 8, 16)])[2]
    assert torch.allclose(chunks(Broken().eval(), [(3, 8, 16)])[0], result, atol=1e-5)


def test_notes_live_as_long_as_their_tensors() -> None:
    tensor = torch.zeros(1, 8, 2)
    before = len(handed_grids._NOTED)
    handed_grids.note([tensor, 3], ((0, (None, "s1//2", 2)), (1, (1, 1, 1))), [0, 4], {"s1": 1})
    values, graph = [3, tensor, torch.zeros(1, 8, 2)], torch.fx.symbolic_trace(lambda a, b, c: a)
    assert handed_grids.told(graph, values) == ((1, (2, 2, 2)),)
    assert handed_grids.told_like(values, ((1, (None, 4, 4)), (2, (2, 2, 2)))) == ((1, (None, 2, 2)),)
    handed_grids.note([values[2]], ((0, (None, "s1//2", 2)),), [], {})  # a symbol that nobody knows
    tensor.add_(1)
    assert handed_grids.told(graph, values) == ()  # other tokens may stand in its rows now
    values.clear()
    del tensor
    gc.collect()
    assert len(handed_grids._NOTED) <= before


def test_a_program_on_disk_hands_over_as_the_compiled_one_does(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    given, results = latents(4, 8, 8), []
    for warm in (False, True):
        torch._dynamo.reset()
        fast = compiled(Broken(), density=0.3, delegate="inductor")
        with torch.no_grad():
            results.append(fast(given))
        assert sparse_places(fast) >= 1
        sections = lightint_compile.report(fast).sections
        assert any(section.measurements.get("warm start") for section in sections) is warm
    assert torch.equal(*results)


def test_a_section_keeps_what_it_tells() -> None:
    section = Section("a", tokens=((0, (4, 8, 8)),))
    assert Section.from_dict(section.to_dict()) == section
