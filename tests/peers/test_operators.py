"""PyTorch's whole database of operators; the default run has a sample (tests/lightint_compile/test_operators.py)."""

from typing import Any

import operator_cases
import pytest
from operator_cases import Kind

OPERATORS = {operator.full_name: operator for operator in operator_cases.operators()}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator(name: str, dynamic: bool, tally: Any, pytestconfig: pytest.Config) -> None:
    faults = []
    for case in operator_cases.cases(OPERATORS[name], pytestconfig.getoption("--samples")):
        outcome = operator_cases.outcome_of(case, dynamic=dynamic)
        if outcome is None:
            continue
        detail = "" if outcome.kind is Kind.RIGHT else str(outcome)
        tally.add(f"operators, {'dynamic' if dynamic else 'static'}", outcome.kind, name, detail)
        faults += [outcome] * outcome.kind.is_fault
    assert not faults, "\n".join(map(str, faults))
