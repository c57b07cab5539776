"""What changes between the calls of a world model, by whatever way it is written to, is seen by the next call.

The same of every family: exact presets give what the module itself gives, the others what a module gives that has
forgotten everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from world_sessions import WORLDS, Session

import lightint_compile

EXACT = [
    pytest.param((world, "exact"), id=world, marks=() if world == WORLDS[0] else pytest.mark.slow) for world in WORLDS
]
OTHERS = [
    pytest.param((world, preset), id=f"{world}-{preset}", marks=pytest.mark.slow)
    for world in WORLDS
    for preset in ("sparse", "context", "cache", "all", "published")
]


@pytest.fixture(scope="module", params=[*EXACT, *OTHERS])
def session(request: pytest.FixtureRequest) -> Session:
    world, preset = request.param
    made = Session(world, depth=1, preset=preset)
    made.preset = preset
    return made


def test_a_rollout_is_two_graphs_and_compiles_nothing_after_its_first_chunks(session: Session) -> None:
    assert session.captured == 2 and not session.breaks, "one graph without history, one with"
    counters.clear()
    compiled = session.compilations
    got = session.latents()
    assert counters["stats"]["unique_graphs"] == 0 and session.compilations == compiled
    eager = [result.latents for result in session.rollout(session.module)]
    assert [each.shape for each in got] == [each.shape for each in eager]
    if session.preset == "exact":
        close(got, eager)
    else:
        assert all(bool(each.isfinite().all()) for each in got)


@pytest.fixture
def call(session: Session) -> Iterator[Callable[..., Tensor]]:
    """A call of the compiled module; weights are as before behind the test."""
    before = {name: value.clone() for name, value in session.module.state_dict().items()}
    lightint_compile.reset(session.compiled)

    def called(inputs: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return session.compiled(*inputs.values()).clone()

    yield called
    session.module.load_state_dict(before)


def expected(session: Session, inputs: dict[str, Any]) -> Tensor:
    """What the module itself gives, or where that is approximated, the compiled module once it has forgotten all."""
    if session.preset != "exact":
        lightint_compile.reset(session.compiled)
    with torch.no_grad():
        return (session.module if session.preset == "exact" else session.compiled)(*inputs.values())


def close(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def in_place(value: Tensor) -> None:
    value.mul_(-0.5)


def through_data(value: Tensor) -> None:
    value.data = value.data * -0.5


def through_numpy(value: Tensor) -> None:
    value.numpy()[...] *= -0.5


WRITES = [
    ("text", in_place),
    ("text", through_data),
    ("text", through_numpy),
    ("context", in_place),
    ("latent", in_place),
]


def test_an_input_that_was_written_to_is_read_again(session: Session, call) -> None:
    inputs = session.inputs()
    before = call(inputs)
    for role, way in WRITES:
        for name in session.role(role):
            way(inputs[name])
        now = call(inputs)
        close(now, expected(session, inputs))
        assert not torch.allclose(now, before), f"{role} {way.__name__}"
        before = now


def test_the_view_may_be_switched_on_the_same_history(session: Session, call) -> None:
    inputs = session.inputs()
    before = call(inputs)
    (cameras,) = session.role("camera")
    half = inputs[cameras].shape[1] // 2
    turned = torch.cat(
        [inputs[cameras][:, :half], inputs[cameras][:, :half].flip(1), inputs[cameras][:, 2 * half :]], 1
    )
    now = call({**inputs, cameras: turned})
    close(now, expected(session, {**inputs, cameras: turned}))
    assert not torch.allclose(now, before)


def test_prompts_may_take_turns_and_compile_nothing(session: Session, call) -> None:
    counters.clear()
    one, two = session.inputs(), session.inputs()
    for name in session.role("text"):
        flipped = two[name].flip(-1).contiguous()
        two[name] = torch.randn_like(flipped) if flipped.is_floating_point() else flipped
    first, second = call(one), call(two)
    assert not torch.equal(first, second)  # a stale result is equal to the last bit
    close(call(one), first)
    close(second, expected(session, two))
    assert counters["stats"]["unique_graphs"] == 0


def test_weights_that_were_written_to_are_read_again(session: Session, call) -> None:
    inputs = session.inputs()
    before = call(inputs)
    for way in (in_place, through_data):
        for name, parameter in session.module.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                way(parameter)
        now = call(inputs)
        close(now, expected(session, inputs))
        assert not torch.allclose(now, before), way.__name__
        before = now
