"""Input that decisions cannot be made from: one clear error each, which says what, where, why and what to do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from toy_world import there_and_back

import lightint_compile
from lightint_compile.errors import InputError, LightintError, OptionError, StateError
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.path_decisions import decide
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.rollout import Rollout
from lightint_compile.runtime.rules import AdaptiveRules, PublishedRules

PATH = there_and_back(16)


def scaled(cameras: torch.Tensor) -> torch.Tensor:
    cameras = cameras.clone()
    cameras[..., 5, :3, :3] *= 1.2
    return cameras


def inside(call: Callable[[Rollout], object]) -> None:
    with lightint_compile.rollout(cameras=PATH[0]) as run:
        run.chunk(0)
        call(run)


def after() -> None:
    with lightint_compile.rollout(cameras=PATH[0]) as run:
        pass
    run.chunk(0)


CASES = {
    "a scaled camera in a loop": (lambda: lightint_compile.rollout(cameras=scaled(PATH[0])), InputError, "frame 5"),
    "a scaled camera": (lambda: Planner(AdaptiveRules()).decide(scaled(PATH)), InputError, "rigid"),
    "poses that are no chunks": (lambda: Planner(AdaptiveRules()).decide(PATH[:, :14]), InputError, "whole number"),
    "poses of a path": (lambda: lightint_compile.rollout(cameras=PATH[0, :14]), InputError, "whole number"),
    "no matrices": (lambda: lightint_compile.rollout(cameras=PATH[0, :, :3, :3]), InputError, "4x4"),
    "a path that is too short": (lambda: decide("left-3", 8, "all", 20), InputError, "too short"),
    "half a chunk": (lambda: decide("left-5", None, "all", 20), InputError, "whole number"),
    "overlap in options": (lambda: pipeline_of(LightintOptions(preset="all", overlap=1.5)), OptionError, "overlap"),
    "drift in options": (lambda: pipeline_of(LightintOptions(preset="all", drift=-1.0)), OptionError, "drift"),
    "hysteresis turned round": (lambda: AdaptiveRules(enter=0.5, leave=0.6), OptionError, "out of range"),
    "a window without frames": (lambda: AdaptiveRules(shortest=0), OptionError, "out of range"),
    "a gate above one": (lambda: PublishedRules(gate=1.1), OptionError, "out of range"),
    "more window than memory": (lambda: PublishedRules(window=12), OptionError, "out of range"),
    "no rules": (lambda: lightint_compile.rollout(cameras=PATH[0], rules=3), InputError, "no rules"),
    "rules by name": (lambda: lightint_compile.rollout(cameras=PATH[0], rules="adaptive"), InputError, "no rules"),
    "half a number": (lambda: inside(lambda run: run.chunk(1.0)), InputError, "it is float"),
    "a text for a chunk": (lambda: inside(lambda run: run.chunk("0")), InputError, "it is str"),
    "no number of a chunk": (lambda: inside(lambda run: run.chunk(None)), InputError, "it is NoneType"),
    "a chunk beyond the path": (lambda: inside(lambda run: run.chunk(4)), InputError, "has 4 chunks"),
    "a chunk before the path": (lambda: inside(lambda run: run.chunk(-1)), InputError, "has 4 chunks"),
    "a chunk in front of with": (lambda: lightint_compile.rollout(cameras=PATH[0]).chunk(0), StateError, "under way"),
    "a chunk behind with": (after, StateError, "under way"),
    "a text for a step": (lambda: inside(lambda run: run.step("0", list)), InputError, "it is str"),
    "a step that is no call": (lambda: inside(lambda run: run.step(0, PATH)), InputError, "it is Tensor"),
    "a list for a rollout": (lambda: lightint_compile.calibrate(torch.nn.Identity(), [1]), InputError, "it is list"),
    "nothing for a rollout": (lambda: lightint_compile.calibrate(list, None), InputError, "it is NoneType"),
    "a list for a run": (lambda: lightint_compile.report(torch.nn.Identity(), run=[1]), InputError, "it is list"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_error(name: str) -> None:
    call, kind, message = CASES[name]
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert message in str(error) and isinstance(error, LightintError)
    assert error.where and (error.fix or error.why)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, torch.tensor])
def test_whole_numbers_of_any_kind_are_chunks_and_steps(kind: Callable[[int], int]) -> None:
    with lightint_compile.rollout(cameras=PATH[0]) as run:
        for chunk in range(4):
            assert run.chunk(kind(chunk)).chunk == chunk
            assert [run.step(kind(number), lambda: 1.0) for number in range(4)] == [1.0] * 4


def test_a_rollout_is_entered_again_after_it_was_left() -> None:
    run = lightint_compile.rollout(cameras=PATH[0])
    for _ in range(2):
        with run:
            assert run.chunk(0).chunk == 0
        with pytest.raises(StateError, match="no chunk has begun"):
            run.step(0, list)
