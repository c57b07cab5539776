"""Input that decisions cannot be made from: one clear error each, which says what, where, why and what to do."""

from __future__ import annotations

import pytest
import torch
from toy_world import there_and_back

import lightint_compile
from lightint_compile.errors import InputError, LightintError, OptionError
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.path_decisions import decide
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.rules import AdaptiveRules, PublishedRules

PATH = there_and_back(16)


def scaled(cameras: torch.Tensor) -> torch.Tensor:
    cameras = cameras.clone()
    cameras[..., 5, :3, :3] *= 1.2
    return cameras


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
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_error(name: str) -> None:
    call, kind, message = CASES[name]
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert message in str(error) and isinstance(error, LightintError)
    assert error.where and (error.fix or error.why)
