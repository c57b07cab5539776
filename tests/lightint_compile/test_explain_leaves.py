"""A dry run leaves everything as it was: whatever a call that breaks writes, it writes to copies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightint_compile
from lightint_compile.capture import copies
from lightint_compile.capture.copies import copied
from lightint_compile.errors import StateError
from lightint_compile.reporting import Report

OPTIONS = {"preset": "exact"}


class Cache:
    """A cache as users write it: tensors, numbers and a list in attributes and slots."""

    __slots__ = ("end", "keys", "seen")

    def __init__(self) -> None:
        self.keys, self.end, self.seen = torch.zeros(1, 8, 4), 0, []  # type: ignore[var-annotated]


Write = Callable[["Written", Tensor, dict[str, Any]], None]


def into_argument(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    call["cache"]["k"][:, : x.shape[1]] = x


def new_entry(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    call["cache"]["made"] = x * 2


def into_object(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    call["held"].keys.add_(1)
    call["held"].end += 1
    call["held"].seen.append(x)


def into_input(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    x.mul_(2)


def into_view(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    call["view"].zero_()


def into_buffer(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    module.count.add_(1)


def new_buffer(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    module.register_buffer("late", x.clone())


def into_attribute(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    module.calls += 1
    module.log.append("called")


def into_weight(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    module.inner.weight.data.add_(1)


def into_mode(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    module.inner.train(not module.inner.training)


def draws(module: Written, x: Tensor, call: dict[str, Any]) -> None:
    torch.rand(3)
    random.random()


WRITES: tuple[Write, ...] = (
    *(into_argument, new_entry, into_object, into_input, into_view, into_buffer, new_buffer, into_attribute),
    *(into_weight, into_mode, draws),
)


class Inner(nn.Linear):
    """A module of the user's: Dynamo makes no graph of PyTorch's own where they are called from outside of one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Written(nn.Module):
    """Breaks, then writes in the ways it was drawn with, between and after breaks."""

    def __init__(self, writes: tuple[Write, ...]) -> None:
        super().__init__()
        self.inner = Inner(4, 4)
        self.register_buffer("count", torch.zeros(2))
        self.calls, self.log, self.writes = 0, ["made"], writes

    def forward(self, x: Tensor, **call: Any) -> Tensor:
        y = self.inner(x)
        for write in self.writes:
            torch._dynamo.graph_break()
            write(self, x, call)
            y = self.inner(y)
        return y


def example(seed: int) -> tuple[Written, Tensor, dict[str, Any]]:
    draw = random.Random(seed)
    module = Written(tuple(draw.sample(WRITES, draw.randint(1, 4)))).eval().requires_grad_(draw.random() < 0.3)
    base = torch.randn(1, 8, 4)
    cache = {"k": torch.zeros(1, 8, 4), "same": base}
    if draw.random() < 0.5:
        written: list[int] = []
        module.inner.register_forward_hook(lambda *_: written.append(1))
        module.hooked = written
    return module, torch.randn(1, 3, 4), {"cache": cache, "held": Cache(), "view": base[:, 2:5]}


def state(*things: Any) -> Iterator[Any]:
    """All that can be reached, tensors by value, version and place, other values by what they are."""
    for each in copies._reachable(things):
        if isinstance(each, Tensor):
            yield id(each), each._version, each.data_ptr(), each.detach().clone().tolist(), each.requires_grad
        elif isinstance(each, (list, dict)):
            yield id(each), len(each), [str(key) for key in each]
        elif isinstance(each, nn.Module):
            yield id(each), each.training, list(each._buffers), len(each._forward_hooks), getattr(each, "calls", 0)
        elif isinstance(each, Cache):
            yield id(each), each.end, len(each.seen)
    yield torch.get_rng_state().tolist(), random.getstate()


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed % 3 > 0)) for seed in range(24)])
def test_all_that_can_be_reached_is_as_before(seed: int) -> None:
    module, x, call = example(seed)
    before = list(state(module, x, call))
    report = lightint_compile.explain(module, x, options=OPTIONS, **call)
    assert list(state(module, x, call)) == before
    assert not said(report, "not-run") and report.sections


