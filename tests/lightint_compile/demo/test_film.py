"""The demo beside the truth: its film, map, table and files. `make demo` runs it with trained weights."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lightint_compile.demo.canvas import BACKGROUND, DIM, INK, ORIGINAL, OURS, Canvas
from lightint_compile.demo.film import HEIGHT, PANEL, WIDTH, Film
from lightint_compile.demo.film_job import GIVEN, _every, film_truth
from lightint_compile.demo.ground import Ground
from lightint_compile.demo.quality import row_of, table
from lightint_compile.demo.side import Side
from lightint_compile.evaluating.asked import truth_of
from lightint_compile.evaluating.revisits import revisited
from lightint_compile.evaluating.true_world import FromAbove, TrueWorld
from lightint_compile.models.registry import TRUE, world_model
from lightint_compile.runtime.decision import Decision

av = pytest.importorskip("av", reason="the extra `demo` is not installed")
pytest.importorskip("torchmetrics")
pytestmark = pytest.mark.filterwarnings("ignore:.*no trained weights")
SMALL = TRUE.replace("base", "tiny")


@pytest.fixture(scope="module")
def world() -> TrueWorld:
    found = truth_of(world_model(SMALL), torch.device("cpu"), 1)
    assert found is not None
    return found


def test_a_model_without_truth_has_no_film() -> None:
    assert truth_of(world_model("worldplay:tiny"), torch.device("cpu"), 0) is None


def test_a_tour_comes_back_the_same_way_and_sees_again_what_it_saw(world: TrueWorld) -> None:
    walk = world.tour(48)
    cameras = world.from_above(walk).cameras
    assert len(walk.path) == 48
    torch.testing.assert_close(cameras[25:], cameras[1:24].flip(0))
    seen = revisited(walk.path, world.model.spec)
    assert not bool(seen[:24].any()) and int(seen[24:].sum()) >= 8


def test_the_map_shows_free_cells_the_way_and_the_camera() -> None:
    walls = torch.ones(8, 8, dtype=torch.bool)
    walls[2:6, 3] = False
    cameras = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    cameras[:, 0, 3], cameras[:, 2, 3] = -3.5, -torch.tensor([2.5, 3.5, 4.5])
    ground = Ground.of(FromAbove(walls, cameras), torch.eye(3).expand(3, 3, 3))
    assert (ground.left, ground.bottom, ground.width) == (0.5, 0.5, 6.0)
    canvas = Canvas(300, 300)
    ground.draw(canvas, 0, 0, 300, 2)
    at = canvas.image.getpixel
    assert at((150, 100)) == INK, "the camera, north of where it began"
    assert at((150, 160)) == OURS and at((150, 210)) == DIM, "the way so far; a free cell"
    assert at((40, 150)) == BACKGROUND, "a wall"
    assert at((150, 75)) not in (DIM, OURS, INK), "what the camera sees, north of it"


def sides(frames: int) -> tuple[Side, Side]:
    pictures = torch.rand(frames, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    chunks = frames // 4
    decisions = [Decision(chunk=k, context_frames=tuple(range(4 * k))) for k in range(chunks)]
    ours = [Decision(chunk=k, context_frames=(0,), reused_steps=(1, 2), refused_steps=(2,)) for k in range(chunks)]
    times = [100.0] * (chunks - GIVEN)
    return (
        Side("eager", ORIGINAL, pictures, times, 1.0, decisions),
        Side("ours", OURS, pictures, [each / 2 for each in times], 2.0, ours),
    )


def test_a_film_has_a_picture_a_frame_with_the_three_beside_each_other(world: TrueWorld) -> None:
    walk = world.tour(8)
    ground = Ground.of(world.from_above(walk), walk.path.intrinsics)
    truth, both = torch.zeros(8, 3, 32, 32), sides(8)
    film = Film("title", truth, both, ground, world.model.spec, GIVEN, [torch.zeros(8)] * 2)
    pictures = list(film.pictures())
    assert len(pictures) == 8 and {each.size for each in pictures} == {(WIDTH, HEIGHT)}
    assert pictures[0].getpixel((16 + PANEL // 2, 200)) == (0, 0, 0), "the truth"
    assert pictures[7].getpixel((400, 431)) == ORIGINAL and pictures[7].getpixel((730, 431)) == OURS, "time so far"
    assert pictures[7].getpixel((1000, 431)) == DIM, "half of the original's time"
    boxes = [pictures[7].getpixel((698 + 26 * step, 526)) for step in range(4)]
    assert boxes == [OURS, BACKGROUND, OURS, OURS], "step 1 was reused, step 2 refused"


def test_the_table_tells_time_and_quality() -> None:
    quality, again = torch.tensor([10.0, 20.0]), torch.tensor([False, True])
    rows = [row_of(side, quality, again, quality) for side in sides(8)]
    assert [row["psnr truth revisits"] for row in rows] == [20.0, 20.0]
    assert rows[0]["psnr truth"] == rows[0]["psnr to each other"] == 15.0
    console = Console(file=io.StringIO(), width=80)
    console.print(table(rows))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2.00x" in said and "100 ms" in said and "15.00 dB" in said and "each other" in said


def test_every_chunk_has_a_decision_of_the_models_own_where_none_was_made(world: TrueWorld) -> None:
    walk, made = world.tour(12), Decision(chunk=2, context_frames=(0,))
    found = _every(world.model, walk.path, [made])
    assert [len(each.context_frames) for each in found] == [0, 4, 1] and found[2] is made


def run(world: TrueWorld, out: Path, preset: str, chunks: int) -> tuple[list[dict], str]:
    console = Console(file=io.StringIO(), width=200)
    rows = film_truth(out, SMALL, world, chunks=chunks, preset=preset, delegate="eager", console=console)
    return rows, console.file.getvalue()  # type: ignore[attr-defined]


def test_the_whole_demo_writes_its_film_and_ends_with_table_and_paths(world: TrueWorld, tmp_path: Path) -> None:
    short = dataclasses.replace(world, model=world.with_steps(1).at_depth(1))  # type: ignore[type-var]
    rows, said = run(short, tmp_path, "off", 3)
    assert [row["variant"] for row in rows] == ["PyTorch, eager", "lightint, off"]
    assert rows == json.loads((tmp_path / "measurements.json").read_text())
    assert all(len(row["chunk milliseconds"]) == 3 - GIVEN for row in rows)
    assert rows[0]["psnr to each other"] > 80.0, "the same program"
    with av.open(str(tmp_path / "demo.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 12

    assert (tmp_path / "demo.gif").read_bytes().startswith(b"GIF89a")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "no trained weights" in said and str(tmp_path / "demo.mp4") in said
    assert said.rstrip().endswith(str(tmp_path / "report.html"))


@pytest.mark.slow
def test_the_film_shows_what_was_decided(world: TrueWorld, tmp_path: Path) -> None:
    rows, _ = run(world, tmp_path, "all", 12)
    assert rows[1]["psnr truth revisits"] is not None
