"""A memory of single frames: the gates of the release along camera paths, and where ours decide otherwise."""

from __future__ import annotations

import dataclasses

import pytest

from lightint_compile.errors import InputError, OptionError
from lightint_compile.models.matrix_game.memory import camera_poses, remembered
from lightint_compile.models.registry import world_model
from lightint_compile.path_decisions import decide
from lightint_compile.runtime.frame_memory import PublishedFrameRules
from lightint_compile.runtime.planner import plan

MODEL = world_model("matrix-game:tiny")


def gates(path: str, preset: str) -> tuple[list[int], list[bool]]:
    """Frames of memory beside the overlap, and whether steps may be reused, of each clip but the first."""
    made = decide(path, None, preset, model=MODEL)[1:]
    return [len(each.context_frames) - 4 for each in made], [bool(each.reused_steps) for each in made]


def test_turning_away_and_back() -> None:
    frames, reuses = gates("left-44,right-40", "published")
    assert frames == [1, 1, 1, 5, 5, 5, 5]
    assert reuses == [False] * 3 + [True] * 4


def test_turning_on_remembers_nothing_until_all_is_seen_again() -> None:
    frames, reuses = gates("left-84", "published")
    assert frames[:3] == [1, 1, 1] and reuses[:4] == [False] * 4 and reuses[4:] == [True] * 3


@pytest.mark.parametrize("path", ["w-84", "w-44,s-40"])
def test_walking_forward_drops_nothing_and_reuses_always(path: str) -> None:
    frames, reuses = gates(path, "published")
    # Walking back to the start, two ask for the frame that is remembered anyway.
    assert frames == [5] * 6 + [5 if path == "w-84" else 3] and reuses == [True] * 7


def test_ours_take_walking_forward_for_no_revisit() -> None:
    assert gates("w-84", "all")[1] == [False] * 7
    assert gates("left-44,right-40", "all")[1] == [False] * 3 + [True] * 4


def test_without_decisions_it_is_what_the_model_gathers() -> None:
    path = "left-44,right-40"
    made, walk = decide(path, None, "exact", model=MODEL), MODEL.camera_path(path)
    assert made[0].context_frames == () and not any(each.reused_steps for each in made)
    for number, decision in enumerate(made[4:], start=4):
        # Cameras are looked at once a latent frame, four times as often by the model; both meet on the way back.
        chosen = remembered(MODEL.config, camera_poses(walk.video_extrinsics[None, : 57 + 40 * number]))
        newest = range(10 * number + 1, 10 * number + 5)
        assert decision.context_frames == tuple(sorted({*chosen.tolist(), *newest}))


@pytest.mark.parametrize(("path", "said"), [("w-31", "take 25 or 35"), ("w-3", "take 15;")])
def test_a_path_of_half_a_chunk_is_told_the_lengths_beside_it(path: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        decide(path, None, "all", model=MODEL)


def test_the_view_and_the_frame_that_is_always_remembered_are_the_worlds() -> None:
    """A camera that turns on sees less of what it saw in a narrow view."""
    extrinsics = MODEL.camera_path("left-84").extrinsics
    world = dataclasses.replace(MODEL.spec, pinned=2)
    wide, narrow = (plan(extrinsics, PublishedFrameRules.of(world, fov=(fov, 90.0)))[1:] for fov in (90.0, 10.0))
    assert all(2 in each.context_frames for each in (*wide, *narrow))
    assert sum(each.overlap for each in narrow) < sum(each.overlap for each in wide)


def test_a_gate_that_cannot_be_is_refused() -> None:
    with pytest.raises(OptionError, match="thresholds"):
        PublishedFrameRules(gate=1.5)
