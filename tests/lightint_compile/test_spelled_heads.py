"""Queries, keys and values of projective position encodings become one operator; what only looks like them does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightint_compile.capture import from_exported
from lightint_compile.models.worldplay import WorldPlayConfig, fill_random
from lightint_compile.models.worldplay.blocks import DoubleBlock, KeyValue, TokenConditions
from lightint_compile.models.worldplay.camera import apply_matrix, apply_rope
from lightint_compile.passes.outlining.memory_order import choose_memory_orders
from lightint_compile.passes.program import Program
from lightint_compile.spelled_heads import with_camera_heads

CONFIG = WorldPlayConfig.tiny()
TOKENS = 12
OPERATOR = torch.ops.lightint.camera_heads.default


class Block(nn.Module):
    """One of WorldPlay's blocks with plain tensors as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = fill_random(DoubleBlock(CONFIG), 0)

    def forward(
        self, tokens: Tensor, vector: Tensor, extrinsics: Tensor, intrinsics: Tensor, cosine: Tensor, sine: Tensor,
        key: Tensor, value: Tensor,
    ) -> Tensor:  # fmt: skip
        conditions = TokenConditions(vector, extrinsics, intrinsics, (cosine, sine))
        return self.block(tokens, conditions, KeyValue(key, value))[0]


def block_inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    angles = draw(TOKENS, CONFIG.head_dim // 2).repeat_interleave(2, -1)
    tokens, vector = draw(1, TOKENS, CONFIG.hidden_size), draw(1, TOKENS, CONFIG.hidden_size)
    text = draw(1, CONFIG.heads, 5, CONFIG.head_dim), draw(1, CONFIG.heads, 5, CONFIG.head_dim)
    extrinsics = torch.eye(4).repeat(1, TOKENS, 1, 1)
    extrinsics[..., :3, 3] = draw(1, TOKENS, 3)
    intrinsics = torch.eye(3).repeat(1, TOKENS, 1, 1) * 0.8
    halves = (each.to(dtype) for each in (tokens, vector, *text))
    tokens, vector, key, value = halves
    return tokens, vector, extrinsics, intrinsics, angles.cos(), angles.sin(), key, value


def captured(module: nn.Module, inputs: tuple[Tensor, ...]) -> Program:
    with torch.no_grad():
        program = from_exported(torch.export.export(module.eval(), inputs, strict=False))
    choose_memory_orders(program, "outline-regions")
    return program


def operators(program: Program) -> int:
    return sum(node.target is OPERATOR for node in with_camera_heads(program.graph_module).graph.nodes)


def test_a_block_of_worldplay() -> None:
    module, inputs = Block().to(torch.bfloat16), block_inputs(torch.bfloat16)
    program = captured(module, inputs)
    graph = with_camera_heads(program.graph_module)
    found = [node for node in graph.graph.nodes if node.target is OPERATOR]
    assert [(n.args[2] is not None, n.args[4] is not None, n.args[6]) for n in found] == [
        (True, True, True),  # query
        (True, True, True),  # key
        (False, False, True),  # value
        (False, False, False),  # what attention gives
    ]
    assert not any(node.target is torch.ops.aten.einsum.default for node in graph.graph.nodes)
    state = {name.replace(".", "_"): value for name, value in module.state_dict().items()}
    given = iter(inputs)
    names = [node.name.removeprefix("p_") for node in program.placeholders()]
    values = [state[name] if name in state else next(given) for name in names]
    with torch.no_grad():
        exact = Block().double()(*(each.double() for each in inputs))
        before, after = (each(*values)[0].double() for each in (program.graph_module, graph))
    assert (after - exact).norm() <= 1.2 * (before - exact).norm()


class Joined(nn.Module):
    """The pattern by itself, with one thing changed."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, heads: Tensor, matrix: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        standing = heads.transpose(1, 2)
        return self.change(apply_rope(standing, (cosine, sine)), apply_matrix(standing, matrix))


def pair(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], dim=0)


CHANGES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], dict[str, Tensor], list[int]]] = {
    "as it is": (pair, {}, [1]),
    "the other way round": (lambda a, b: torch.cat([b, a], dim=0), {}, [0, 1]),
    "along the heads": (lambda a, b: torch.cat([a, b], dim=1), {}, [0, 1]),
    "three of them": (lambda a, b: torch.cat([a, b, b], dim=0), {}, [0, 1]),
    "single precision": (pair, {"heads": torch.randn(1, 6, 2, 32)}, [0]),
    "heads of 24": (
        pair,
        {
            "heads": torch.randn(1, 6, 2, 24).bfloat16(),
            "cosine": torch.randn(6, 24),
            "sine": torch.randn(6, 24),
        },
        [0],
    ),
    "one matrix for all tokens": (pair, {"matrix": torch.randn(1, 1, 4, 4).expand(1, 6, 4, 4)}, [1]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_twins(name: str) -> None:
    change, other, counts = CHANGES[name]
    given = {
        "heads": torch.randn(1, 6, 2, 32).bfloat16(),
        "matrix": torch.randn(1, 6, 4, 4),
        "cosine": torch.randn(6, 32),
        "sine": torch.randn(6, 32),
    } | other
    inputs = tuple(given.values())
    module = Joined(change)
    program = captured(module, inputs)
    assert operators(program) in counts
    graph = with_camera_heads(program.graph_module)
    exact = module(*(each.double() for each in inputs))
    assert ((graph(*inputs)[0].double() - exact).abs() <= 2**-6 * (1 + exact.abs())).all()
