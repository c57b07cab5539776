"""step-cache on a program that is one step: one branch, and what keeps it from being made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_world import StepWorld
from torch import Tensor
from toy_world import CHUNK, walk

from lightint_compile import capture
from lightint_compile.passes.ir.decision_points import PredictedPoint, VisitPoint, point_from, point_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.pipeline import Pipeline

COND = torch.ops.higher_order.cond
BEFORE = "hoist-invariants,outline-regions"


def given(cameras: int = CHUNK) -> tuple[Tensor, ...]:
    return torch.randn(1, 4, CHUNK, 4, 6), torch.tensor([1000.0]), walk(cameras), torch.randn(1, 5, 8)


def rewritten(
    text: str = "step-cache", model: StepWorld | None = None, inputs: tuple[Any, ...] | None = None
) -> tuple[Program, list[Remark]]:
    model = (model or StepWorld()).eval()
    with torch.no_grad():
        program = capture.trace(model, inputs or given())
    result = Pipeline.parse(f"{BEFORE},{text}").run(program, strict=True)
    return program, [remark for remark in result.remarks if remark.pass_name == "step-cache"]


def test_a_step_gets_one_branch_behind_its_first_block() -> None:
    program, remarks = rewritten()
    root = program.graph_module
    points = {type(spec): spec for node in root.graph.nodes if (spec := point_of(root, node)) is not None}
    assert points.keys() == {VisitPoint, PredictedPoint}
    (branch,) = program.calls(COND)
    reuse, compute = (root.get_submodule(str(side.target)) for side in branch.args[1:3])
    called = [[node.target for node in side.graph.nodes if node.op == "call_module"] for side in (reuse, compute)]
    assert called[0] == ["extrapolate"] and called[1].count("block_0") == 2
    assert [(each.kind, each.rule) for each in remarks] == [(RemarkKind.APPLIED, "outside")]
    assert not Pipeline.parse("step-cache").run(program, strict=True).modified, "running twice changes nothing"


def test_without_a_drift_the_whole_step_is_branched_around() -> None:
    program, _ = rewritten("step-cache{strategy=hold,drift=none,rules=published}")
    (branch,) = program.calls(COND)
    compute = program.graph_module.get_submodule(str(branch.args[2].target))
    assert [node.target for node in compute.graph.nodes].count("block_0") == 3


def test_points_come_back_from_plain_data() -> None:
    program, _ = rewritten("step-cache{drift=0.1}")
    root = program.graph_module
    for node in root.graph.nodes:
        spec = point_of(root, node)
        assert spec is None or point_from(spec.to_dict()) == spec


def test_a_residual_is_extrapolated_and_that_is_said() -> None:
    _, remarks = rewritten("step-cache{strategy=residual}")
    assert [(each.kind, each.rule) for each in remarks] == [
        (RemarkKind.APPLIED, "outside"),
        (RemarkKind.MISSED, "residual"),
    ]


class Moved(StepWorld):
    """The scheduler's step is inside: the latents of the next step come out."""

    def finished(self, tokens: Tensor, latents: Tensor) -> Tensor:
        return latents - 0.1 * super().finished(tokens, latents)


class Two(StepWorld):
    """The tokens come out as well."""

    def finished(self, tokens: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        return super().finished(tokens, latents), tokens


class Writing(StepWorld):
    """Tokens are left in a buffer and read back."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(1, 24, 16))

    def finished(self, tokens: Tensor, latents: Tensor) -> Tensor:
        self.kept[:, :24] = tokens
        return super().finished(self.kept * 1.0, latents)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Moved(), "is the latent itself, moved on"),
        (Two(), "2 results depend on the latent"),
        (Writing(), "writes to an input, which a reused step would leave out"),
        (StepWorld(depth=1), "no repeated block is found"),
    ],
)
def test_what_is_in_the_way_is_said(model: StepWorld, told: str) -> None:
    program, (remark,) = rewritten(model=model)
    assert remark.kind is RemarkKind.MISSED and told in remark.message, remark.message
    assert not list(program.calls(COND))


class Behind(StepWorld):
    """Frames of context are attended to; their cameras are in front of those of the latent's."""

    def forward(  # type: ignore[override]
        self, latents: Tensor, timestep: Tensor, extrinsics: Tensor, text: Tensor, context: Tensor
    ) -> Any:
        seen = self.tokens(context, extrinsics[:, :-CHUNK])
        tokens, time = self.tokens(latents, extrinsics[:, -CHUNK:]), self.told(timestep, text)
        for block in self.blocks:
            seen, kept = block(seen, 0 * time, None)
            tokens, _ = block(tokens, time, kept)
        return self.finished(tokens, latents)


class InFront(StepWorld):
    """Cameras of frames to come are behind those of the latent's."""

    def forward(self, latents: Tensor, timestep: Tensor, extrinsics: Tensor, text: Tensor) -> Any:
        return super().forward(latents, timestep, extrinsics[:, :CHUNK], text)


def test_cameras_of_the_latents_frames_are_the_last_ones() -> None:
    _, (remark,) = rewritten(model=InFront(), inputs=given(cameras=2 * CHUNK))
    assert remark.kind is RemarkKind.MISSED and "does not read the last 4 of the cameras" in remark.message
    program, (remark,) = rewritten(model=Behind(), inputs=(*given(cameras=3 * CHUNK), torch.randn(1, 4, 8, 4, 6)))
    assert remark.kind is RemarkKind.APPLIED, remark.message
    (branch,) = program.calls(COND)
    compute = program.graph_module.get_submodule(str(branch.args[2].target))
    assert len(compute.graph.nodes) > 3


def test_without_cameras_nothing_is_done_or_said() -> None:
    class Blind(StepWorld):
        def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Any:  # type: ignore[override]
            return super().forward(latents, timestep, torch.zeros(1, CHUNK, 4, 4), text)

    latents, timestep, _, text = given()
    program, remarks = rewritten(model=Blind(), inputs=(latents, timestep, text))
    assert not remarks and not list(program.calls(COND))
