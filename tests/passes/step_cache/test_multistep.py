"""Multistep solvers (DPM-Solver++, UniPC) inside a module: their loops are found, hoisted, outlined and guarded.

So are loops that put known frames back after each step.
"""

from __future__ import annotations

import pytest
import torch
from multistep_solvers import SOLVERS
from stepped_toy import Toy
from torch import Tensor, nn
from toy_world import CHUNK, ToyWorld
from toyvideo import traced

from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.analysis.loop_marks import marked_steps
from lightint_compile.passes.ir.remarks import RemarkKind

SIGMAS = [0.98, 0.9, 0.75, 0.4, 0.0]


class SolvedWorld(ToyWorld):
    """The toy world under another solver; in eager, steps of ``held`` repeat the latest computed prediction."""

    solver = ""
    held: tuple[int, ...] = ()

    def forward(self, noise: Tensor, history: Tensor | None, extrinsics: Tensor) -> Tensor:
        assert history is not None
        chosen = self.select(extrinsics, history.shape[2])
        context = self.prefill(history.index_select(2, chosen), extrinsics.index_select(1, chosen), chosen.shape[0])
        solver, velocity = SOLVERS[self.solver](SIGMAS), None
        noise = self.pinned(noise, history)
        for step, sigma in enumerate(SIGMAS[:-1]):
            if velocity is None or step not in self.held:
                velocity = self.predict(noise, extrinsics[:, -CHUNK:], sigma, context)
            noise = self.pinned(solver.step(velocity, noise), history)
        return noise

    def pinned(self, latents: Tensor, history: Tensor) -> Tensor:
        return latents

    def by_hand(self, toy: Toy, held: tuple[int, ...]) -> Tensor:
        self.held = held
        try:
            with torch.no_grad():
                return self(toy.noise, toy.history, toy.cameras)
        finally:
            self.held = ()


class DPMWorld(SolvedWorld):
    solver = "dpm++"


class UniPCWorld(SolvedWorld):
    solver = "unipc"


class PinnedWorld(UniPCWorld):
    """The chunk begins with the last frame of the history, which stays what it is."""

    def pinned(self, latents: Tensor, history: Tensor) -> Tensor:
        return torch.cat([history[:, :, -1:], latents[:, :, 1:]], 2)


@pytest.fixture(scope="module", params=[DPMWorld, pytest.param(UniPCWorld, marks=pytest.mark.slow), PinnedWorld])
def toy(request: pytest.FixtureRequest) -> Toy:
    return Toy(kind=request.param)


def test_every_step_has_one_prediction_and_starts_from_what_the_network_reads(toy: Toy) -> None:
    steps = marked_steps(toy.program.graph)
    assert [len(step.predictions) for step in steps] == [1] * 4
    assert (steps[0].carried_in.name == "noise") is not isinstance(toy.model, PinnedWorld)


@pytest.mark.parametrize("reused", [(), (1,), (2,), (1, 2)])
def test_a_reused_step_holds_what_the_solver_goes_on_with(toy: Toy, reused: tuple[int, ...]) -> None:
    program, result = toy.rewritten("step-cache{strategy=hold,drift=1e9}")
    assert [remark.kind for remark in result.remarks] == [RemarkKind.APPLIED]
    got, _ = toy.run(program, reused=reused)
    expected = toy.model.by_hand(toy, reused)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    assert not reused or not torch.allclose(expected, toy.model.by_hand(toy, ()))


def test_solvers_that_are_no_euler_steps_hold_instead_of_extrapolating(toy: Toy) -> None:
    program, result = toy.rewritten("step-cache{drift=1e9}")
    assert [(remark.kind, remark.rule) for remark in result.remarks] == [
        (RemarkKind.APPLIED, "hold"),
        (RemarkKind.MISSED, "extrapolate"),
    ]
    got, _ = toy.run(program, reused=(1, 2))
    torch.testing.assert_close(got, toy.model.by_hand(toy, (1, 2)), rtol=1e-9, atol=1e-10)


class BehindClean(nn.Module):
    """The network reads clean tokens in front of the latents, which the scheduler takes out again."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor, clean: Tensor) -> Tensor:
        for step, sigma in enumerate(SIGMAS[:-1]):
            whole = torch.cat([clean, x], 1)
            x = whole[:, 2:] + self.net(whole)[:, 2:] * (SIGMAS[step + 1] - sigma)
        return x


def test_latents_behind_known_tokens_are_carried_with_them() -> None:
    loop = traced(BehindClean(), torch.randn(1, 6, 4), torch.randn(1, 2, 4)).fact(DenoisingLoop)
    assert [len(step.predictions) for step in loop.steps] == [1] * 4, loop.reason
    assert [step.carried_in.meta["val"].shape[1] for step in loop.steps] == [8] * 4


class Stacked(nn.Module):
    """A network that weighs its blocks' outputs: stacked and summed as a solver would, under weights of each block."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.shares = nn.Parameter(torch.randn(3, 1, 1, 1)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        past = torch.stack([x, block(x), -x])
        return x + (past.sum(0) if self.shares is None else (past * self.shares).sum(0))


@pytest.mark.parametrize("learned", [False, True])
def test_a_network_that_sums_its_own_values_is_no_loop(learned: bool) -> None:
    loop = traced(Stacked(learned), torch.randn(1, 6, 4)).fact(DenoisingLoop)
    assert not loop and loop.reason


class Diffused(nn.Module):
    """A network under a scheduler of diffusers' whose tables were set before."""

    def __init__(self, kind: str, **settings: object) -> None:
        super().__init__()
        diffusers = pytest.importorskip("diffusers")
        self.net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))
        self.scheduler = getattr(diffusers, kind)(prediction_type="flow_prediction", use_flow_sigmas=True, **settings)
        self.scheduler.set_timesteps(4)
        self.scheduler.set_begin_index(0)

    def forward(self, x: Tensor) -> Tensor:
        for time in self.scheduler.timesteps:
            x = self.scheduler.step(self.net(x) * (time / 1000), time, x, return_dict=False)[0]
        return x


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("UniPCMultistepScheduler", {}),
        pytest.param("UniPCMultistepScheduler", {"solver_order": 3}, marks=pytest.mark.slow),
        pytest.param("UniPCMultistepScheduler", {"solver_type": "bh1"}, marks=pytest.mark.slow),
        pytest.param("DPMSolverMultistepScheduler", {}, marks=pytest.mark.slow),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_loops_under_schedulers_of_diffusers(kind: str, settings: dict[str, object]) -> None:
    loop = traced(Diffused(kind, **settings), torch.randn(1, 6, 4)).fact(DenoisingLoop)
    assert [len(step.predictions) for step in loop.steps] == [1] * 4, loop.reason
