"""Queries, keys and values of projective position encodings become one operator; what only looks like them does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.capture import from_exported
from lightint_compile.lowering.camera_heads import with_camera_heads
from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs, fill_random
from lightint_compile.models.worldplay.blocks import DoubleBlock, KeyValue, TokenConditions
from lightint_compile.models.worldplay.camera import apply_matrix, apply_rope
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.decision_points import KeepPoint, RecallPoint, is_region_call, point_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.outline_regions.memory_order import choose_memory_orders
from lightint_compile.pipeline_run import rewrite

CONFIG = WorldPlayConfig.tiny()
TOKENS = 12
OPERATOR = torch.ops.lightint.camera_heads.default
KEPT = torch.ops.lightint.camera_heads_kept.default


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


class Kept(nn.Module):
    """Frames picked from slots, fresh ones behind them, and the pattern over both."""

    def __init__(self, twist: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.twist = twist

    def forward(
        self, pool: Tensor, slots: Tensor, fresh: Tensor, matrix: Tensor, cosine: Tensor, sine: Tensor
    ) -> Tensor:
        kept = pool.index_select(1, slots).flatten(1, 3)
        standing = self.twist(kept, fresh).unflatten(2, (2, -1)) if kept.dim() == 3 else self.twist(kept, fresh)
        standing = standing.transpose(1, 2)
        both = pair(apply_rope(standing, (cosine, sine)), apply_matrix(standing, matrix))
        return both.transpose(1, 2).flatten(2)


def in_front(kept: Tensor, fresh: Tensor) -> Tensor:
    return torch.cat([kept, fresh], 1)


TWISTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], bool]] = {
    "heads apart": (in_front, (2, 32), True),
    "heads in one axis": (in_front, (64,), True),
    "fresh ones in front": (lambda kept, fresh: torch.cat([fresh, kept], 1), (2, 32), False),
    "between two kept ones": (lambda kept, fresh: torch.cat([kept, fresh, kept], 1), (2, 32), False),
    "frames turned over": (lambda kept, fresh: torch.cat([kept.flip(1), fresh], 1), (2, 32), False),
}


@pytest.mark.parametrize("name", TWISTS)
def test_frames_are_read_from_their_slots(name: str) -> None:
    twist, channels, reads_slots = TWISTS[name]
    generator = torch.Generator().manual_seed(0)
    pool, fresh = (
        torch.randn(1, n, *rest, generator=generator).bfloat16() for n, *rest in ((5, 2, 3, *channels), (4, *channels))
    )
    slots = torch.tensor([3, 1])
    tokens = twist(torch.zeros(1, 12), torch.zeros(1, 4)).shape[1]
    matrix = torch.randn(1, tokens, 4, 4, generator=generator)
    inputs = pool, slots, fresh, matrix, *(torch.randn(tokens, 32, generator=generator) for _ in range(2))
    program = captured(Kept(twist), inputs)
    graph = with_camera_heads(program.graph_module)
    targets = [node.target for node in graph.graph.nodes]
    assert targets.count(KEPT) == int(reads_slots) and targets.count(OPERATOR) == int(not reads_slots)
    assert not reads_slots or torch.ops.aten.cat.default not in targets, "nothing is put in front of anything"
    double = (each.double() if each.is_floating_point() else each for each in inputs)
    exact = Kept(twist)(*double)
    assert ((graph(*inputs)[0].double() - exact).abs() <= 2**-6 * (1 + exact.abs())).all()


@pytest.fixture(scope="module")
def keeping() -> Program:
    """A chunk of WorldPlay, two steps of two blocks, with kept keys and values, in regions."""
    config = dataclasses.replace(CONFIG, steps=2, refiner_depth=1)
    chunk = fill_random(WorldPlayChunk(config)).to(torch.bfloat16).eval().requires_grad_(False)
    inputs = example_inputs(config, 8, dtype=torch.bfloat16)[0]
    with torch.no_grad():
        program = capture.trace(chunk, tuple(inputs), dynamic={"history": 2})
    rewrite(program, LightintOptions(preset="all", age=4, min_tokens=0, strict=True))
    return program


@pytest.mark.slow
def test_kept_keys_and_values_of_worldplay_are_read_once(keeping: Program) -> None:
    root = keeping.graph_module
    regions = {
        str(node.target): root.get_submodule(str(node.target))
        for node in root.graph.nodes
        if is_region_call(root, node)
    }
    recalled = [node for node in root.graph.nodes if isinstance(point_of(root, node), RecallPoint)]
    assert len(recalled) == 4
    for node in recalled:
        (reader,) = node.users
        place = reader.args.index(node)
        graph = with_camera_heads(regions[str(reader.target)]).graph
        pool = [each for each in graph.nodes if each.op == "placeholder"][place]
        (laid,) = pool.users
        (found,) = laid.users
        assert laid.target is torch.ops.aten.view.default and found.target is KEPT and found.args[0] is laid
        assert not any(each.target is torch.ops.aten.index_select.default for each in laid.users)


def test_fresh_keys_and_values_go_from_their_projection_to_the_operator_and_into_their_slots(keeping: Program) -> None:
    root = keeping.graph_module
    kept = [node.args[1] for node in root.graph.nodes if isinstance(point_of(root, node), KeepPoint)]
    assert len(kept) == 4
    for node in kept:
        region, place = node.args
        graph = with_camera_heads(root.get_submodule(str(region.target))).graph
        fresh = graph.output_node().args[0][place]
        readers = {user.target for user in fresh.users} - {"output"}
        assert readers <= {KEPT, torch.ops.aten.unflatten.int} and readers, "nothing is joined in front of the operator"
