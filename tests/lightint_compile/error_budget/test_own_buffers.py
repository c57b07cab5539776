"""Budgets of modules that write to caches of their caller: every setting has caches of its own, the caller its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.error_budget.budgeted_graph import BudgetedGraph
from lightint_compile.error_budget.calibrating import calibrate
from lightint_compile.error_budget.deviation import deviation_of
from lightint_compile.error_budget.own_buffers import OwnBuffers
from lightint_compile.errors import BudgetError
from lightint_compile.options.error_limits import Budget, Deviation
from lightint_compile.options.ladder import Setting
from lightint_compile.reporting.section import Section

Mode = Callable[[], AbstractContextManager[Any]]


class Rolling(nn.Module):
    """Two layers of attention over caches that the caller holds and the module writes: the newest three chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv3d(4, 32, (1, 2, 2), (1, 2, 2))
        self.query, self.key, self.out = (nn.ModuleList(nn.Linear(32, 32) for _ in range(2)) for _ in range(3))
        self.last = nn.Linear(32, 16)

    def forward(self, latents: Tensor, caches: list[Tensor]) -> Tensor:
        b, _, t, h, w = latents.shape
        tokens = self.patch(latents).flatten(2).mT
        new = tokens.shape[1]
        for query, key, out, cache in zip(self.query, self.key, self.out, caches, strict=True):
            cache[:, :-new] = cache[:, new:].clone()
            cache[:, -new:] = key(tokens)
            heads = [each.unflatten(-1, (4, 8)).transpose(1, 2) for each in (4 * query(tokens), cache, cache)]
            tokens = tokens + 4 * out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        made = self.last(tokens).view(b, t, h // 2, w // 2, 4, 1, 2, 2)
        return made.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, 4, t, h, w)


OPTIONS = {"preset": "sparse", "min_tokens": 1, "tile": [1, 4, 4], "delegate": "eager", "strict": True}


