"""Values of nodes as data: described once where no rule is asked, and by each rule where one is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightint_compile import capture
from lightint_compile.passes.ir.node_data import Tokens, described


def test_a_value_without_symbols_is_the_same_for_every_rule() -> None:
    def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, y * 2

    program = capture.trace(both, (torch.zeros(3, 4), torch.zeros(5, 4)), dynamic={"y": 0})
    tokens, rules = Tokens(), (str, lambda size: f"<{size}>")
    for node in program.graph.nodes:
        if "val" in node.meta:
            found = [tokens.value(node, rule) for rule in rules]
            assert found == [described(node.meta["val"], rule) for rule in rules]
            assert (found[0] == found[1]) == (not _is_symbolic(node.meta["val"]))


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, torch.SymInt) or bool(value._has_symbolic_sizes_strides)
