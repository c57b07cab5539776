"""A loop outside of the module: what a step predicted is kept as a copy, in whatever it came."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_world import there_and_back

import lightint_compile
from lightint_compile.errors import InputError
from lightint_compile.runtime.rules import PublishedRules

PATH = there_and_back(40)[0]
SIGMAS = (1.0, 0.94, 0.83, 0.62)
REUSED = (2, 3)


@dataclasses.dataclass
class Output:
    sample: Tensor
    note: str = "said"


@dataclasses.dataclass(frozen=True)
class Frozen:
    sample: Tensor
    inner: Any = None


class Mapping(OrderedDict):
    """A mapping of its own kind, as outputs of transformers are."""


class Opaque:
    """Nothing that is known to hold tensors."""


Pair = namedtuple("Pair", ["sample", "extra"])
OPAQUE = Opaque()

WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda value: value,
    "a tuple": lambda value: (value,),
    "a tuple and a cache": lambda value: (value, None, {"keys": [value * 2, value * 3]}),
    "a list": lambda value: [value, value + 1],
    "a mapping": lambda value: {"sample": value, "seed": 3, "kind": "velocity"},
    "an ordered mapping": lambda value: OrderedDict(sample=value),
    "a mapping of its own kind": lambda value: Mapping(sample=value, other=None),
    "a named tuple": lambda value: Pair(value, None),
    "a dataclass": lambda value: Output(value),
    "a frozen dataclass": lambda value: Frozen(value, (Output(value * 2), OPAQUE)),
    "an object with attributes": lambda value: SimpleNamespace(sample=value, steps=4),
    "whole numbers beside it": lambda value: (value, torch.arange(3), torch.tensor(True)),
    "half precision": lambda value: value.bfloat16(),
    "double precision": lambda value: value.double(),
    "complex numbers": lambda value: torch.complex(value, -value),
    "expanded": lambda value: value[:1].expand(3),
}


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor of a prediction, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = vars(value).values() if hasattr(value, "__dict__") and not isinstance(value, dict) else ()
    if isinstance(value, dict):
        parts = value.values()
    if isinstance(value, (list, tuple)):
        parts = value
    return [tensor for part in parts for tensor in tensors_in(part)]


def run_of(wrap: Callable[[Tensor], Any], spoil: bool, sigmas=SIGMAS) -> list[Any]:
    """What each step of every chunk gave, as it was then; ``spoil`` writes into it, and into what was computed."""
    given: list[Any] = []
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules(steps=REUSED, gate=0.0)) as run:
        for chunk in range(10):
            run.chunk(chunk)
            for step, sigma in enumerate(sigmas):
                buffer = torch.full((3,), 10.0 * chunk) + torch.arange(3) * (step + 1)
                prediction = run.step(step, lambda buffer=buffer: wrap(buffer), sigma)
                given.append([tensor.clone() for tensor in tensors_in(prediction)])
                if spoil:
                    for tensor in [buffer, *(t for t in tensors_in(prediction) if 0 not in t.stride())]:
                        tensor.zero_()
    return given


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("sigmas", [SIGMAS, (None,) * 4], ids=["sigmas", "no sigmas"])
def test_what_a_step_gave_is_the_callers_to_write_into(name: str, sigmas) -> None:
    plain, spoiled = (run_of(WRAPS[name], spoil, sigmas) for spoil in (False, True))
    assert plain[-1] and len(plain) == len(spoiled) == 40
    for left, right in zip(plain, spoiled, strict=True):
        for one, other in zip(left, right, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", WRAPS)
def test_a_reused_prediction_is_of_the_same_kind_and_on_the_line(name: str) -> None:
    wrap, seen = WRAPS[name], []
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules(steps=REUSED, gate=0.0)) as run:
        for chunk in range(5):
            decision = run.chunk(chunk)
        assert decision.reused_steps == REUSED
        for step, sigma in enumerate(SIGMAS):
            seen.append(run.step(step, lambda s=sigma: wrap(torch.tensor([8.0, -2.0, 0.5]) * s), sigma))
    expected = wrap(torch.tensor([8.0, -2.0, 0.5]) * SIGMAS[3])
    got = seen[3]
    assert type(got) is type(expected) and got is not seen[2]
    pairs = list(zip(tensors_in(got), tensors_in(expected), strict=True))
    for one, other in pairs:
        assert one.dtype is other.dtype
        loose = 3e-2 if other.dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(one, other, rtol=loose, atol=loose)
    if name == "a frozen dataclass":
        assert got.inner[1] is OPAQUE
    if name == "a mapping":
        assert got == {"sample": got["sample"], "seed": 3, "kind": "velocity"} and list(got) == list(expected)


def test_outputs_of_diffusers_are_given_back_as_such() -> None:
    outputs = pytest.importorskip("diffusers.models.modeling_outputs")
    wrap = lambda value: outputs.Transformer2DModelOutput(sample=value)  # noqa: E731
    plain, spoiled = (run_of(lambda v: wrap(v), spoil) for spoil in (False, True))
    assert all(len(each) for each in plain)
    for (one, *_), (other, *_) in zip(plain, spoiled, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(6))
def test_any_nesting_is_kept_and_never_shared(seed: int) -> None:
    draw = random.Random(seed)

    def nested(value: Tensor, depth: int, chosen: random.Random) -> Any:
        if not depth or chosen.random() < 0.2:
            return chosen.choice([value + 1, value.clone(), None, 3, "text"])
        parts = [nested(value + k, depth - 1, chosen) for k in range(chosen.randint(1, 3))]
        kind = chosen.choice([tuple, list, lambda p: {str(k): v for k, v in enumerate(p)}, lambda p: Frozen(*p[:2])])
        return kind(parts)

    shape = draw.random()
    wrap = lambda value: (value, nested(value, 4, random.Random(shape)))  # noqa: E731
    plain, spoiled = run_of(wrap, False), run_of(wrap, True)
    for left, right in zip(plain, spoiled, strict=True):
        assert len(left) == len(right) > 0
        assert all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def test_nothing_is_kept_in_a_chunk_that_reuses_no_step() -> None:
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules(steps=())) as run:
        run.chunk(5)
        run.step(0, lambda: torch.ones(3), 1.0)
        assert not any(run._computed.values())


def test_double_precision_is_extrapolated_in_double_precision() -> None:
    value = torch.tensor([1.0, 3.0], dtype=torch.float64) / 3
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules(steps=(2,), gate=0.0)) as run:
        for chunk in range(5):
            run.chunk(chunk)
        got = [run.step(k, lambda s=s: value * s, s) for k, s in enumerate((1.0, 0.9, 0.5))][2]
    torch.testing.assert_close(got, value * 0.5, rtol=1e-13, atol=0)


def test_a_prediction_of_another_shape_is_held() -> None:
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules(steps=(2,), gate=0.0)) as run:
        for chunk in range(5):
            run.chunk(chunk)
        steps = [run.step(k, lambda k=k: torch.full((k + 1,), 2.0), s) for k, s in enumerate((1.0, 0.9, 0.5))]
    torch.testing.assert_close(steps[2], torch.full((2,), 2.0))


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("made", range(1, 5), ids=lambda made: f"{made} calls made")
def test_a_chunk_that_begins_again_takes_nothing_of_what_broke_off(halves: int, made: int) -> None:
    """``chunk`` is not called again: nothing but the number of calls tells the two attempts apart."""
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules(steps=REUSED, gate=0.0)) as run:
        for chunk in range(6):
            run.chunk(chunk)
            _steps(run, 0.0, halves)
        assert set(_steps(run, 0.0, halves)) == {0.0}
        decision = run.chunk(6)
        assert decision.reused_steps == REUSED
        for call in range(made):
            run.step(call // halves, lambda: torch.tensor(-1.0))
        assert -1.0 not in _steps(run, 1.0, halves)
        run.chunk(7)
        assert _steps(run, 2.0, halves) == [2.0] * 4 * halves
        assert run.decisions[7].reused_steps == REUSED, "a chunk that runs through reuses again"


def test_a_chunk_with_more_calls_a_step_than_the_one_before_computes() -> None:
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules(steps=REUSED, gate=0.0)) as run:
        for chunk, halves in enumerate((1, 1, 1, 1, 1, 2, 2)):
            run.chunk(chunk)
            computed: list[int] = []
            for call in range(4 * halves):
                run.step(call // halves, lambda: computed.append(1) or torch.zeros(1))  # noqa: B023
        assert len(computed) == 4, "steps 2 and 3 of both halves are reused, once guidance is known"


def _steps(run: lightint_compile.runtime.rollout.Rollout, value: float, halves: int) -> list[float]:
    return [float(run.step(call // halves, lambda: torch.tensor(value))) for call in range(4 * halves)]


@pytest.mark.parametrize(
    "sigma", [float("nan"), math.inf, "0.5", "high", [0.5], torch.ones(2), torch.tensor(math.nan), object()]
)
def test_what_is_no_sigma_is_refused_and_computes_nothing(sigma: Any) -> None:
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules()) as run:
        run.chunk(0)
        with pytest.raises(InputError, match="is no sigma") as caught:
            run.step(0, lambda: pytest.fail("computed"), sigma)
        assert caught.value.fix and caught.value.where == "step: sigma"


@pytest.mark.parametrize("sigma", [1, 0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5]), None])
def test_any_number_is_a_sigma(sigma: Any) -> None:
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules()) as run:
        run.chunk(0)
        assert run.step(0, lambda: 7, sigma) == 7


@pytest.mark.parametrize("number", [-1, np.int64(-3), "0", 0.5])
def test_steps_are_counted_from_0(number: Any) -> None:
    with lightint_compile.rollout(cameras=PATH, rules=PublishedRules()) as run:
        run.chunk(0)
        with pytest.raises(InputError, match="There is no step"):
            run.step(number, lambda: pytest.fail("computed"))
