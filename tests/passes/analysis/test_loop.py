from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toyvideo import SIGMAS, Block, ToyChunk, shuffled, toy_inputs, traced

from lightint_compile import capture
from lightint_compile.passes.analysis.loop import DenoisingLoop

aten = torch.ops.aten
Update = Callable[[Tensor, Tensor, float, float, list[Tensor]], Tensor]


def test_an_euler_loop_knows_its_latents_predictions_and_scalars() -> None:
    program = traced(ToyChunk(depth=2, steps=4), *toy_inputs())
    loop = program.fact(DenoisingLoop)
    assert len(loop.steps) == 4 and not loop.reason
    assert loop.steps[0].carried_in.name == "noise"
    assert loop.steps[-1].carried_out is program.graph.output_node().args[0][0]
    for step, following in zip(loop.steps, loop.steps[1:], strict=False):
        assert step.carried_out is following.carried_in
    for number, step in enumerate(loop.steps):
        assert [node.target for node in step.predictions] == [aten.linear.default]
        assert step.scalars == (pytest.approx(SIGMAS[number + 1] - SIGMAS[number]),)
        assert step.inputs, "the step's own conditioning comes from outside"
    assert loop.carried == (*(step.carried_in for step in loop.steps), loop.steps[-1].carried_out)


def test_context_keys_and_values_are_invariant_and_conditioning_is_not() -> None:
    loop = traced(ToyChunk(depth=2, steps=3), *toy_inputs()).fact(DenoisingLoop)
    sizes = {node.meta["val"].shape for node in loop.invariants}
    assert sizes == {torch.Size([1, 2, 10, 8])} and len(loop.invariants) == 4
    assert all(set(step.inputs).isdisjoint(loop.invariants) for step in loop.steps)


def test_every_node_of_a_step_knows_it() -> None:
    loop = traced(ToyChunk(depth=2, steps=3), *toy_inputs()).fact(DenoisingLoop)
    for number, step in enumerate(loop.steps):
        assert {loop.step_of[node] for node in (*step.predictions, *step.update)} == {number}
    assert loop.steps[0].carried_in not in loop.step_of


class Sampler(nn.Module):
    """A small network under a given update; ``branches`` > 1 is classifier-free guidance."""

    def __init__(self, update: Update, *, branches: int = 1, decode: bool = False, low: bool = False) -> None:
        super().__init__()
        self.update, self.branches, self.low = update, branches, low
        self.net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))
        self.decoder = nn.Linear(4, 12) if decode else None
        self.labels = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.low:
            x = x.bfloat16()
        past: list[Tensor] = []
        for step in range(4):
            network_in = x.float()
            answers = [self.net(network_in + self.labels[branch]) for branch in range(self.branches)]
            guided = answers[0] if self.branches == 1 else answers[0] + 3.0 * (answers[1] - answers[0])
            x = self.update(x, guided, SIGMAS[step], SIGMAS[step + 1], past).to(x.dtype)
        return x if self.decoder is None else self.decoder(x.float())


def euler(x: Tensor, v: Tensor, sigma: float, after: float, past: list[Tensor]) -> Tensor:
    return x.float() + v * (after - sigma)


def clean_latent(x: Tensor, v: Tensor, sigma: float, after: float, past: list[Tensor]) -> Tensor:
    clean = x - v * sigma
    return clean + (x - clean) / sigma * after


def multistep(x: Tensor, v: Tensor, sigma: float, after: float, past: list[Tensor]) -> Tensor:
    past.append(v)
    slope = v if len(past) == 1 else 1.5 * v - 0.5 * past[-2]
    return x + slope * (after - sigma)


def renoising(x: Tensor, v: Tensor, sigma: float, after: float, past: list[Tensor]) -> Tensor:
    return torch.lerp(x - v * sigma, torch.ones_like(x), after)


@pytest.mark.parametrize("update", [euler, clean_latent, multistep, renoising])
def test_updates_of_other_schedulers(update: Update) -> None:
    loop = traced(Sampler(update), torch.randn(1, 6, 4)).fact(DenoisingLoop)
    assert [len(step.predictions) for step in loop.steps] == [1] * 4


def test_guidance_makes_two_predictions_a_step() -> None:
    loop = traced(Sampler(euler, branches=2), torch.randn(1, 6, 4)).fact(DenoisingLoop)
    assert [len(step.predictions) for step in loop.steps] == [2] * 4


def test_low_precision_latents_are_carried_between_the_casts() -> None:
    loop = traced(Sampler(euler, low=True), torch.randn(1, 6, 4)).fact(DenoisingLoop)
    assert [node.meta["val"].dtype for node in loop.carried] == [torch.bfloat16] * 5


def test_a_loop_in_front_of_a_decoder() -> None:
    program = traced(Sampler(euler, decode=True), torch.randn(1, 6, 4))
    loop = program.fact(DenoisingLoop)
    assert len(loop.steps) == 4
    assert loop.steps[-1].carried_out is not program.graph.output_node().args[0][0]


class Deep(nn.Module):
    """Longer recurrences in every block than the loop is, and a result that is a part of the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, 8), nn.Linear(8, 4)
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(6)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for step in range(3):
            tokens = self.inp(x)
            for layers in self.layers:
                tokens = layers[0](tokens)
                for layer in layers[1:]:
                    tokens = tokens + layer(tokens.sin())
            x = x - 0.1 * (step + 1) * self.out(tokens)
        return x[:, 2:]


def test_recurrences_inside_of_many_blocks_do_not_hide_the_loop() -> None:
    loop = traced(Deep(), torch.randn(1, 6, 4)).fact(DenoisingLoop)
    assert [step.scalars for step in loop.steps] == [(pytest.approx(0.1 * number),) for number in (1, 2, 3)]


def test_the_order_of_nodes_does_not_matter() -> None:
    program = traced(ToyChunk(depth=2, steps=3), *toy_inputs())
    loops = [form.fact(DenoisingLoop) for form in (program, shuffled(program, 1), shuffled(program, 2))]
    assert len({tuple(node.name for node in loop.carried) for loop in loops}) == 1


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16) for _ in range(3))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x, c)
        return x


def test_a_residual_stream_is_no_loop() -> None:
    loop = traced(Residual(), torch.randn(1, 6, 16), torch.randn(1, 16)).fact(DenoisingLoop)
    assert not loop and not loop.carried
    assert "residual stream" in loop.reason


def test_one_step_and_a_plain_network_are_no_loop() -> None:
    for program in (traced(ToyChunk(depth=1, steps=1), *toy_inputs()), traced(nn.Linear(4, 4), torch.randn(2, 4))):
        loop = program.fact(DenoisingLoop)
        assert not loop and not loop.steps and loop.reason


def test_a_while_loop_is_a_loop_of_one_operator() -> None:
    class Rolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            def more(step: Tensor, latent: Tensor) -> Tensor:
                return step < 4

            def body(step: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
                return step + 1, latent + self.net(latent) * 0.1

            return torch._higher_order_ops.while_loop(more, body, (torch.zeros((), dtype=torch.int64), x))[1]

    module = Rolled().requires_grad_(False)
    program = capture.from_exported(torch.export.export(module, (torch.randn(2, 4),)))
    loop = program.fact(DenoisingLoop)
    assert loop and loop.operator is not None and not loop.steps
