"""A transformer that is called once a step: what cameras and conditions are made into is kept from step to step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.compiled import CompiledGraph
from lightint_compile.passes.hoist_invariants import HoistInvariants
from lightint_compile.passes.ir.remarks import RemarkKind

WIDTH = 32


class Block(nn.Module):
    """Tokens moved by an injector of camera embeddings, which reads neither the latent nor the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.injector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, camera: Tensor) -> Tensor:
        scale, shift = self.injector(camera).chunk(2, -1)
        return x + self.mlp(x * (1 + scale) + shift)


class Denoiser(nn.Module):
    """A latent, a timestep and rays of the cameras, as a pipeline calls it for each step."""

    steps = 1

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.rays = (nn.Conv3d(n, WIDTH, (1, 2, 2), (1, 2, 2)) for n in (4, 6))
        self.time, self.blocks = nn.Linear(16, WIDTH), nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 16)

    def embedded(self, timestep: Tensor) -> Tensor:
        angles = timestep[:, None] * torch.exp(-torch.arange(8, device=timestep.device) / 8)
        return self.time(torch.cat([angles.cos(), angles.sin()], 1))

    def camera(self, plucker: Tensor, x: Tensor) -> Tensor:
        return self.rays(plucker).flatten(2).transpose(1, 2)

    def forward(self, latent: Tensor, timestep: Tensor, plucker: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = self.patch(latent)
            frames, height, width = x.shape[2:]
            x = x.flatten(2).transpose(1, 2) + self.embedded(timestep)[:, None]
            camera = self.camera(plucker, x)
            for block in self.blocks:
                x = block(x, camera)
            x = self.head(x).unflatten(1, (frames, height, width)).unflatten(4, (4, 2, 2))
            moved = x.permute(0, 4, 1, 2, 5, 3, 6).reshape(latent.shape)
            latent = latent - moved / self.steps if self.steps > 1 else moved
        return latent


class WithLoop(Denoiser):
    steps = 3


class ReadsTheLatent(Denoiser):
    def camera(self, plucker: Tensor, x: Tensor) -> Tensor:
        return super().camera(plucker, x) + x


class Random(Denoiser):
    def camera(self, plucker: Tensor, x: Tensor) -> Tensor:
        return super().camera(plucker + torch.rand_like(plucker), x)


class WithoutTime(Denoiser):
    def forward(self, latent: Tensor, plucker: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(latent, latent.new_ones(1), plucker)


def inputs(frames: int = 2, side: int = 16, device: str = "cpu") -> list[Tensor]:
    shapes = (1, 4, frames, side, side), (1,), (1, 6, frames, side, side)
    return [torch.randn(shape, device=device) for shape in shapes]


def marked(model: nn.Module, arguments: list[Tensor]):
    program = capture.trace(model.eval().requires_grad_(False), tuple(arguments))
    remarks = [remark for remark in HoistInvariants().run(program).remarks if remark.rule == "step-memo"]
    return [node for node in program.graph.nodes if node.meta.get("memo") == "steps"], remarks


def test_what_the_steps_share_is_marked_and_nothing_else() -> None:
    model = Denoiser()
    nodes, (remark,) = marked(model, inputs())
    assert remark.kind is RemarkKind.APPLIED and remark.args["inputs"] == ["plucker"]
    linears = [node for node in nodes if node.target is torch.ops.aten.linear.default]
    assert len(linears) == 4  # two of each block's injector
    tokens = 2 * 8 * 8
    injectors = 2 * 2 * tokens * WIDTH * 3 * WIDTH
    rays = 2 * tokens * WIDTH * 6 * 4
    assert remark.flops_before == injectors + rays and remark.flops_after == 0


@pytest.mark.parametrize("twin", [WithLoop, ReadsTheLatent, Random])
def test_what_no_later_step_would_find_is_not(twin: type[Denoiser]) -> None:
    nodes, _ = marked(twin(), inputs())
    assert not [node for node in nodes if node.target is torch.ops.aten.linear.default]


def test_without_a_timestep_a_call_is_no_step() -> None:
    latent, _, plucker = inputs()
    assert marked(WithoutTime(), [latent, plucker]) == ([], [])


def test_what_takes_too_much_memory_is_computed_and_the_remark_says_how_much() -> None:
    with torch.device("meta"):
        model = Denoiser()
    nodes, (remark,) = marked(model, inputs(64, 2048, "meta"))
    assert not nodes and remark.kind is RemarkKind.MISSED and "GB" in remark.message


def memos(compiled: object):
    return [memo for graph in CompiledGraph.of(compiled) if graph.driver for memo in graph.driver.memos.values()]


@pytest.mark.parametrize("preset", ["exact", "all"])
@pytest.mark.parametrize("delegate", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_calls_find_what_an_earlier_step_left_whatever_is_written_between(preset: str, delegate: str) -> None:
    torch._dynamo.reset()
    model = Denoiser().eval().requires_grad_(False)
    compiled = torch.compile(
        model, backend="lightint", options={"preset": preset, "delegate": delegate, "strict": True}
    )
    latent, timestep, plucker = inputs()

    def check(steps: int) -> None:
        for step in range(steps):
            latent.normal_()
            timestep.fill_(step / steps)
            with torch.no_grad():
                torch.testing.assert_close(compiled(latent, timestep, plucker), model(latent, timestep, plucker))

    check(4)
    weight = model.blocks[0].injector[0].weight
    for write in (lambda: plucker.normal_(), lambda: plucker.data.add_(1), lambda: weight.data.mul_(2)):
        write()
        check(2)
    found = memos(compiled)
    assert found and all(memo.site.slots == 2 for memo in found)
    assert all(memo.hits >= 3 + 3 and memo.misses <= 4 for memo in found)
    plucker = plucker[:, :, :1].expand_as(plucker)
    check(2)


def test_another_camera_in_every_call_costs_nothing_but_the_check() -> None:
    torch._dynamo.reset()
    model = Denoiser().eval().requires_grad_(False)
    compiled = torch.compile(
        model, backend="lightint", options={"preset": "exact", "delegate": "eager", "strict": True}
    )
    for _ in range(6):
        given = inputs()
        with torch.no_grad():
            torch.testing.assert_close(compiled(*given), model(*given))
    assert memos(compiled) and not any(memo.hits for memo in memos(compiled))
    assert all(len(memo._entries) <= 2 for memo in memos(compiled))
