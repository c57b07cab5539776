"""adaptive-context where the context is an input: every input with an entry a frame is read at the chosen frames."""

import pytest
import torch
from given_context import CHUNK, CamerasApart, FramePack, Given, PerFrameResult, TwoCameras, WithoutCameras
from torch._dynamo.utils import counters
from toy_world import there_and_back, walk

import lightint_compile
from lightint_compile import capture
from lightint_compile.lowering import lower
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.decision_points import PLAN, PlanPoint
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.planner import Planner, plan
from lightint_compile.runtime.rules import PublishedRules

AXES = {"context": 2, "cameras": 1, "actions": 1, "valid": 1, "context_cameras": 1}


def inputs_of(module, frames=12, seed=0):
    given = module.inputs(frames, seed)
    if isinstance(module, FramePack):
        return given
    cameras = there_and_back(((frames + 2 * CHUNK) // 8) * 8)[:, : frames + CHUNK]
    given["cameras"] = cameras
    if isinstance(module, TwoCameras):
        names = ("latents", "context", "context_cameras", "cameras", "valid")
        apart = {"context_cameras": cameras[:, :frames], "cameras": cameras[:, frames:]}
        given |= {name: part.clone(memory_format=torch.contiguous_format) for name, part in apart.items()}
    else:
        names = {WithoutCameras: ("latents", "context", "actions", "valid")}.get(type(module), tuple(given))
        names = ("latents", "context", "cameras", "valid") if isinstance(module, CamerasApart) else names
    return {name: given[name] for name in names}


def traced(module, frames=12, *, fixed=()):
    given = inputs_of(module, frames)
    axes = (
        {"latents_clean": 2, "indices_latents_clean": 1, "viewmats_clean": 1} if isinstance(module, FramePack) else AXES
    )
    still = {"cameras"} if isinstance(module, TwoCameras) else set()
    dynamic = {name: axis for name, axis in axes.items() if name in given and name not in {*fixed, *still}}
    with torch.no_grad():
        return capture.trace(module, list(given.values()), dynamic=dynamic)


def run(program, text="adaptive-context"):
    return Pipeline.parse(text).run(program, strict=True)


class Lowered:
    """A rewritten module as a function of its inputs by name."""

    def __init__(self, module, text="adaptive-context{rules=published},outline-regions") -> None:
        self.program = traced(module)
        self.module = module
        run(self.program, text)
        lowered = lower(self.program, LightintOptions(delegate="eager"), {})
        self.driver = lowered.driver

    def __call__(self, given):
        sizes = {f"{n}.size().{axis}": size for n, t in given.items() for axis, size in enumerate(t.shape)}
        known = {**sizes, **given, **dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        with torch.no_grad():
            return self.driver(*[known[self.program.input_of(node).path] for node in self.program.placeholders()])[0]

    @property
    def chosen(self):
        return torch.tensor(self.driver.decisions.made[-1].context_frames)


def subset(module, given, chosen):
    """The inputs that a caller who chose these frames himself would give."""
    frames = given["latents_clean" if isinstance(module, FramePack) else "context"].shape[2]
    both = torch.cat([chosen, frames + torch.arange(CHUNK)])
    result = {}
    for name, tensor in given.items():
        axis = next((a for a, size in enumerate(tensor.shape) if size in (frames, frames + CHUNK)), None)
        read = name not in ("latents", "hidden_states", "viewmats") and axis is not None
        index = both if read and tensor.shape[axis] == frames + CHUNK else chosen
        result[name] = tensor.index_select(axis, index) if read else tensor
    return result


def eager(module, given):
    with torch.no_grad():
        result = module(*given.values())
    return result["sample"] if isinstance(result, dict) else result


FORMS = {"one camera input": Given, "two camera inputs": TwoCameras, "as diffusers": FramePack, "apart": CamerasApart}


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def lowered(request):
    torch.manual_seed(0)
    return Lowered(request.param().eval())


def test_a_subset_gives_what_the_model_gives_for_that_subset(lowered) -> None:
    lengths = set()
    for frames in (20, 8, 24, 40, 12):
        given = inputs_of(lowered.module, frames, seed=frames)
        got = lowered(given)
        lengths.add(len(lowered.chosen))
        torch.testing.assert_close(got, eager(lowered.module, subset(lowered.module, given, lowered.chosen)))
    assert lengths == {8, 12}
    assert lowered.driver.compilations == len(lowered.driver.leaves), "a length was compiled for"


class KeepAll(PublishedRules):
    def decide(self, situation):
        return Decision(chunk=situation.chunk, context_frames=tuple(range(situation.frames)))


def test_keeping_every_frame_is_the_model_itself(lowered) -> None:
    lowered(inputs_of(lowered.module, 8))
    planner = lowered.driver.decisions._planners.latest
    before, planner.rules = planner.rules, KeepAll(memory=1 << 20)
    try:
        for frames in (28, 9):
            given = inputs_of(lowered.module, frames, seed=frames)
            torch.testing.assert_close(lowered(given), eager(lowered.module, given))
    finally:
        planner.rules = before


def test_a_rollout_is_compiled_once_and_its_decisions_are_reported_chunk_by_chunk() -> None:
    torch._dynamo.reset()
    module, path = Given().eval(), there_and_back(40)
    compiled = torch.compile(module, backend="lightint", options={"preset": "published", "delegate": "eager"})
    counters.clear()
    for chunk in range(1, 10):
        frames = CHUNK * chunk
        given = module.inputs(frames, seed=chunk) | {"cameras": path[:, : frames + CHUNK].clone()}
        for name, axis in AXES.items():
            if name in given:
                torch._dynamo.mark_dynamic(given[name], axis)
        for _ in range(2):  # two denoising steps of one chunk
            with torch.no_grad():
                compiled(*given.values())
    assert counters["stats"]["unique_graphs"] == 1
    made = lightint_compile.decisions(compiled)[1:]
    assert [decision.chunk for decision in made] == list(range(1, 10))
    expected = plan(path[0], PublishedRules())[1:]
    assert [d.context_frames for d in made] == [d.context_frames for d in expected]


def test_a_window_of_frames_belongs_to_the_rollout_whose_newest_views_it_holds() -> None:
    planner, path = Planner(PublishedRules(), given=True), there_and_back(40)[0]
    for chunk in range(6, 10):  # the first clip, and the sixteen newest frames
        window = torch.cat([path[:4], path[4 * chunk - 16 : 4 * chunk + 4]])
        for _ in range(2):
            decision = planner.decide(window)
        assert decision.context_frames[:4] == (0, 1, 2, 3) and decision.context_frames[-1] == 19
    assert [decision.chunk for decision in planner.decisions] == [5, 6, 7, 8]
    assert planner.decide(walk(24)[0]).chunk == 5, "another path is another rollout"
    assert len(planner.decisions) == 1
    assert planner.decide(walk(23)[0]).context_frames, "a window need not be whole chunks"


def test_the_remark_and_the_policy_say_that_the_context_is_given() -> None:
    program = traced(Given())
    (remark,) = run(program, "adaptive-context{overlap=0.6}").remarks
    assert remark.kind is RemarkKind.APPLIED and "that are given" in remark.message
    assert set(remark.args["inputs"]) == {"context", "cameras", "actions", "valid"}
    policy = Policy(memory=remark.args["memory"], adapt_context=True, overlap=0.6, given=True)
    assert program.graph_module.get_submodule(PLAN).spec == PlanPoint(policy)
    assert not run(program).modified


@pytest.mark.parametrize(
    ("module", "fixed", "message", "hint"),
    [
        (
            Given(),
            ("context", "cameras", "actions", "valid"),
            "12 context frames are fixed",
            "mark_dynamic(context, 2)",
        ),
        (WithoutCameras(), (), "no input holds the cameras", "roles"),
        (CamerasApart(), ("cameras",), "no cameras belong to", "of the coming chunk"),
        (PerFrameResult(), (), "returns something for every context frame", "chunk alone"),
    ],
    ids=["static", "no cameras", "cameras of another length", "a result a frame"],
)
def test_what_stands_in_the_way_is_said(module, fixed, message, hint) -> None:
    result = run(traced(module, fixed=fixed))
    assert not result.modified
    (remark,) = result.remarks
    assert remark.kind is RemarkKind.MISSED and message in remark.message and hint in remark.hint


def test_an_image_is_no_context_to_choose_from() -> None:
    """One frame cannot be marked as dynamic, and none of it can be left out: nothing is missed."""
    result = run(traced(Given(), frames=1, fixed=("context", "cameras", "actions", "valid")))
    assert not result.modified and not result.remarks


def test_a_stated_role_tells_the_context_where_its_shape_does_not() -> None:
    program = traced(Given())
    program.roles["context"] = "action"
    assert not run(program).modified
    program = traced(Given())
    program.roles |= {"context": "context", "cameras": "camera"}
    assert run(program).modified
