"""step-cache: interior steps become branches; held and extrapolated predictions are what the mathematics says."""

import copy
import dataclasses

import pytest
import torch
import worldplay_tiny
from stepped_toy import Guided, Toy
from toy_world import CHUNK, ToyWorld, walk

from lightint_compile import capture
from lightint_compile.errors import OptionError
from lightint_compile.models.registry import world_model
from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs
from lightint_compile.options.presets import PRESETS
from lightint_compile.passes.ir.decision_points import StepPoint, point_of
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.passes.step_cache import StepCache
from lightint_compile.runtime.drift import latent_dynamics, relative_change

COND = torch.ops.higher_order.cond


@pytest.fixture(scope="module")
def toy():
    return Toy()


def test_interior_steps_and_only_those_become_branches(toy) -> None:
    program, result = toy.rewritten("step-cache")
    root = program.graph_module
    points = [point_of(root, node) for node in root.graph.nodes]
    assert [spec.step for spec in points if isinstance(spec, StepPoint)] == [1, 2]
    conds = list(program.calls(COND))
    assert [node.name for node in conds] == ["step_1", "step_2"]
    for node in conds:
        reuse, compute = (root.get_submodule(str(side.target)) for side in node.args[1:3])
        called = [n.target for n in compute.graph.nodes if n.op == "call_module"]
        assert called and all(compute.get_submodule(name) is root.get_submodule(name) for name in called)
        assert not any(n.op == "call_module" and n.target != "extrapolate" for n in reuse.graph.nodes)
        for side in (reuse, compute):
            returned = side.graph.output_node().args[0]
            assert len(set(returned)) == len(returned), "two results share memory"
            assert all(n.op != "placeholder" for n in returned), "a branch hands back an operand"
    assert [r.kind for r in result.remarks] == [RemarkKind.APPLIED]


def test_running_twice_changes_nothing(toy) -> None:
    program, _ = toy.rewritten("step-cache")
    assert not Pipeline.parse("step-cache").run(program, strict=True).modified


@pytest.mark.parametrize(
    "text",
    [
        "step-cache",
        "step-cache{strategy=hold,drift=none,rules=published}",
        "step-cache{strategy=residual}",
        "step-cache{strategy=residual,drift=none}",
    ],
)
def test_when_no_step_is_reused_the_result_is_the_same_to_the_bit(toy, text) -> None:
    expected, _ = toy.run(toy.program.snapshot())
    got, _ = toy.run(toy.rewritten(text)[0], reused=())
    assert torch.equal(got, expected)


def test_a_drift_of_zero_refuses_every_reuse(toy) -> None:
    expected, _ = toy.run(toy.program.snapshot())
    got, _ = toy.run(toy.rewritten("step-cache{drift=0.0}")[0], reused=(1, 2))
    assert torch.equal(got, expected)


