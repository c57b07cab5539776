"""adaptive-context: the choice of frames becomes a decision, the number of frames a size of its own."""

import pytest
import torch
from tiny_gather import (
    BesideAnEqualSize,
    ChosenOutside,
    Gather,
    Indexed,
    Returned,
    WithoutCameras,
    Written,
    gather_program,
)

from lightint_compile.errors import OptionError, PassError
from lightint_compile.lowering import lower
from lightint_compile.options import LightintOptions
from lightint_compile.passes.adaptive_context import AdaptiveContext
from lightint_compile.passes.ir.decision_points import PLAN, PlanPoint, point_of
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.fake_values import hint_of
from lightint_compile.passes.ir.program import fake_mode_of
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline

aten = torch.ops.aten


def run(program, text="adaptive-context"):
    return Pipeline.parse(text).run(program, strict=True)


@pytest.fixture(scope="module")
def captured():
    return gather_program(Gather())


def test_the_choice_becomes_a_call_and_is_dropped_from_the_graph(captured) -> None:
    program = captured.snapshot()
    result = run(program)
    assert [(r.kind, r.pass_name) for r in result.remarks] == [(RemarkKind.APPLIED, "adaptive-context")]
    assert result.remarks[0].args["memory"] == 20
    plans = [node for node in program.graph.nodes if point_of(program.graph_module, node)]
    assert [node.target for node in plans] == [PLAN]
    assert [argument.name for argument in plans[0].args] == ["extrinsics", "history"]
    assert not list(program.calls(aten.arange.default)), "the model's own choice is still computed"
    indices = {node.args[2].args[0] for node in program.calls(aten.index_select.default)}
    assert indices == {plans[0]}


def test_sizes_downstream_follow_the_decision_and_nothing_else_does(captured) -> None:
    program = captured.snapshot()
    run(program)
    gathered = [node.meta["val"] for node in program.calls(aten.index_select.default)]
    sizes = {str(tensor.shape[2 if tensor.dim() == 5 else 1]) for tensor in gathered}
    assert len(sizes) == 1 and not any("Min" in size for size in sizes)
    mentioned = [str(node.meta.get("val")) for node in program.graph.nodes if node.op != "placeholder"]
    assert not any("Min(" in text for text in mentioned), "a size of the old choice survived"
    new = next(iter(next(t for t in gathered if t.dim() == 5).shape[2].node.expr.free_symbols))
    guards = [guard.expr for guard in fake_mode_of(program.graph.nodes).shape_env.guards]
    assert not any(new in guard.free_symbols for guard in guards), "a guard on the new size cannot be checked by Dynamo"


def test_later_passes_see_a_typical_number_of_frames(captured) -> None:
    program = captured.snapshot()
    run(program)
    (view,) = program.calls(aten.view.default)
    assert [hint_of(size) for size in view.meta["val"].shape] == [1, 4, 12 * 24]


def test_running_twice_changes_nothing(captured) -> None:
    program = captured.snapshot()
    run(program)
    code = program.graph_module.graph.python_code("self").src
    assert not run(program).modified
    assert program.graph_module.graph.python_code("self").src == code


def test_the_policy_carries_rules_and_memory(captured) -> None:
    program = captured.snapshot()
    run(program, "adaptive-context{rules=published,overlap=0.6}")
    spec = program.graph_module.get_submodule(PLAN).spec
    assert spec == PlanPoint(Policy(rules="published", memory=20, adapt_context=True, overlap=0.6))


def test_one_lowered_program_serves_every_number_of_frames(captured) -> None:
    module = Gather()
    program = captured.snapshot()
    run(program, "adaptive-context{rules=published},outline-regions")
    weights = {entry.name: module.get_parameter(entry.path) for entry in program.inputs if "mix" in entry.path}
    lowered = lower(program, LightintOptions(delegate="eager"), {})
    for frames in (8, 12, 16, 40):
        history, cameras = torch.randn(1, 4, frames, 4, 6), torch.eye(4).repeat(1, frames + 4, 1, 1)
        given = {"history": history, "extrinsics": cameras, **weights}
        sizes = {"history": history.shape[2], "extrinsics": cameras.shape[1]}
        args = [given[n.name] if n.name in given else sizes[n.name.split("_size")[0]] for n in program.placeholders()]
        with torch.no_grad():
            (got,) = lowered.driver(*args)
            chosen = torch.tensor(lowered.driver.decisions.made[-1].context_frames)
            expected = module.read(history, cameras, chosen, len(chosen))
        torch.testing.assert_close(got, expected)
    assert [len(d.context_frames) for d in lowered.driver.decisions.made] != [8, 12, 16, 20]
    assert lowered.driver.compilations == len(lowered.regions)


def test_indexing_with_brackets_is_the_same_gather() -> None:
    assert run(gather_program(Indexed())).modified


@pytest.mark.parametrize(
    ("program", "message", "hint"),
    [
        (lambda: gather_program(Gather(), dynamic=False), "fixed in the captured graph", "dynamic"),
        (lambda: gather_program(Gather(8)), "room for 12", "min(history, memory)"),
        (lambda: gather_program(BesideAnEqualSize()), "captured for at least 20", "dynamic"),
        (lambda: gather_program(WithoutCameras()), "no input holds the cameras", "roles"),
        (lambda: gather_program(Gather(), cameras=8), "one chunk of 4 latent frames", "in one tensor"),
        (lambda: gather_program(Returned()), "returns something for every context frame", "return the chunk alone"),
        (lambda: gather_program(Written()), "writes something for every context frame", "outside of the module"),
        (lambda: gather_program(ChosenOutside(), 24, torch.arange(20)), "chosen outside", "inside the module"),
    ],
    ids=["static", "short memory", "specialised", "no cameras", "other chunk", "returned", "written", "input"],
)
def test_what_stands_in_the_way_is_said(program, message, hint) -> None:
    result = run(program())
    assert not result.modified
    (remark,) = result.remarks
    assert remark.kind is RemarkKind.MISSED and message in remark.message and hint in remark.hint


def test_another_value_of_the_same_size_undoes_the_pass(captured) -> None:
    program = captured.snapshot()
    (gathered,) = [n for n in program.calls(aten.index_select.default) if n.meta["val"].dim() == 5]
    with program.graph.inserting_before(gathered.next):
        twin = program.graph.call_function(aten.slice.Tensor, (gathered.args[0], 2, 0, 20))
        both = program.graph.call_function(aten.add.Tensor, (gathered, twin))
    twin.meta["val"] = both.meta["val"] = gathered.meta["val"]
    gathered.replace_all_uses_with(both, delete_user_cb=lambda user: user is not both)
    before = program.graph_module.graph.python_code("self").src
    with pytest.raises(PassError, match="without being read with its frame numbers"):
        run(program)
    assert program.graph_module.graph.python_code("self").src == before
    result = Pipeline.parse("adaptive-context").run(program)
    assert not result.modified and result.remarks[0].kind is RemarkKind.FAILURE


def test_a_condition_on_the_old_size_undoes_the_pass() -> None:
    program = gather_program(Gather())
    (gathered,) = [n for n in program.calls(aten.index_select.default) if n.meta["val"].dim() == 5]
    size = gathered.meta["val"].shape[2]
    assert bool(size % 5 == 0), "the hint is 20"
    with pytest.raises(PassError, match="captured under a condition"):
        run(program)


def test_thresholds_are_checked() -> None:
    for bad in ({"rules": "adaptiv"}, {"overlap": 1.5}):
        with pytest.raises(OptionError):
            AdaptiveContext(**bad)
