"""A fixed sample of PyTorch's operators under the passes, two thirds of it slow; ``tests/peers`` runs all of them."""

import random

import operator_cases
import pytest
import torch
from operator_cases import Case, Kind, Outcome, outcome_of

SAMPLE, QUICK, BATCH = 150, 20, 10


def drawn() -> list[str]:
    names = sorted(operator.full_name for operator in operator_cases.operators())
    return random.Random(0).sample(names, SAMPLE)


def outcomes(name: str, dynamic: bool) -> list[Outcome]:
    operator = next(each for each in operator_cases.operators() if each.full_name == name)
    found = [outcome_of(case, dynamic=dynamic) for case in operator_cases.cases(operator, 1)]
    return [outcome for outcome in found if outcome is not None]


@pytest.fixture(autouse=True)
def nothing_compiled(one_thread):
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "first", [pytest.param(first, marks=[pytest.mark.slow] * (first >= QUICK)) for first in range(0, SAMPLE, BATCH)]
)
def test_operators_do_as_in_eager(first: int) -> None:
    names = drawn()[first : first + BATCH]
    found = [outcome for at, name in enumerate(names) for outcome in outcomes(name, dynamic=at % 2 == 1)]
    assert not [outcome for outcome in found if outcome.kind.is_fault], "\n".join(map(str, found))
    assert sum(outcome.kind is Kind.RIGHT for outcome in found) >= len(found) // 2  # most are really rewritten


def case_of(function, *arguments) -> Case:
    return Case("made here", 0, function, arguments, {})


WITHOUT_AXES = {
    "squeeze": lambda x: x.sum().squeeze(-1) + 1,
    "flip": lambda x: x.sum().flip(0) + 1,
    "softmax": lambda x: x.sum().softmax(0),
    "mean": lambda x: x.sum().mean(-1) + 1,
    "cumsum": lambda x: x.sum().cumsum(0),
}


@pytest.mark.parametrize("name", WITHOUT_AXES)
def test_a_tensor_without_axes_takes_a_dimension(name) -> None:
    outcome = outcome_of(case_of(WITHOUT_AXES[name], torch.arange(3.0)), dynamic=False)
    assert outcome is not None and not outcome.kind.is_fault, str(outcome)


def test_a_call_that_the_stock_backend_fails_as_well_is_no_fault_of_ours() -> None:
    @torch._dynamo.disable(recursive=False)
    def eager_only():
        return torch.compiler.is_compiling()

    def differs(x):
        return x + (torch.compiler.is_compiling() or eager_only())

    outcome = outcome_of(case_of(differs, torch.ones(2)), dynamic=False)
    assert outcome is not None and outcome.kind is Kind.STOCK_TOO


def adds_one(graph_module):
    return lambda x: [graph_module(x)[0] + 1]


def returns_its_input(graph_module):
    return lambda x: [x]


def keeps_its_result(graph_module):
    kept = []

    def call(x):
        kept[:] = kept or graph_module(x)
        return list(kept)

    return call


def raises(graph_module):
    return lambda x: 1 // 0


@pytest.mark.parametrize(
    ("broken", "factor", "kind", "said"),
    [
        (adds_one, 2, Kind.WRONG, "not close"),
        (returns_its_input, 1, Kind.WRONG, "share memory"),
        (keeps_its_result, 2, Kind.WRONG, "second call"),
        (raises, 2, Kind.RAISED, "ZeroDivisionError"),
    ],
)
def test_a_wrong_backend_is_told(broken, factor, kind, said, monkeypatch) -> None:
    monkeypatch.setattr(operator_cases, "lightint", lambda graph_module, inputs, options: broken(graph_module))
    outcome = outcome_of(case_of(lambda x: x * factor, torch.full((3,), 5.0)), dynamic=False)
    assert outcome is not None and outcome.kind is kind and said in outcome.detail