def test_holding_is_one_longer_euler_step(toy) -> None:
    program, _ = toy.rewritten("step-cache{strategy=hold,drift=none,rules=published}")
    got, _ = toy.run(program, reused=(1, 2))
    torch.testing.assert_close(got, toy.by_hand(reused=(1, 2)), rtol=1e-10, atol=1e-12)
    short = ToyWorld(steps=2).double()
    short.load_state_dict(toy.model.state_dict())
    short.sigmas = [1.0, 0.625, 0.0]
    with torch.no_grad():
        torch.testing.assert_close(got, short(toy.noise, toy.history, toy.cameras), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reused", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("strategy", ["hold", "extrapolate", "residual"])
def test_any_choice_of_steps_gives_what_it_gives_by_hand(toy, strategy, reused) -> None:
    program, _ = toy.rewritten(f"step-cache{{strategy={strategy},drift=1e9}}")
    got, _ = toy.run(program, reused=reused)
    torch.testing.assert_close(got, toy.by_hand(reused, strategy), rtol=1e-10, atol=1e-12)
    if reused == (2,):
        for other in {"hold", "extrapolate", "residual"} - {strategy}:
            assert not torch.allclose(got, toy.by_hand(reused, other), rtol=1e-6), "the strategies are told apart"


def test_a_residual_is_reused_behind_the_first_block_and_in_front_of_the_head(toy) -> None:
    program, result = toy.rewritten("step-cache{strategy=residual,drift=none}")
    root = program.graph_module
    for node in program.calls(COND):
        reuse, compute = (root.get_submodule(str(side.target)) for side in node.args[1:3])
        called = [[n.target for n in side.graph.nodes if n.op == "call_module"] for side in (reuse, compute)]
        assert called[0][0] == "residual" and called[1][0].startswith("block")
        assert called[0][1:] == called[1][1:], "the head runs in both"
    (remark,) = result.remarks
    assert (remark.kind, remark.rule) == (RemarkKind.APPLIED, "residual")
    got, _ = toy.run(program, reused=(1, 2))
    torch.testing.assert_close(got, toy.by_hand((1, 2), "residual"), rtol=1e-10, atol=1e-12)


def test_half_precision_residuals_are_added_in_float32_and_rounded_once() -> None:
    toy = Toy(torch.bfloat16)
    program, _ = toy.rewritten("step-cache{strategy=residual,drift=none}")
    draw = torch.Generator().manual_seed(0)
    now, first, last = (torch.randn(1, 24, 16, generator=draw).bfloat16() for _ in range(3))
    (estimate,) = program.graph_module.residual(now, first, last)
    assert torch.equal(estimate, (now.float() + (last.float() - first.float())).bfloat16())
    assert not torch.equal(estimate, now + (last - first))
    got, _ = toy.run(program, reused=(1, 2))
    torch.testing.assert_close(got, toy.by_hand((1, 2), "residual"), rtol=2e-2, atol=2e-2)


@pytest.fixture(scope="module")
def pair():
    return Toy(batch=2)


@pytest.mark.parametrize("strategy", ["hold", "extrapolate", "residual"])
def test_a_pair_with_the_same_cameras_shares_the_decision_and_nothing_else(pair, strategy) -> None:
    program, _ = pair.rewritten(f"step-cache{{strategy={strategy},drift=none}}")
    together, _ = pair.run(program, reused=(1, 2))
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(together, pair.by_hand((1, 2), strategy), rtol=1e-10, atol=1e-12)


def test_two_calls_of_one_chunk_do_not_see_each_others_predictions(toy) -> None:
    program, _ = toy.rewritten("step-cache{strategy=residual,drift=none}")
    alone, driver = toy.run(program, reused=(1, 2))
    noise, toy.noise = toy.noise, -toy.noise
    try:
        other = toy.call(program, driver)
        torch.testing.assert_close(other, toy.by_hand((1, 2), "residual"), rtol=1e-10, atol=1e-12)
    finally:
        toy.noise = noise
    assert torch.equal(toy.call(program, driver), alone) and not torch.allclose(other, alone)


def test_guidance_inside_the_module_holds_each_of_its_predictions_and_refuses_a_residual() -> None:
    guided = Toy(kind=Guided)
    program, result = guided.rewritten("step-cache{strategy=residual}")
    assert [(r.kind, r.rule) for r in result.remarks] == [(RemarkKind.MISSED, "residual")]
    assert "no last block" in result.remarks[0].message and "extrapolate" in result.remarks[0].hint
    program, _ = guided.rewritten("step-cache{strategy=hold,drift=none}")
    got, _ = guided.run(program, reused=(1, 2))
    torch.testing.assert_close(got, guided.by_hand((1, 2)), rtol=1e-10, atol=1e-12)


def test_cameras_decide_without_any_help_from_the_test(toy) -> None:
    program, _ = toy.rewritten("step-cache")
    got, driver = toy.run(program)
    expected, _ = toy.run(toy.program.snapshot())
    (decision,) = driver.decisions.made
    assert (decision.chunk, decision.reused_steps) == (2, ()), "eight frames of history hold nothing to come back to"
    assert torch.equal(got, expected)


def test_what_stands_in_the_way_is_said() -> None:
    model = ToyWorld(steps=2).eval()
    with torch.no_grad():
        program = capture.trace(model, (torch.randn(1, 4, 4, 4, 6), None, walk(4)))
    flat = Pipeline.parse("step-cache").run(program, strict=True)
    assert not flat.modified and not flat.remarks, "a flat graph has no marked loop"
    result = Pipeline.parse("outline-regions,step-cache").run(program, strict=True)
    missed = [r for r in result.remarks if r.pass_name == "step-cache"]
    assert [(r.kind, r.message) for r in missed] == [
        (RemarkKind.MISSED, "of 2 steps none is between the first and the last")
    ]


@pytest.mark.parametrize("bad", [{"rules": "x"}, {"strategy": "repeat"}, {"drift": -1.0}, {"overlap": 2.0}])
def test_thresholds_are_checked(bad) -> None:
    with pytest.raises(OptionError):
        StepCache(**bad)


def test_a_change_in_one_tile_is_not_averaged_away() -> None:
    before = torch.randn(1, 640, 8, generator=torch.Generator().manual_seed(0))
    now = before.clone()
    now[:, 64:128] *= -1
    assert float(relative_change(before, before)) == 0
    assert float(relative_change(now, before)) == pytest.approx(2, rel=1e-5)
    assert float((now - before).abs().mean() / before.abs().mean()) < 0.25, "the global mean hides it"
    assert not float(relative_change(before * torch.nan, before)) <= 1e9, "what is not a number is no reuse"


def test_latent_dynamics_are_zero_for_a_picture_and_near_root_two_for_noise() -> None:
    still = torch.randn(1, 8, 1, 8, 12).expand(1, 8, 6, 8, 12)
    assert float(latent_dynamics(still)) == 0
    noise = torch.randn(1, 32, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    assert 1.3 < float(latent_dynamics(noise)) < 1.7
    assert float(latent_dynamics(noise[:, :, :1])) == 0


def one_block_of_worldplay():
    config = dataclasses.replace(WorldPlayConfig.tiny(), depth=1, steps=3)
    inputs, _ = example_inputs(config, 24, "cpu", torch.float32)
    sizes = {"history": 2, "extrinsics": 1, "intrinsics": 1, "actions": 1}
    with torch.no_grad():
        return capture.trace(WorldPlayChunk(config).eval(), inputs, dynamic=sizes)


@pytest.mark.parametrize(
    ("traced", "applies"),
    [(worldplay_tiny.program, True), pytest.param(one_block_of_worldplay, False, marks=pytest.mark.slow)],
    ids=["two blocks", "one block"],
)
def test_worldplay_is_guarded_where_a_block_is_left_to_save(traced, applies: bool) -> None:
    program = traced().snapshot()
    Pipeline.parse("hoist-invariants,outline-regions").run(program, strict=True)
    for text in ("step-cache", "step-cache{strategy=residual}"):
        result = Pipeline.parse(text).run(program.snapshot(), strict=True)
        assert {remark.kind for remark in result.remarks} == {RemarkKind.APPLIED if applies else RemarkKind.MISSED}


class WritingWorld(ToyWorld):
    """Every step leaves its tokens in a buffer and reads them back; beside its prediction, or inside of it."""

    inside = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(1, 24, 16))

    def predict(self, latents, cameras, sigma, context):
        if self.inside:
            latents = latents + 0.1 * self.left(latents, cameras)
        velocity = super().predict(latents, cameras, sigma, context)
        return velocity if self.inside else velocity + 0.1 * self.left(latents, cameras)

    def left(self, latents, cameras):
        before = self.kept[:, :24].mean()
        self.kept[:, :24] = 0.5 * self.kept[:, :24] + self.tokens(latents, cameras)
        return before + self.kept.mean()


class WritingInside(WritingWorld):
    inside = True


@pytest.mark.parametrize("kind", [WritingWorld, WritingInside])
def test_writes_to_a_buffer_are_made_in_every_step_and_none_is_branched_around(kind) -> None:
    toy = Toy(kind=kind)
    program, result = toy.rewritten("adaptive-context,context-reuse,sparse-attention,step-cache")
    (said,) = [remark for remark in result.remarks if remark.pass_name == "step-cache"]
    assert said.kind is (RemarkKind.MISSED if kind.inside else RemarkKind.APPLIED), said.message
    assert not kind.inside or "writes to an input, which a reused step would leave out" in said.message
    assert sum(map(is_write, program.graph.nodes)) == 4
    twin = copy.deepcopy(toy.model)
    for _ in range(2):
        with torch.no_grad():
            expected = twin(toy.noise, toy.history, toy.cameras)
        got, _ = toy.run(program, reused=())
        torch.testing.assert_close((got, toy.model.kept), (expected, twin.kept), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no trained weights")
def test_where_a_region_joins_the_first_latent_and_the_context_each_step_watches_its_own_first_block() -> None:
    """Sparse attention over a context splits the context's blocks, and a region of them takes the noise as well."""
    model = world_model("maze:base").at_depth(2)
    inputs = model.example_inputs(16)
    program = capture.trace(model.module(), tuple(inputs.values()), dynamic=dict(model.frame_axes))
    Pipeline.parse(str(PRESETS["all"])).run(program, strict=True)
    root = program.graph_module
    asked = [node for node in root.graph.nodes if isinstance(point_of(root, node), StepPoint)]
    assert len(asked) == 2
    for node in asked:
        now, before = (source.meta["val"] for source in node.args[1:])
        assert now.shape == before.shape == (1, 4 * 256, 256)


class BehindPast(ToyWorld):
    """Keys and values of earlier frames are given; the last cameras are those of the frames that come."""

    def forward(self, noise, past, extrinsics):
        for step in range(self.steps):
            velocity = self.predict(noise, extrinsics[:, -CHUNK:], self.sigmas[step], past)
            noise = noise + velocity * (self.sigmas[step + 1] - self.sigmas[step])
        return noise


@pytest.mark.parametrize(("cameras", "kind"), [(CHUNK, RemarkKind.MISSED), (3 * CHUNK, RemarkKind.APPLIED)])
def test_behind_a_past_the_cameras_of_the_chunk_alone_say_nothing_and_that_is_said(cameras: int, kind) -> None:
    past = [(torch.randn(1, 2 * CHUNK * 6, 16), torch.randn(1, 2 * CHUNK * 6, 16)) for _ in range(2)]
    with torch.no_grad():
        program = capture.trace(BehindPast().eval(), (torch.randn(1, 4, CHUNK, 4, 6), past, walk(cameras)))
    result = Pipeline.parse("hoist-invariants,outline-regions,step-cache").run(program, strict=True)
    (said,) = [remark for remark in result.remarks if remark.pass_name == "step-cache"]
    assert said.kind is kind, said.message
    assert ("no cameras that say what these frames saw" in said.message) is (kind is RemarkKind.MISSED)