def said(report: Report, rule: str) -> list[Any]:
    return [remark for section in report.sections for remark in section.remarks if remark.rule == rule]


PAST: dict[str, Any] = {"keys": torch.zeros(2), "calls": 0}


def helper(x: Tensor) -> None:
    PAST["keys"] += x
    PAST["calls"] += 1


def test_what_a_function_closes_over_and_names_is_copied_too() -> None:
    layer, seen = nn.Linear(2, 2).requires_grad_(False), []  # type: ignore[var-annotated]

    def step(x: Tensor, kept: dict[str, int] = {"calls": 0}) -> Tensor:  # noqa: B006 - which is what is tried
        y = layer(x)
        torch._dynamo.graph_break()
        helper(x)
        layer.weight.zero_()
        seen.append(x)
        kept["calls"] += 1
        return y

    weight = layer.weight.clone()
    report = lightint_compile.explain(step, torch.ones(2), options=OPTIONS)
    assert len(report.sections) >= 1 and not said(report, "not-run")
    assert torch.equal(PAST["keys"], torch.zeros(2)) and PAST["calls"] == 0
    assert torch.equal(layer.weight, weight) and not seen and step.__defaults__ == ({"calls": 0},)


def test_a_bound_method_and_what_torch_compile_made_are_explained_on_copies() -> None:
    module, x, call = example(0)
    module.writes = (into_argument, into_attribute, into_buffer)
    before = list(state(module, x, call))
    compiled = torch.compile(module, backend="lightint", options={"delegate": "eager"})
    for subject in (module.forward, compiled, torch.compile(module.forward, backend="lightint")):
        lightint_compile.explain(subject, x, options=OPTIONS, **call)
        assert list(state(module, x, call)) == before


class Locked(Written):
    def __init__(self) -> None:
        import threading

        super().__init__((into_attribute,))
        self.lock = threading.Lock()

    def forward(self, x: Tensor, **call: Any) -> Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        self.calls += 1
        return self.inner(y)


def test_what_cannot_be_copied_is_not_run_and_the_report_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Locked().eval().requires_grad_(False)
    report = lightint_compile.explain(module, torch.randn(1, 3, 4), options=OPTIONS)
    (remark,) = said(report, "not-run")
    assert "cannot be copied" in remark.message and "lock" in remark.message and module.calls == 0
    assert len(report.sections) == 1 and report.sections[0].nodes_before == 1
    assert any(each.rule == "ends" for each in report.sections[0].remarks) and "not run past" in str(report)

    monkeypatch.setattr(copies, "free_memory", lambda _: 100.0)
    module, x, call = example(1)
    before = list(state(module, x, call))
    (remark,) = said(lightint_compile.explain(module, x, options=OPTIONS, **call), "not-run")
    assert "no room for copies" in remark.message and "GiB" in remark.message
    assert list(state(module, x, call)) == before


def test_copies_share_what_was_shared_and_hold_what_autograd_made() -> None:
    module, x, call = example(2)
    made = module.inner(x.requires_grad_(True))
    _, (twin,), kwargs = copied(module, (x,), {**call, "made": made, "again": made})
    assert twin is not x and torch.equal(twin, x)
    kwargs["cache"]["same"].fill_(3.0)
    assert (kwargs["view"] == 3.0).all() and not (call["view"] == 3.0).any()
    assert kwargs["made"] is kwargs["again"] is not made and torch.equal(kwargs["made"], made)
    with pytest.raises(StateError, match="cannot be copied"):
        copied(module, (x, (each for each in ())), {})


@pytest.mark.parametrize("blocks", [1, 3])
def test_tensors_can_be_swapped_after_an_explanation(blocks: int) -> None:
    module, latents = nn.Sequential(*(Inner(4, 4) for _ in range(blocks))), torch.randn(2, 4)
    report = lightint_compile.explain(module, latents)
    for parameter in module.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(torch.zeros_like(parameter)))
    torch.utils.swap_tensors(latents, torch.zeros(2, 4))
    assert len(report.sections) == 1 and torch.equal(module(latents), torch.ones(2, 4))
