"""context-reuse: where keys and values are kept, and where they must not be."""

import kept_world
import pytest
import torch
from kept_world import kept_program

from lightint_compile.errors import OptionError
from lightint_compile.passes.context_reuse import ContextReuse
from lightint_compile.passes.ir.decision_points import KeepPoint, PlanPoint, RecallPoint, point_from, point_of
from lightint_compile.passes.ir.fake_values import hint_of
from lightint_compile.passes.ir.program import fake_mode_of
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline

aten = torch.ops.aten


def run(program, text="dead-tail,adaptive-context,context-reuse{age=3}"):
    return Pipeline.parse(text).run(program, strict=True)


def remark_of(result):
    (remark,) = [remark for remark in result.remarks if remark.pass_name == "context-reuse"]
    return remark


def points_of(program):
    found = {node: point_of(program.graph_module, node) for node in program.graph.nodes}
    return {node: spec for node, spec in found.items() if spec is not None}


@pytest.fixture(scope="module")
def captured():
    return kept_program(kept_world.KeptWorld())


def test_keys_are_kept_behind_their_norm_and_in_front_of_rotation_and_cameras(captured) -> None:
    program = captured.snapshot()
    remark = remark_of(run(program))
    assert remark.kind is RemarkKind.APPLIED and remark.args["values"] == 4
    kept = [node.args[1] for node, spec in points_of(program).items() if isinstance(spec, KeepPoint)]
    assert [node.target for node in kept] == [aten.layer_norm.default, aten.linear.default] * 2
    for node in kept:
        joined = [user for user in node.users if user.target is aten.cat.default]
        assert len(joined) == 1, "what is fresh goes on alone, besides what was kept"


def test_the_prefill_runs_for_fresh_frames_and_positions_for_all(captured) -> None:
    program = captured.snapshot()
    run(program)
    rows = [hint_of(node.meta["val"].shape[1]) for node in program.calls(aten.linear.default)]
    assert rows.count(4 * kept_world.PLANE) == len(rows) - 1, "all projections but the cameras' run for four frames"
    joined = [node for node in program.calls(aten.cat.default) if "keep" in str(node.meta.get("lightint"))]
    assert [hint_of(node.meta["val"].shape[1]) for node in joined] == [12 * kept_world.PLANE] * 4


def test_the_plan_looks_at_everything_that_belongs_to_a_frame_and_at_the_weights(captured) -> None:
    program = captured.snapshot()
    run(program)
    ((plan, spec),) = [(n, s) for n, s in points_of(program).items() if isinstance(s, PlanPoint)]
    assert [node.name for node in plan.args[2]] == ["extrinsics", "history"] and spec.frame_axes == (1, 2)
    watched = {program.input_of(node).path for node in plan.args[3]}
    assert {"embed.weight", "layers.0.key.weight", "layers.1.value.bias", "layers.0.out.weight"} <= watched
    assert "noise" not in watched and "layers.1.out.weight" not in watched
    assert (spec.policy.age, spec.policy.drift) == (3, 0.25)


def test_kept_values_are_picked_from_slots_that_the_plan_names(captured) -> None:
    program = captured.snapshot()
    run(program)
    recalled = [(node, spec) for node, spec in points_of(program).items() if isinstance(spec, RecallPoint)]
    assert len(recalled) == 4
    slots = set()
    for node, spec in recalled:
        (picked,) = node.users
        assert picked.target is aten.index_select.default and picked.args[1] == 1
        assert node.meta["val"].shape[1] == spec.slots == 20, "all slots, whatever is kept"
        slots.add(picked.args[2])
    (named,) = slots
    assert named.args[1] == 3 and isinstance(point_of(program.graph_module, named.args[0]), PlanPoint)


def test_one_projection_for_queries_keys_and_values_is_cut_behind_the_split() -> None:
    program = kept_program(kept_world.FusedWorld())
    remark = remark_of(run(program))
    assert remark.kind is RemarkKind.APPLIED and remark.args["values"] == 4
    for node, spec in points_of(program).items():
        if isinstance(spec, KeepPoint):
            assert node.args[1].meta["val"].shape[-1] == kept_world.WIDTH, "queries are kept as well"


