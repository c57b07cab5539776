"""Tracing each distinct block once gives the graph that tracing every call gives, or is not done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
import worldplay_tiny
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.capture import repeated_blocks
from lightint_compile.capture.dry_run import trace_once
from lightint_compile.passes.ir.program import Program
from lightint_compile.torch_regions import reuses_regions

once_only = pytest.mark.skipif(not reuses_regions(), reason="this torch traces a region in every call")


class Mlp(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, *, shift: Tensor | None = None) -> Tensor:
        x = self.norm(x) if shift is None else self.norm(x) + shift
        return self.down(F.gelu(self.up(x)))


class Conditions(NamedTuple):
    shift: Tensor
    tables: tuple[Tensor, Tensor]


class Block(nn.Module):
    """An attention over keys of the text, which are made by another method, and a feed-forward network."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.to_q, self.to_text = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = Mlp(width)
        self.register_buffer("table", torch.arange(4.0).reshape(4, 1))

    def text(self, words: Tensor) -> Tensor:
        return F.silu(self.to_text(words))

    def _rotated(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return x * self.table.cos()

    def forward(self, x: Tensor, conditions: Conditions, text: Tensor) -> tuple[Tensor, Tensor]:
        query = self._rotated(self.to_q(x) * conditions.tables[0] + conditions.tables[1])
        key = torch.cat([text, query], 1)
        x = x + F.scaled_dot_product_attention(query, key, key)
        return x + self.mlp(x, shift=conditions.shift), key[:, :1]


class Model(nn.Module):
    """Three blocks in two steps, the first of them at other sizes."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.tail = nn.Sequential(Mlp(), Mlp())

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        x, tables = self.embed(x), (self.embed.weight[:1].exp(), self.embed.bias.sin())
        text = [block.text(words) for block in self.blocks]
        for step in range(3):
            conditions = Conditions(x.mean(1, keepdim=True), tables)
            for block, keys in zip(self.blocks, text, strict=True):
                x, _ = block(x, conditions, keys if step else keys[:, :2])
        return self.tail(x)


def call(module: Callable[..., Any], *args: Any) -> tuple[bool, Program, Program]:
    """Whether blocks were traced once; the program then, and the one of a plain trace."""
    done: list[bool] = []

    def watched(*given: Any) -> bool:
        done.append(repeated_blocks.trace_by_blocks(*given))
        return done[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(capture, "trace_by_blocks", watched)
        program = capture.trace(module, args)
        patched.setattr(capture, "trace_by_blocks", lambda *_: False)
        return done[0], program, capture.trace(module, args)


def described(program: Program) -> list[Any]:
    """Nodes in order; the inputs by name, because a block's operand may come before the block's weights."""
    inputs = sorted((entry.name, entry.kind, entry.path) for entry in program.inputs)
    return inputs + [
        (
            node.name,
            str(node.target),
            str((node.args, node.kwargs)),
            str(node.meta.get("val")),
            node.meta.get("nn_module_stack"),
            node.meta.get("stack_trace"),
        )
        for node in program.graph.nodes
        if node.op != "placeholder"
    ]


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 8), torch.randn(2, 3, 8)


@once_only
def test_the_graph_is_that_of_a_plain_trace() -> None:
    module, args = Model().eval().requires_grad_(False), inputs()
    done, program, plain = call(module, *args)
    assert done
    assert described(program) == described(plain)
    named = dict(zip([entry.name for entry in plain.inputs], plain.placeholders(), strict=True))
    assert len(named) == len(program.inputs)


@once_only
@pytest.mark.slow
def test_worldplay_is_traced_by_blocks() -> None:
    done, program, plain = call(worldplay_tiny.module(), *worldplay_tiny.inputs(8).values())
    assert done
    assert described(program) == described(plain)
    assert program.inputs == plain.inputs


@once_only
def test_a_distinct_block_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[str] = []
    inline = repeated_blocks.inline

    def counted(graph_module: fx.GraphModule, calls: Any, root: nn.Module) -> None:
        bodies.extend(str(node.args[1]) for node in calls)
        inline(graph_module, calls, root)

    monkeypatch.setattr(repeated_blocks, "inline", counted)
    capture.trace(Model().eval().requires_grad_(False), inputs())
    assert len(bodies) == 3 + 9
    assert len(set(bodies)) == 1 + 2


def test_nothing_of_the_users_is_left_marked() -> None:
    before = {kind: dict(vars(kind)) for kind in (Block, Mlp)}
    capture.trace(Model().eval().requires_grad_(False), inputs())
    assert {kind: dict(vars(kind)) for kind in (Block, Mlp)} == before
    assert not any("region" in name for name in vars(Block.forward))


class Stack(nn.Module):
    """Layers one after the other; what is between them is a subclass's."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        for place, layer in enumerate(self.layers):
            with self.around(place):
                x = self.call(layer, x)
        return x.cos()

    def around(self, place: int) -> Any:
        return nullcontext()

    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)


