"""What is known of an operator's effects is what torch and the user say of it now."""

from __future__ import annotations

import pytest
import torch
import torch.fx as fx
from torch.fx.node import _side_effectful_functions

from lightint_compile.passes.ir.effects import is_pure

aten = torch.ops.aten


def _called(target: object, *args: object) -> fx.Node:
    graph = fx.Graph()
    return graph.call_function(target, (graph.placeholder("x"), *args))  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [aten.sin.default, aten.add_.Tensor, aten.rand_like.default, aten._assert_async.msg])
def test_it_is_what_torch_says_of_a_node(target: torch._ops.OpOverload) -> None:
    draws = target is aten.rand_like.default
    assert is_pure(_called(target)) == (not draws and not _called(target).is_impure(impure_random=False))


def test_a_mark_counts_for_an_operator_that_was_asked_about_before() -> None:
    assert is_pure(_called(aten.sin.default))
    torch.fx.node.has_side_effect(aten.sin.default)
    try:
        assert not is_pure(_called(aten.sin.default))
    finally:
        _side_effectful_functions.discard(aten.sin.default)
