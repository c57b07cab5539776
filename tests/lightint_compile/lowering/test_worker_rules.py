"""What others have told Inductor keeps regions in this process; what torch has told it does not.

That a worker has the rules of a process that has compiled before is shown in test_workers.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import lowering as inductor_lowering
from torch._inductor.decomposition import decompositions
from torch._inductor.fx_passes import post_grad
from torch._inductor.pattern_matcher import (
    CallFunction,
    KeywordArg,
    fwd_only,
    register_graph_pattern,
    register_replacement,
)
from torch._inductor.utils import fresh_cache

from lightint_compile.lowering.workers import rules
from lightint_compile.lowering.workers.rules import Rules
from lightint_compile.lowering.workers.switches import OnlyHereError, Switches

aten = torch.ops.aten


@pytest.fixture(scope="module", autouse=True)
def compiled_before() -> None:
    """Inductor makes its own patterns when it first compiles something."""
    torch.compile(lambda x: x.sin() @ x)(torch.ones(4, 4))


@contextmanager
def a_pattern() -> Iterator[None]:
    patterns = post_grad.pass_patterns[1]

    @register_graph_pattern(CallFunction(aten.tanh.default, KeywordArg("x")), pass_dict=patterns)
    def found(match: Any, x: Any) -> None:
        match.replace_by_example(lambda x: aten.relu.default(x), [x])

    try:
        yield
    finally:
        patterns.patterns["call_function", aten.tanh.default].pop()


@contextmanager
def a_replacement() -> Iterator[None]:
    patterns = post_grad.pass_patterns[1]
    before = {key: list(entries) for key, entries in patterns.patterns.items()}

    def searched(x: Tensor) -> Tensor:
        return x.erf().cos()

    def instead(x: Tensor) -> Tensor:
        return x.cos()

    register_replacement(searched, instead, [torch.ones(3)], fwd_only, patterns)
    try:
        yield
    finally:
        patterns.patterns.clear()
        patterns.patterns.update(before)


@contextmanager
def a_rule(rule: Any, table: dict[Any, Any] = inductor_lowering.lowerings, operator: Any = aten.exp.default) -> Any:
    before = table[operator]
    table[operator] = rule
    try:
        yield
    finally:
        table[operator] = before


def rule_of_a_user(x: Any) -> Any:
    return x


def test_torchs_own_are_everywhere() -> None:
    assert rules.of_others() is None
    assert not Rules.now().beyond(Rules.now())
    Switches.now()


@pytest.mark.parametrize(
    "told",
    [
        a_pattern,
        a_replacement,
        functools.partial(a_rule, rule_of_a_user),
        functools.partial(a_rule, functools.partial(rule_of_a_user)),
        functools.partial(a_rule, rule_of_a_user, decompositions, aten.silu.default),
    ],
    ids=["a pattern", "a replacement", "a lowering", "a partial", "a decomposition"],
)
def test_those_of_users_are_not(told: Any) -> None:
    with told():
        assert rules.of_others() is not None
        with pytest.raises(OnlyHereError):
            Switches.now()
    assert rules.of_others() is None


def test_a_rule_of_torchs_for_another_operator_is_seen_by_the_worker() -> None:
    worker = Rules.now()
    with a_rule(inductor_lowering.fallback_handler(aten.exp.default, add_to_fallback_set=False)):
        assert rules.of_others() is None
        (beyond,) = Rules.now().beyond(worker)
        assert "lowerings aten.exp.default" in rules.named(f"it has other settings: {beyond}, {'0' * 16}")


@torch.library.custom_op("lightint_tests_of_rules::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operator_that_inductor_met_without_a_rule_is_no_obstacle() -> None:
    worker, operator = Rules.now(), torch.ops.lightint_tests_of_rules.twice.default
    with fresh_cache():
        torch.compile(lambda x: torch.ops.lightint_tests_of_rules.twice(x) + 1)(torch.ones(3))
    torch.vmap(torch.nn.functional.mse_loss)(torch.ones(3, 2), torch.ones(3, 2))  # torch has kernels of its own for it
    assert operator in inductor_lowering.lowerings
    assert rules.of_others() is None and not Rules.now().beyond(worker)


def test_a_kernel_of_an_operator_of_torchs_is_seen_by_the_worker() -> None:
    worker, library = Rules.now(), torch.library.Library("aten", "IMPL")
    library.impl("tril", lambda x, diagonal=0: x, "CPU")
    try:
        assert Rules.now().beyond(worker)
    finally:
        library._destroy()
    assert not Rules.now().beyond(worker)