class TwoWeights(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8))
        self.second = self.first if tied else nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.first + self.second


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).exp()


class AddsTo(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.exp() + y * 2


class SameTwice(Stack):
    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x, x) if layer is self.layers[1] else layer(x, x.tan())


class UnderAutocast(Stack):
    def around(self, place: int) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=place > 0)


SEEN = {"calls": 0.0}


class Remembers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 + SEEN["calls"]


class Counts(Stack):
    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        SEEN["calls"] += 1
        return layer(x)


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"x": x.exp()}


class TakesOut(Stack):
    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)["x"]


class HandsBack(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.exp()


class TakesSecond(Stack):
    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)[1]


class OwnWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * self.weight + weight


class GivesFirstWeight(Stack):
    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x, self.layers[0].weight)


class Hooked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def hooked() -> Stack:
    stack = Stack(Hooked(), Hooked(), Hooked())
    stack.layers[1].register_forward_hook(lambda module, given, result: result * 3)
    return stack


@pytest.mark.parametrize(
    "made",
    [
        lambda: Stack(TwoWeights(tied=True), TwoWeights(), TwoWeights()),
        lambda: Stack(TwoWeights(), TwoWeights(tied=True)),
        lambda: Stack(Scaled(2.0), Scaled(3.0), Scaled(2.0)),
        lambda: SameTwice(AddsTo(), AddsTo(), AddsTo()),
        lambda: UnderAutocast(nn.Sequential(Mlp(), Mlp()), nn.Sequential(Mlp(), Mlp())),
        lambda: Counts(Remembers(), Remembers(), Remembers()),
        lambda: TakesOut(Nested(), Nested()),
        lambda: TakesSecond(HandsBack(), HandsBack()),
        lambda: GivesFirstWeight(OwnWeight(), OwnWeight(), OwnWeight()),
        hooked,
    ],
    ids=["tied-first", "tied-later", "constants", "operands", "autocast", "mutated", "nested", "alias", "own", "hook"],
)
def test_what_tells_blocks_apart_is_seen(made: Callable[[], nn.Module]) -> None:
    SEEN["calls"] = 0.0
    module, x = made().eval().requires_grad_(False), torch.randn(2, 4, 8)
    _, program, plain = call(module, x)
    assert described(program) == described(plain)
    assert SEEN["calls"] == 0.0


def test_what_reading_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> None:
        raise KeyError("mine")

    module, args = Model().eval().requires_grad_(False), inputs()
    with pytest.raises(KeyError, match="mine"):
        if not repeated_blocks.trace_by_blocks(module, args, {}, read):
            trace_once(module, args, {}, read)


def test_blocks_are_the_outermost_classes_in_lists() -> None:
    model = Model()
    assert repeated_blocks.repeated_blocks(model) == {Block: list(model.blocks)}
