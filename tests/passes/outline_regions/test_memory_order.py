"""Values that regions hand to each other lie in memory as the regions read them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile.capture import from_exported
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.verify import verify
from lightint_compile.passes.outline_regions.memory_order import choose_memory_orders

aten = torch.ops.aten


class Patches(nn.Module):
    """A patch embedding, as vision models spell it, and residual blocks behind it."""

    def __init__(self, *, joined: bool = False, returns_tokens: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 1)
        self.projections = nn.ModuleList([nn.Linear(16, 16) for _ in range(6)])
        self.joined, self.returns_tokens = joined, returns_tokens

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        tokens = self.embed(picture).flatten(2).transpose(1, 2)
        for number in (0, 3):
            normed = F.layer_norm(tokens, (16,))
            query, key, value = (
                self.projections[number + part](normed).unflatten(-1, (2, 8)).transpose(1, 2) for part in range(3)
            )
            if self.joined:
                query, key, value = (torch.cat([each, each * 2], dim=0) for each in (query, key, value))
            found = F.scaled_dot_product_attention(query, key, value)[:1].transpose(1, 2).flatten(2)
            tokens = tokens + found
        return (tokens.mean(1), tokens) if self.returns_tokens else (tokens.mean(1),)


def captured(module: nn.Module, *inputs: Tensor) -> Program:
    with torch.no_grad():
        return from_exported(torch.export.export(module.eval(), inputs, strict=False))


def ordered(program: Program) -> tuple[Program, bool]:
    """The program with its memory orders chosen, checked as the pipeline would."""
    result = program.snapshot()
    changed = choose_memory_orders(result, "outline-regions")
    verify(result, program)
    return result, changed


def values(program: Program, module: nn.Module, *inputs: Tensor) -> list[Any]:
    state = {name.replace(".", "_"): value for name, value in module.state_dict().items()}
    names = [node.name for node in program.placeholders()]
    given = iter(inputs)
    return [state[name.removeprefix("p_")] if name.startswith("p_") else next(given) for name in names]


def streams(program: Program) -> list[tuple[int, ...]]:
    """Strides of the residual stream."""
    return [
        tuple(node.meta["val"].stride())
        for node in program.calls(aten.add.Tensor)
        if node.meta["val"].shape == (1, 24, 16)
    ]


@pytest.fixture
def picture() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(1, 3, 4, 6)


def test_tokens_of_a_patch_embedding_are_stored_row_by_row(picture: Tensor) -> None:
    module = Patches()
    before = captured(module, picture)
    after, changed = ordered(before)
    assert changed
    assert {strides[1:] for strides in streams(before)} == {(1, 24)}
    assert {strides[1:] for strides in streams(after)} == {(16, 1)}
    arguments = values(before, module, picture)
    with torch.no_grad():
        for old, new in zip(before.graph_module(*arguments), after.graph_module(*arguments), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-6)


def test_heads_are_joined_as_they_lie(picture: Tensor) -> None:
    module = Patches(joined=True)
    before = captured(module, picture)
    after, _ = ordered(before)

    def layouts(program: Program) -> set[tuple[int, ...]]:
        attended = program.calls(aten.scaled_dot_product_attention.default)
        return {tuple(read.meta["val"].stride()) for node in attended for read in node.all_input_nodes}

    assert layouts(before) == {(384, 192, 8, 1)}
    assert layouts(after) == {(384, 8, 16, 1)}
    arguments = values(before, module, picture)
    with torch.no_grad():
        torch.testing.assert_close(
            after.graph_module(*arguments)[0], before.graph_module(*arguments)[0], rtol=1e-6, atol=1e-6
        )


def test_nothing_changes_where_an_output_would(picture: Tensor) -> None:
    program = captured(Patches(returns_tokens=True), picture)
    assert not ordered(program)[1]
    assert streams(ordered(program)[0]) == streams(program)
