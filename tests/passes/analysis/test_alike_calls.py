"""What is found once for all calls that look alike is what is found at each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.fx as fx
import worldplay_tiny
import zoo
from differential import trace
from torch import Tensor
from toy_world import ToyWorld, walk

from lightint_compile import capture
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.analysis.grid_axes.axes import Axes
from lightint_compile.passes.analysis.grid_axes.following import Followed
from lightint_compile.passes.analysis.row_repeats import analysis
from lightint_compile.passes.analysis.row_repeats.analysis import Sunk, analyse
from lightint_compile.passes.analysis.row_repeats.picks import every
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.looks import Look, Looks
from lightint_compile.passes.ir.program import Program
from lightint_compile.pipeline_run import rewrite

aten = torch.ops.aten


def one_by_one(found: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ``found`` gives where no call takes anything from another."""
    follow, apply = Followed.follow, analysis._apply
    with monkeypatch.context() as patched:
        patched.setattr(Followed, "follow", lambda self, node, find, alike=True: follow(self, node, find, alike=False))
        patched.setattr(analysis._Alike, "apply", lambda self, node: apply(node, self._analysis, self._picks))
        return found()


def axes_of(program: Program) -> dict[fx.Node, Axes]:
    return dict(TokenGrid.analyse(program).axes)


def rows_of(program: Program, looks: Looks | None) -> tuple[dict[fx.Node, Any], dict[fx.Node, Sunk]]:
    """Functions that make a tensor are not equal, whatever they do."""
    found = analyse(program.graph, picks=every, looks=looks)
    sunk = {node: each._replace(plan=replace(each.plan, made=None)) for node, each in found.sunk.items()}
    return found.blocked, sunk


QUICK = {"cosmos_v2w", "hunyuan_video", "wan", "ltx", "cogvideox"}


@pytest.fixture(
    params=[
        "worldplay",
        *(name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.names()),
    ]
)
def program(request: pytest.FixtureRequest) -> Program:
    made: Program = worldplay_tiny.program() if request.param == "worldplay" else zoo.program(request.param)
    return made.snapshot()


def test_calls_of_alike_blocks_find_what_each_would_find(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Any:
        return axes_of(program), rows_of(program, program.memory(Looks)), rows_of(program, None)

    alike, apart = found(), one_by_one(found, monkeypatch)
    assert alike == apart
    assert alike[1] == alike[2]


def test_what_is_found_after_every_pass_is_what_is_found_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = worldplay_tiny.program().snapshot()
    seen: list[str] = []

    def check(step: Any, now: Program, result: Any) -> None:
        remembered = dict(now.fact(TokenGrid).axes), rows_of(now, now.memory(Looks))
        fresh = replace(now, _facts={}, _memories={})
        assert remembered == one_by_one(lambda: (axes_of(fresh), rows_of(fresh, None)), monkeypatch)
        seen.append(step.name)

    pipeline = pipeline_of(LightintOptions.from_mapping({"preset": "all"}))
    pipeline.run(program, strict=True, observer=check)
    assert len(seen) == len(pipeline.passes)


def toy() -> Program:
    """The toy world with random weights, traced anew."""
    given = {"noise": torch.ones(1, 4, 4, 4, 6), "history": torch.ones(1, 4, 8, 4, 6), "extrinsics": walk(12)}
    return trace(ToyWorld().eval(), given, dynamic={"history": 2, "extrinsics": 1})


@pytest.mark.parametrize(
    "made", [toy, pytest.param(worldplay_tiny.program.__wrapped__, id="worldplay", marks=pytest.mark.slow)]
)
def test_a_program_in_which_nothing_looks_alike_becomes_the_same(
    made: Callable[[], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, forms of regions and whatever else is put together once are those of each node."""
    options = LightintOptions.from_mapping({"preset": "all"})

    def rewritten() -> tuple[list[str], Any]:
        done = rewrite(made(), options)  # a trace of its own: passes make symbols
        graphs = [each for each in done.program.graph_module.modules() if isinstance(each, fx.GraphModule)]
        return [str(node.format_node()) for each in graphs for node in each.graph.nodes], done.remarks

    alike, of, value = rewritten(), Looks.of, Looks.value

    def own_value(self: Looks, node: fx.Node) -> int:
        return self.number((node, value(self, node)))

    def own_look(self: Looks, node: fx.Node) -> Look:
        return Look(self.number((node, "call", of(self, node).call)), own_value(self, node))

    monkeypatch.setattr(Looks, "of", own_look)
    monkeypatch.setattr(Looks, "value", own_value)
    assert rewritten() == alike


def test_a_changed_call_is_followed_anew() -> None:
    """Two calls that looked alike do no longer, nor does what reads them."""

    def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.transpose(0, 1).sin(), y.transpose(0, 1).sin()

    program = capture.trace(both, (torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)))
    (one, other), (_, last) = program.calls(aten.transpose.int), program.calls(aten.sin.default)
    before = axes_of(program)
    assert [axis[0].origin.axis for axis in before[last]] == [1, 0, 2]  # type: ignore[union-attr]
    other.args = (other.args[0], 1, 2)
    after = axes_of(program)
    assert [axis[0].origin.axis for axis in after[last]] == [0, 2, 1]  # type: ignore[union-attr]
    assert after[one] == before[one]


def test_numbers_that_are_made_differently_pick_other_frames() -> None:
    def picked(video: Tensor) -> Tensor:
        return video[:, :, torch.arange(4) + 1]

    program = capture.trace(picked, (torch.zeros(1, 2, 8, 4, 4),))
    before = program.fact(TokenGrid).axes
    (shifted,) = program.calls(aten.add.Tensor)
    (taken,) = program.calls(aten.index.Tensor)
    shifted.args = (shifted.args[0], 2)
    program.changed()
    after = program.fact(TokenGrid).axes
    assert before[shifted] == after[shifted]
    assert (before[taken][2][0].start, after[taken][2][0].start) == (1, 2)