def test_half_precision_is_kept_as_it_is_where_positions_are_applied_in_float32() -> None:
    program = kept_program(kept_world.WideWorld(), dtype=torch.bfloat16)
    assert remark_of(run(program)).kind is RemarkKind.APPLIED
    kept = [node.args[1] for node, spec in points_of(program).items() if isinstance(spec, KeepPoint)]
    assert {node.meta["val"].dtype for node in kept} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("twin", "reason"),
    [
        ("MeanOverFrames", "reduces over"),
        pytest.param("SummedUp", "runs along", marks=pytest.mark.slow),
        pytest.param("ConvolvedOverTime", "conv3d", marks=pytest.mark.slow),
        ("PlacedByLatents", "depends on latents"),
        ("Masked", "mask"),
        ("ReadBesides", "besides their keys and values"),
        ("WithoutProjection", "no attention reads"),
    ],
)
def test_twins_are_left_as_they_are(twin, reason) -> None:
    program = kept_program(getattr(kept_world, twin)())
    run(program, "adaptive-context")
    before = str(program.graph)
    remark = remark_of(run(program, "context-reuse{age=3}"))
    assert remark.kind is RemarkKind.MISSED and reason in remark.message, remark.message
    assert str(program.graph) == before


def test_without_a_decision_about_context_it_says_what_is_missing(captured) -> None:
    program = captured.snapshot()
    remark = remark_of(run(program, "context-reuse{age=3}"))
    assert remark.kind is RemarkKind.MISSED and "run adaptive-context in front" in remark.hint


def test_it_does_nothing_twice_and_nothing_at_age_0(captured) -> None:
    program = captured.snapshot()
    run(program)
    assert not run(program, "context-reuse{age=3}").modified
    program = captured.snapshot()
    assert not any(
        r.pass_name == "context-reuse" for r in run(program, "adaptive-context,context-reuse{age=0}").remarks
    )


def test_rewrites_the_same_whatever_lies_dead_beside_it(captured) -> None:
    plain, littered = captured.snapshot(), captured.snapshot()
    with littered.graph.inserting_before(littered.graph.output_node()):
        for node in list(littered.calls(aten.linear.default)):
            dead = littered.graph.call_function(aten.relu.default, (node,))
            dead.meta["val"] = node.meta["val"]
    text = "adaptive-context,dead-tail,context-reuse{age=3}"
    run(plain, text), run(littered, text)
    assert [n.target for n in plain.calls()] == [n.target for n in littered.calls()]


def test_points_go_through_data_and_back() -> None:
    points = [KeepPoint(1, 4, 2, 24), RecallPoint(1, (-1, 2, None, 4, 6, 32), 20, "bfloat16", "cpu")]
    assert [point_from(point.to_dict()) for point in points] == points
    assert points[1].sized([3]) == [3, 2, 20, 4, 6, 32]


def test_guards_on_decided_sizes_are_forgotten(captured) -> None:
    from lightint_compile.options import LightintOptions
    from lightint_compile.pipeline_run import rewrite

    program = captured.snapshot()
    rewrite(program, LightintOptions(passes="adaptive-context,context-reuse{age=3},sparse-attention{min-tokens=0}"))
    plan = next(node for node, spec in points_of(program).items() if isinstance(spec, PlanPoint))
    decided = {next(iter(plan.meta["val"][place].shape[0].node.expr.free_symbols)) for place in (0, 2)}
    guards = [guard.expr for guard in fake_mode_of(program.graph.nodes).shape_env.guards]
    assert not any(decided & guard.free_symbols for guard in guards)


@pytest.mark.parametrize("option", ["age=-1", "drift=-0.5"])
def test_a_value_out_of_range_is_an_option_error(option) -> None:
    with pytest.raises(OptionError, match="context-reuse"):
        Pipeline.parse(f"context-reuse{{{option}}}")


def test_options_are_written_into_the_pipeline_text() -> None:
    assert str(ContextReuse(age=2, drift=None)) == "context-reuse{age=2,drift=none}"
