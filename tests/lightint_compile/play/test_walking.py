"""Steered walks: keys, walls, chunks that go on from what is known, and models without a place of their own."""

from __future__ import annotations

import pytest
import torch

from lightint_compile.errors import DeviceError, OptionError, StateError
from lightint_compile.models.registry import TINY, TRUE, model_names, world_model
from lightint_compile.models.world_model import Visitable
from lightint_compile.play.open_place import OpenPlace
from lightint_compile.play.opening import Played
from lightint_compile.play.walking import Walking, place_of, pressed

pytestmark = pytest.mark.filterwarnings("ignore:.*no trained weights")
SMALL = TRUE.replace("base", "tiny")
CPU = torch.device("cpu")
FAMILIES = [SMALL, TINY, "matrix-game:tiny"]


def walking(name: str, seed: int = 0) -> Walking:
    model = world_model(name)
    module = model.module(seed=seed)
    return Walking(model, module, module, seed, place_of(model, seed, CPU, torch.float32))


def test_opposite_keys_cancel_and_others_are_left_out() -> None:
    assert pressed(["w", "s", "left", "x"]) == {"left"}
    assert pressed(["a", "d"]) == pressed([]) == frozenset()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_steered_chunk_by_chunk_as_its_rollout_would_go(name: str) -> None:
    walk = walking(name)
    first, spec = walk.begin(), walk.model.spec
    made = [first] if first is not None else []
    for keys in (["w"], ["w", "left"]):
        made.append(walk.go(keys, accelerated=False))
    assert [each.index for each in made] == list(range(len(made)))
    assert len(walk.path) == spec.frames(len(made))
    known, path, calls = walk._chunks, walk.path, 0

    def module(*args: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return known[calls - 1] if calls < len(made) else walk._plain(*args)

    *_, last = walk.model.rollout(module, walk.place.scene(), path, seed=0)
    torch.testing.assert_close(last.latents, known[-1])
    for each in made:
        assert each.frames.shape[:2] == (len(each.frames), 3) and 0 <= each.frames.min() <= each.frames.max() <= 1
        assert len(each.frames) == spec.frames(each.index + 1) - spec.frames(each.index)
    assert made[-1].decided is False and made[-1].milliseconds is not None
    assert set(made[-1].decision.context_frames) <= set(range(spec.frames(made[-1].index)))


def test_all_small_models_have_a_place() -> None:
    for name in model_names():
        model = world_model(name)
        if not model.needs_gpu and name not in (SMALL.replace("tiny", "base"), SMALL.replace("tiny", "large")):
            assert place_of(model, 0, CPU, torch.float32).scene() is not None
    assert isinstance(world_model(TRUE), Visitable) and not isinstance(world_model(TINY), Visitable)
    assert isinstance(place_of(world_model(TINY), 0, CPU, torch.float32), OpenPlace)


def test_keys_move_the_camera_and_walls_stop_it() -> None:
    place = place_of(world_model(SMALL), 3, CPU, torch.float32)

    def camera(held: list[list[str]]) -> torch.Tensor:
        return torch.linalg.inv(place.cameras(place.path(held))[-1])

    start = camera([])
    torch.testing.assert_close(camera([["left"], ["right"]]), start)
    ahead = camera([["w"]])
    torch.testing.assert_close((ahead[:3, 3] - start[:3, 3]).norm().item(), 0.08)
    far = camera([["w"]] * 400)
    assert (camera([["w"]] * 401) - far).abs().max() == 0, "a wall"
    x, z = far[[0, 2], 3].tolist()
    assert place.walls is not None and not place.walls[int(z), int(x)]
    assert (far[:3, 3] - start[:3, 3]).norm() < 16


def test_a_walk_begins_with_the_view_that_is_rendered() -> None:
    walk = walking(SMALL)
    first = walk.begin()
    assert first is not None and first.milliseconds is None and len(first.frames) == 4
    assert (first.frames - first.frames[:1]).abs().max() < 1e-6, "the camera stands still"
    assert walking(TINY).begin() is None


def test_going_nowhere_and_too_far_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = walking(SMALL)
    walk.begin()
    with pytest.raises(StateError, match="hold a key"):
        walk.go(["w", "s"], accelerated=False)
    before = walk.path.extrinsics[-1]
    stood = walk.stay(accelerated=False)
    assert stood.index == 1 and torch.equal(walk.path.extrinsics[-1], before)
    monkeypatch.setattr("lightint_compile.play.walking.LONGEST", 4)
    assert walk.is_over
    with pytest.raises(StateError, match="at most 4 latent frames"):
        walk.go(["w"], accelerated=False)


def test_what_cannot_be_opened_says_so() -> None:
    with pytest.raises(OptionError, match="did you mean 'sparse'"):
        Played.open(SMALL, preset="sprase")
    with pytest.raises(DeviceError, match="too large for a CPU"):
        Played.open("worldplay:8b-480p", preset="exact", device="cpu")
