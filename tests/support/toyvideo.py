"""A small video model with all that outlining meets: blocks, a prefill over context, an unrolled denoising loop."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.passes.ir.program import InputKind, Program, ProgramInput

SIGMAS = (1.0, 0.9, 0.7, 0.4, 0.0)


class Block(nn.Module):
    """Modulated attention over context and own tokens, then an MLP."""

    def __init__(
        self, dim: int, *, eps: float = 1e-5, inner: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        inner = inner or 2 * dim
        self.dtype = dtype
        self.mod = nn.Linear(dim, 6 * dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (2, -1)).transpose(1, 2)

    def forward(
        self, x: Tensor, c: Tensor, context: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.mod(F.silu(c))[:, None].chunk(6, -1)
        inner = self.norm1(x) * (1 + scale1) + shift1
        query, key, value = self.split(self.q(inner)), self.split(self.k(inner)), self.split(self.v(inner))
        own = (key, value)
        if context is not None:
            key, value = torch.cat([context[0], key], 2), torch.cat([context[1], value], 2)
        x = x + gate1 * self.o(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        hidden = self.norm2(x) * (1 + scale2) + shift2
        if self.dtype is not None:
            hidden = hidden.to(self.dtype).float()
        return x + gate2 * self.fc2(F.gelu(self.fc1(hidden))), own


class ToyChunk(nn.Module):
    """Prefill over a history, then Euler steps over a chunk; ``overrides`` gives single blocks other options."""

    def __init__(self, depth: int = 3, steps: int = 4, dim: int = 16, overrides: dict[int, Any] | None = None) -> None:
        super().__init__()
        self.steps = steps
        self.inp, self.out, self.time = nn.Linear(4, dim), nn.Linear(dim, 4), nn.Linear(8, dim)
        self.blocks = nn.ModuleList(Block(dim, **(overrides or {}).get(i, {})) for i in range(depth))

    def embed(self, time: float, like: Tensor) -> Tensor:
        angle = torch.full((like.shape[0], 1), time) * torch.arange(4) * 0.3
        return self.time(torch.cat([angle.cos(), angle.sin()], -1))

    def forward(self, noise: Tensor, history: Tensor) -> Tensor:
        conditioning, tokens, context = self.embed(14.0, noise), self.inp(history), []
        for block in self.blocks:
            tokens, entry = block(tokens, conditioning)
            context.append(entry)
        for step in range(self.steps):
            conditioning, tokens = self.embed(1000 * SIGMAS[step], noise), self.inp(noise)
            for block, entry in zip(self.blocks, context, strict=True):
                tokens, _ = block(tokens, conditioning, entry)
            noise = noise + self.out(tokens) * (SIGMAS[step + 1] - SIGMAS[step])
        return noise


def toy_inputs(history: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 6, 4, generator=generator), torch.randn(1, history, 4, generator=generator)


def traced(module: nn.Module, *args: Tensor, dynamic: dict[str, int] | None = None) -> Program:
    """The program of a frozen module."""
    return capture.trace(module.eval().requires_grad_(False), args, dynamic=dynamic)


def values_for(program: Program, module: nn.Module, **arguments: Any) -> list[Any]:
    """What to call the program's graph with: the module's state, and arguments by path."""
    state = dict(module.named_parameters()) | dict(module.named_buffers()) | arguments
    return [state[entry.path] for entry in program.inputs]


def without_paths(program: Program) -> Program:
    """A copy whose nodes do not say which module they came from."""
    bare = program.snapshot()
    for node in bare.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    return bare


def shuffled(program: Program, seed: int = 0) -> Program:
    """The same program with its nodes in another execution order that respects data and the order of placeholders."""
    generator, result = random.Random(seed), program.snapshot()
    old = result.graph
    waiting = {node: len(node.all_input_nodes) for node in old.nodes}
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()

    def move(node: fx.Node) -> None:
        made[node] = graph.node_copy(node, made.__getitem__)
        made[node].meta = dict(node.meta)
        for user in node.users:
            waiting[user] -= 1

    for node in result.placeholders():
        move(node)
    pending = [node for node in old.nodes if node.op not in ("placeholder", "output")]
    while pending:
        ready = [node for node in pending if not waiting[node]]
        chosen = generator.sample(ready, max(1, len(ready) // 2))
        for node in chosen:
            move(node)
        pending = [node for node in pending if node not in made]
    move(old.output_node())
    result.graph_module = fx.GraphModule(result.graph_module, graph)
    return result


def chain_of_blocks(copies: int, dim: int = 16) -> Program:
    """A program of one block's nodes copied ``copies`` times, each with its own weights: many nodes, made fast."""
    x, c = torch.randn(1, 6, dim), torch.randn(1, dim)
    block = traced(First(Block(dim)), x, c)
    graph, inputs = fx.Graph(), list[ProgramInput]()

    def placeholder(name: str, kind: InputKind, like: fx.Node) -> fx.Node:
        node = graph.placeholder(name)
        node.meta["val"] = like.meta["val"]
        inputs.append(ProgramInput(node.name, kind, name))
        return node

    entries = {node: block.input_of(node) for node in block.placeholders()}
    weights = [
        {n: placeholder(f"p_{i}_{n.name}", InputKind.PARAMETER, n) for n, e in entries.items() if e.kind == "parameter"}
        for i in range(copies)
    ]
    first, conditioning = (node for node, entry in entries.items() if entry.kind == "tensor")
    if entries[first].path == "c":
        first, conditioning = conditioning, first
    state, fixed = placeholder("x", InputKind.TENSOR, first), placeholder("c", InputKind.TENSOR, conditioning)
    for own in weights:
        made = {**own, first: state, conditioning: fixed}
        state = _copied(block.graph, graph, made.copy())
    graph.output((state,))
    return Program(fx.GraphModule(nn.Module(), graph), tuple(inputs))


def _copied(source: fx.Graph, graph: fx.Graph, made: dict[fx.Node, fx.Node]) -> fx.Node:
    for node in source.nodes:
        if node.op == "call_function":
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].meta = {"val": node.meta["val"]}
    return made[source.output_node().args[0][0]]


class First(nn.Module):
    """A module's first result."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.inner(x, c)[0]
