"""The mazes in LiveFrame's own harness: its protocol, its accounting of frames, what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightint_compile.errors import InputError, StateError
from lightint_compile.models.registry import world_model
from lightint_compile.play import opening
from lightint_compile.play.liveframe_world import KEYS, Accelerated, Eager

pytest.importorskip("cv2")
backend = pytest.importorskip("liveframe.world.backend")
loader = pytest.importorskip("liveframe.world.loader")
session = pytest.importorskip("liveframe.world.session")
actions = pytest.importorskip("liveframe.world.actions")
suites = pytest.importorskip("liveframe.world.suites")

pytestmark = pytest.mark.filterwarnings("ignore:.*no trained weights")
MODULE = "lightint_compile.play.liveframe_world"


class Tiny(Eager):
    model, device = "maze:tiny", "cpu"


class TinyByUs(Tiny):
    preset, options = "exact", {"delegate": "eager"}


def case(*rows: tuple[int, str, int], seed: int = 0) -> Any:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    return session.WorldCase("case", image, actions.ActionScript.from_segments(rows), seed=seed)


def test_both_classes_are_found_by_the_harness() -> None:
    for name, preset in {"Eager": "eager", "Accelerated": "all"}.items():
        made = loader.load_backend(f"{MODULE}:{name}")
        assert isinstance(made, backend.WorldBackend)
        told = made.capabilities
        assert preset in told.name and "not in the suite's scene" in told.name
        assert told.resolution == (128, 128) and told.chunk_frames == 4


@pytest.mark.parametrize("name", ["smoke", "quick", "standard", "memory"])
def test_every_action_of_the_suites_is_known(name: str) -> None:
    told = Accelerated().capabilities
    for each in suites.materialize_suite(name, told):
        used = {token for segment in each.script.segments for token in segment.action.split("+")}
        assert used <= told.actions
        assert each.script.total_frames <= 1000, "a walk has at most 1,024 latent frames"


def test_a_case_counts_every_frame_and_moves() -> None:
    world = Tiny()
    world.load()
    captured: list[np.ndarray] = []

    class Capture:
        def add(self, payload: np.ndarray) -> None:
            captured.append(payload)

        def finalize(self) -> list[Path]:
            return []

    found = session.run_case(world, case((0, "W+L", 4), (4, "0", 4), (8, "R", 3)), capture=Capture())
    assert found.status == "invalid" and "expected 3" in found.error, "a chunk cannot be cut"
    captured.clear()
    found = session.run_case(world, case((0, "W+L", 4), (4, "0", 4), (8, "R", 4)), capture=Capture())
    assert found.status == "ok" and found.metrics["native_frames"] == 12
    assert [each.shape for each in captured] == [(4, 32, 32, 3)] * 3
    assert len(world._walk.path) == 16, "the given chunk in front"  # type: ignore[union-attr]
    cameras = world._walk.path.extrinsics  # type: ignore[union-attr]
    assert np.allclose(cameras[7], cameras[11]) and not np.allclose(cameras[3], cameras[7])
    world.close()
    with pytest.raises(StateError, match="no model yet"):
        world.reset(None, None, 0)


def test_what_we_compile_shows_what_eager_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str) -> Any:
        model: Any = world_model(name).at_depth(1)
        return dataclasses.replace(model, config=dataclasses.replace(model.config, refiner_depth=1, steps=2))

    monkeypatch.setattr(opening, "world_model", small)
    shown = []
    for kind in (Tiny, TinyByUs):
        world = kind()
        world.load()
        world.reset(None, None, 5)
        shown.append(np.concatenate([next(iter(world.step(each))).payload for each in (["L"], ["0"], ["R"])]))
    assert np.abs(shown[0].astype(int) - shown[1].astype(int)).max() <= 1


def test_another_family_is_refused() -> None:
    class Other(Eager):
        model = "worldplay:tiny"

    with pytest.raises(InputError, match="decoded by no codec"):
        _ = Other().capabilities
    with pytest.raises(StateError, match="no walk yet"):
        next(Tiny().step(["W"]))
    assert set(KEYS) <= set(actions.ACTION_TOKENS)