def rolled(model: Callable[..., Tensor], seed: int = 1, chunks: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    caches = [torch.zeros(1, 192, 32) for _ in range(2)]
    made = [model(torch.randn(1, 4, 4, 8, 8, generator=draw), caches).clone() for _ in range(chunks)]
    return made, caches


def worst(exact: list[Tensor], got: list[Tensor]) -> Deviation:
    found = Deviation()
    for pair in zip(exact, got, strict=True):
        found = found.worst(deviation_of([pair[0]], [pair[1]]))
    return found


@pytest.mark.parametrize("mode", [pytest.param(torch.no_grad, marks=pytest.mark.slow), torch.inference_mode])
def test_a_compiled_model_that_rolls_its_caches(mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    module = Rolling().eval().requires_grad_(False)

    def compiled(**options: Any) -> Callable[..., Tensor]:
        torch._dynamo.reset()
        return torch.compile(module, backend="lightint", options=OPTIONS | options)

    with mode():
        exact = rolled(module)
        errors = []
        for thresholds in ({"density": 0.6, "context_density": 0.4}, {"density": 0.45, "context_density": 0.3}, {}):
            fast = rolled(compiled(**thresholds))
            errors.append(worst(exact[0], fast[0]).relative)
        assert not torch.allclose(fast[1][1], exact[1][1]), "what the second layer keeps depends on the first"
        model, seen = compiled(max_relative_error=0.9), []
        made = lightint_compile.calibrate(model, lambda: seen.append(rolled(model)))
        assert (made.beginnings, made.calls, made.chosen) == (1, 4, 3)
        assert [row.deviation.relative for row in made.table.rows] == pytest.approx(errors, rel=1e-4)
        for ours, theirs in ((seen[0], exact), (seen[1], fast), (rolled(model), fast)):
            torch.testing.assert_close(ours[0], theirs[0])
            torch.testing.assert_close(ours[1], theirs[1])
        compared: list[tuple[list[Tensor], list[Tensor]]] = []
        (graph,) = CompiledGraph.of(model)
        with graph.comparing([graph]) as calls:
            compared.append(rolled(model))
        assert max(each.relative for _, each in calls) == pytest.approx(errors[-1], rel=1e-4)
        torch.testing.assert_close(compared[0][1], fast[1])


def test_an_accelerated_model_is_calibrated_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = Rolling().eval().requires_grad_(False)
    with torch.no_grad():
        exact = rolled(module)
        with lightint_compile.accelerate(module, **OPTIONS, max_relative_error=0.9):
            seen: list[Any] = []
            made = lightint_compile.calibrate(module, lambda: seen.append(rolled(module)))
            assert made.chosen == 3 and made.beginnings == 1
            torch.testing.assert_close(seen[0], exact)
            torch.testing.assert_close(rolled(module), seen[1])
            assert worst(exact[0], seen[1][0]).relative > 1e-3
        torch.testing.assert_close(rolled(module), exact)


class Writing(BudgetedGraph):
    """A graph that is known to write to its third input."""

    writes = (2,)


class World(nn.Module):
    """A cache adds up what it is given; setting k adds the share ``errors[k]`` more."""

    def __init__(self, errors: tuple[float, ...], budget: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.errors, self.calls = errors, list[int]()
        variants = [self._variant(rung) for rung in range(len(errors))]
        ladder = (Setting(), *(Setting(((f"step-{number}", ()),)) for number in range(1, len(errors))))
        builds: Any = _Builds(variants)
        self.graph = Writing(variants[0], [self.weight], builds, ladder, Budget(budget), None)

    def _variant(self, rung: int) -> CompiledGraph:
        def function(weight: Tensor, noise: Tensor, cache: Tensor) -> tuple[Tensor]:
            self.calls.append(rung)
            cache.mul_(0.9).add_(noise * weight * (1 + self.errors[rung]))
            return (cache.sin() + noise,)

        return CompiledGraph(function, Section("world"), [self.weight])

    def forward(self, noise: Tensor, cache: Tensor) -> Tensor:
        result: Tensor = self.graph(self.weight, noise, cache)[0]
        return result


class _Builds:
    def __init__(self, variants: list[CompiledGraph]) -> None:
        self.variants = variants

    def applied(self) -> frozenset[str]:
        return frozenset(f"step-{number}" for number in range(1, len(self.variants)))

    def build(self, rung: int) -> CompiledGraph:
        return self.variants[rung]

    def release(self) -> None:
        pass


def fed(world: Callable[[Tensor, Tensor], Tensor], seeds: tuple[int, ...] = (0,), back: float = 0.0) -> list[Any]:
    """Rollouts one after another in one cache; a share of each result comes back, mixed with noise."""
    made, cache = [], torch.zeros(1, 2, 4)
    with torch.no_grad():
        for seed in seeds:
            draw, last = torch.Generator().manual_seed(seed), torch.zeros(1, 2, 4)
            cache.zero_()
            for _ in range(4):
                last = world(torch.randn(1, 2, 4, generator=draw) + back * last, cache)
                made.append((last.clone(), cache.clone()))
    return made


def alone(world: World, rungs: list[int], **how: Any) -> list[Any]:
    """The same with one setting a call, by hand."""
    order = iter(rungs)
    return fed(lambda noise, cache: world._variant(next(order)).function(world.weight, noise, cache)[0], **how)


def test_each_setting_is_measured_along_caches_of_its_own() -> None:
    world = World((0.0, 0.01, 0.05), 0.5)
    seen: list[Any] = []
    made = calibrate(world, lambda: seen.append(fed(world, (0, 1))))
    assert made.beginnings == 2, "zeroed caches begin a rollout"
    exact = alone(world, [0] * 8, seeds=(0, 1))
    torch.testing.assert_close(seen[0], exact)
    for rung, row in enumerate(made.table.rows, 1):
        own = alone(world, [rung] * 8, seeds=(0, 1))
        expected = worst([each for each, _ in exact], [each for each, _ in own]).relative
        assert row.deviation.relative == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(seen[1], alone(world, [made.chosen] * 8, seeds=(0, 1)))


def test_a_setting_that_is_given_up_leaves_the_caches_as_they_were() -> None:
    """Results come back through something outside, so that only the second rollout shows how errors add up."""
    errors = (0.0, 0.004, 0.05)
    for budget in (0.026 * 1.02**step for step in range(100)):
        world = World(errors, budget)
        seen: list[Any] = []

        def rollout(world: World = world, seen: list[Any] = seen) -> None:
            world.calls.clear()
            seen.append(fed(world, back=-0.9))

        try:
            made = calibrate(world, rollout)
        except BudgetError:
            continue
        if len(seen) == 2 and len(world.calls) > 4:
            break
    else:
        pytest.fail("no budget lies between the errors of the two rollouts")
    assert made.chosen == 1
    lower = world.calls.index(1)  # the call in front of it was made at setting 2, and is made again
    assert world.calls == [2] * lower + [1] * (5 - lower)
    torch.testing.assert_close(seen[1], alone(world, world.calls[: lower - 1] + world.calls[lower:], back=-0.9))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8), st.booleans())
def test_own_buffers_go_on_until_the_caller_writes(calls: list[tuple[bool, bool]], sliced: bool) -> None:
    """Against a model in Python numbers: what the caller's buffer has, and what one other setting would have in it."""
    base = torch.zeros(4, 6)
    buffer = base[:, 1:4] if sliced else base
    buffers, left, own = OwnBuffers(), None, None
    for touched, writes in calls:
        if touched:
            buffer.add_(100)
        now = float(buffer[0, 0])
        written = (0,) if writes else ()
        goes_on = buffers.begin([buffer], written)
        if left is not None and left != now:
            left = own = None
        assert goes_on == (left is not None)
        (given_,) = buffers.given("other", [buffer])
        expected = now if own is None else own
        assert float(given_[0, 0]) == expected and given_.stride() == buffer.stride()
        if writes:
            given_.add_(7)
            buffer.add_(1)
            own, left = expected + 7, now + 1
        assert float(buffer[0, 0]) == now + writes
        buffers.end([buffer], written)


def test_what_was_written_can_be_undone() -> None:
    base = torch.arange(24.0).view(4, 6)
    buffer, buffers = base[:, 1:4], OwnBuffers()
    before = base.clone()
    buffers.begin([buffer], (0,))
    buffer.fill_(3)
    buffers.put_back([buffer], (0,))
    assert torch.equal(base, before)
