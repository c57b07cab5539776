"""A training on a CPU, small enough to test: it learns, it goes on where it stopped, and it writes what it made."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightint_compile.errors import CheckpointError, InputError
from lightint_compile.models.maze import MazeWorld, novel
from lightint_compile.models.maze.config import MazeSize
from lightint_compile.models.maze.world import Maze
from lightint_compile.training import Plan, put_over
from lightint_compile.training.clock import Limit, PhaseClock, Session
from lightint_compile.training.logbook import Logbook
from lightint_compile.training.pool import Pool
from lightint_compile.training.ranks import Ranks
from lightint_compile.training.run import Training
from lightint_compile.training.sequences import make_sequences
from lightint_compile.training.state import State
from lightint_compile.training.walks import walks

CPU = torch.device("cpu")
SMALL = dataclasses.replace(
    MazeSize.tiny(),
    pixels=16,
    transformer=dataclasses.replace(
        MazeSize.tiny().transformer,
        latent_height=2,
        latent_width=2,
        hidden_size=32,
        rope_dims=(8, 12, 12),
        fov_points=32,
    ),
)
PLAN = Plan(
    (0.0, 0.0, 0.0), seed=5, steps=(12, 8, 4), frames=24, batch=2, codec_batch=4, codec_mazes=4, codec_frames=4,
    blocks=3, block=2, renewed_every=3, own_every=3, own_from=0.4, warmup=2, judged_mazes=1, codec_rate=3e-3,
    flow_rate=3e-3,
)  # fmt: skip


class _Ends:
    """A session that is over at a look at the clock of number `after`."""

    def __init__(self, after: int) -> None:
        self.left = after

    @property
    def is_over(self) -> bool:
        self.left -= 1
        return self.left < 0


def _train(out: Path, after: int = 10**6, resume: bool = False, judged: bool = False) -> State:
    state, ranks = State(SMALL, PLAN, CPU), Ranks(0, 1, CPU)
    if resume:
        state.load(out)
    book = Logbook(out, Console(quiet=True))
    training = Training(state, ranks, book, _Ends(after), out, False)  # type: ignore[arg-type]
    if training.phases() and judged:
        training.run()
    return state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Path]:
    out = tmp_path_factory.mktemp("whole")
    return _train(out, judged=True), out


def _losses(out: Path, phase: str) -> list[float]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row.get("phase") == phase]


def test_a_training_writes_what_it_made(whole: tuple[State, Path]) -> None:
    state, out = whole
    assert state.progress.done == ["codec", "flow", "distil"]
    assert state.progress.steps == {"codec": 12, "flow": 8, "distil": 4}
    for name in ("strip.png", "loss.png", "checkpoint.pt", "weights/transformer/model.safetensors"):
        assert (out / name).stat().st_size > 0
    card = json.loads((out / "weights/card.json").read_text())
    assert card["shipped"] in ("flow", "distil") and card["steps"]["flow"] == 8
    assert {"turn", "walk", "novel"} == set(card["scores"]["flow"])
    assert {"model psnr", "forgetful psnr_again", "codec psnr"} <= set(card["scores"]["distil"]["novel"])
    with safe_open(out / "weights/codec/model.safetensors", framework="pt") as file:
        assert "normal.running_var" in file.keys()  # noqa: SIM118


def test_what_is_written_is_rolled_out(whole: tuple[State, Path]) -> None:
    state, out = whole
    world = MazeWorld.of(SMALL, out / "weights")
    assert world.is_trained and "trained" in str(world)
    maze = Maze.from_seed(1)
    path = novel(maze, 8, 1)
    results = list(world.rollout(world.module(), world.scene_at(maze, path), path))
    frames = world.codec().decode_video(results[-1].history)
    assert tuple(frames.shape) == (1, 8, 3, 16, 16)
    trained = dict(state.average.named_parameters()), dict(state.student_average.named_parameters())
    shipped = dict(world.module().transformer.named_parameters())  # type: ignore[union-attr]
    name = "double_blocks.1.img_attn_prope_proj.weight"
    assert any(torch.equal(shipped[name], each[name].half().float()) for each in trained)


@pytest.mark.parametrize("after", [pytest.param(14, marks=pytest.mark.slow), 23])
def test_a_training_that_was_broken_off_ends_the_same(whole: tuple[State, Path], tmp_path: Path, after: int) -> None:
    broken = _train(tmp_path, after)
    assert broken.progress.done == (["codec"] if after == 14 else ["codec", "flow"])
    resumed = _train(tmp_path, resume=True)
    assert resumed.progress.steps == whole[0].progress.steps
    for name, module in resumed.modules().items():
        theirs = whole[0].modules()[name].state_dict()
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-6, msg=f"{name} {key}")


def test_every_trained_part_moves(whole: tuple[State, Path]) -> None:
    state, fresh = whole[0], State(SMALL, PLAN, CPU)
    for part in ("codec", "transformer", "student"):
        mine, theirs = (dict(getattr(each, part).named_parameters()) for each in (state, fresh))
        still = [name for name in mine if torch.equal(mine[name], theirs[name])]
        prompt = ("txt", "byt5_in", "vision_in", "cond_type")
        assert all(any(word in name for word in prompt) for name in still), still


def test_a_training_begins_with_the_weights_of_another(whole: tuple[State, Path], tmp_path: Path) -> None:
    weights = whole[1] / "weights"
    transformer = dataclasses.replace(SMALL.transformer, latent_height=4, latent_width=4)
    larger = dataclasses.replace(SMALL, name="larger", pixels=32, transformer=transformer)
    plan = dataclasses.replace(PLAN, steps=(0, 2, 1))
    state = State(larger, plan, CPU)
    state.begin_with(weights)
    written = load_file(weights / "transformer/model.safetensors")
    for name in ("transformer", "average", "student", "student_average"):
        mine = state.modules()[name].state_dict()
        assert all(torch.equal(mine[key], value.float()) for key, value in written.items()), name
    codec = {key: value.clone() for key, value in state.codec.state_dict().items()}
    assert state.progress.start == f"maze:{SMALL.name}, 12 steps of codec, 8 steps of flow, 4 steps of distil"

    Training(state, Ranks(0, 1, CPU), Logbook(tmp_path, Console(quiet=True)), _Ends(10**6), tmp_path, False).run()  # type: ignore[arg-type]
    assert state.progress.done == ["codec", "flow", "distil"] and "codec" not in state.progress.steps
    assert all(torch.equal(value, codec[key]) for key, value in state.codec.state_dict().items())
    card = json.loads((tmp_path / "weights/card.json").read_text())
    assert card["model"] == "maze:larger" and card["start"] == state.progress.start
    again = State(larger, plan, CPU)
    again.load(tmp_path)
    assert again.progress.start == state.progress.start


def test_a_resumed_training_that_began_with_weights_has_no_share_for_the_codec(
    whole: tuple[State, Path], tmp_path: Path
) -> None:
    begun = State(SMALL, dataclasses.replace(PLAN, minutes=(0.0, 6.0, 2.0), steps=None), CPU)
    begun.begin_with(whole[1] / "weights")
    begun.save(tmp_path)
    again = State(SMALL, dataclasses.replace(PLAN, minutes=(2.0, 4.5, 1.5), steps=None), CPU)
    again.load(tmp_path)
    assert again.plan.minutes == pytest.approx((0.0, 6.0, 2.0))
    drawn = State(SMALL, PLAN, CPU)
    drawn.load(whole[1])
    assert drawn.plan == PLAN


def test_weights_are_put_over_others_that_have_the_rest_of_them(whole: tuple[State, Path], tmp_path: Path) -> None:
    rest, weights, key = tmp_path / "rest", tmp_path / "elsewhere/weights", "final_layer.linear.bias"
    for each in (rest, weights):
        shutil.copytree(whole[1] / "weights", each)
    mine = load_file(weights / "transformer/model.safetensors")
    save_file({**mine, key: mine[key] + 1.0}, weights / "transformer/model.safetensors")
    made = put_over(weights, rest, tmp_path / "over")
    assert set(load_file(made / "transformer/model.safetensors")) == {key} and not (made / "codec").exists()
    states = [State(SMALL, PLAN, CPU) for _ in range(2)]
    for state, folder in zip(states, (made, weights), strict=True):
        state.begin_with(folder)
    for name, part in states[0].modules().items():
        theirs = states[1].modules()[name].state_dict()
        assert all(torch.equal(value, theirs[entry]) for entry, value in part.state_dict().items())
    for given, said in (((made, rest, tmp_path / "x"), "no whole folder"), ((weights, rest, weights), "cannot be put")):
        with pytest.raises(InputError, match=said):
            put_over(*given)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "maze:tiny"}', '{"model": "maze:tiny", "steps": 3}'])
def test_a_card_of_something_else_is_an_error(whole: tuple[State, Path], tmp_path: Path, text: str) -> None:
    shutil.copytree(whole[1] / "weights", tmp_path / "weights")
    (tmp_path / "weights/card.json").write_text(text)
    with pytest.raises(CheckpointError, match="card cannot be read"):
        State(SMALL, PLAN, CPU).begin_with(tmp_path / "weights")


def test_weights_of_other_widths_begin_nothing(whole: tuple[State, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has a wrong shape"):
        State(MazeSize.tiny(), PLAN, CPU).begin_with(whole[1] / "weights")
    with pytest.raises(CheckpointError, match="not there"):
        State(SMALL, PLAN, CPU).begin_with(tmp_path)


def test_another_training_is_not_taken_up(whole: tuple[State, Path], tmp_path: Path) -> None:
    other = State(SMALL, dataclasses.replace(PLAN, seed=6), CPU)
    with pytest.raises(CheckpointError, match="of another training"):
        other.load(whole[1])
    with pytest.raises(CheckpointError, match="nothing to resume"):
        other.load(tmp_path)


@pytest.mark.parametrize("content", [[], 3, {"size": SMALL.name}, {"size": SMALL.name, "seed": PLAN.seed}])
def test_a_checkpoint_of_another_form_is_an_error(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        State(SMALL, PLAN, CPU).load(tmp_path)


def test_a_renewed_pool_can_be_made_again() -> None:
    from lightint_compile.models.maze import MazeCodec
    from lightint_compile.models.worldplay.context import ContextSelector

    codec, selector = MazeCodec(SMALL.codec).eval(), ContextSelector(SMALL.transformer)

    def make(seeds: torch.Tensor) -> object:
        return make_sequences(SMALL, codec, selector, seeds, 8)

    pool = Pool(make, 1, 0, 3, 2)  # type: ignore[arg-type]
    first = pool.walks.latents.clone()
    for renewed in range(1, 6):
        pool.renew()
        again = Pool(make, 1, 0, 3, 2, renewed)  # type: ignore[arg-type]
        assert torch.equal(pool.walks.latents, again.walks.latents)
        assert torch.equal(pool.walks.context, again.walks.context)
    assert torch.equal(pool.walks.latents[:2], first[:2]) and not torch.equal(pool.walks.latents[2:], first[2:])
    assert not torch.equal(Pool(make, 1, 1, 3, 2).walks.latents, first)  # type: ignore[arg-type]


def test_walks_to_train_on_meet_no_wall_and_half_come_back() -> None:
    seeds = 2_000_000 + torch.arange(24)
    maze = Maze.from_seeds(seeds)
    poses = walks(maze, 64)
    assert bool(maze.is_clear(poses[..., [0, 2], 3], 0.2).all())
    assert float(poses[..., 1, 3].abs().max()) < 0.1
    gap = (poses[:, :, None] - poses[:, None]).abs().amax(dim=(-2, -1))
    apart = (torch.arange(64)[:, None] - torch.arange(64)).abs() > 4
    assert 0.3 < float(((gap < 1e-9) & apart).any(1).float().mean(1).gt(0.2).float().mean()) < 0.9
    rotation = poses[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand_as(rotation), atol=1e-9, rtol=0)


def test_a_phase_ends_by_its_minutes_or_its_steps() -> None:
    alone = Ranks(0, 1, CPU)
    clock = PhaseClock(Limit(100.0), Session(None), alone, steps=4, seconds=25.0)
    assert clock.goes_on() and 0.25 <= clock.fraction < 0.3
    late = PhaseClock(Limit(100.0), Session(None), alone, seconds=100.0)
    assert not late.goes_on() and late.is_done
    counted = PhaseClock(Limit(0.0, steps=2), Session(None), alone)
    for _ in range(2):
        assert counted.goes_on()
        counted.count()
    assert not counted.goes_on() and counted.is_done
    ended = PhaseClock(Limit(100.0), Session(0.0), alone)
    assert not ended.goes_on() and not ended.is_done


@pytest.mark.slow
def test_losses_fall(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, steps=(200, 120, 20), batch=4)
    Training(
        State(SMALL, plan, CPU),
        Ranks(0, 1, CPU),
        Logbook(tmp_path, Console(quiet=True)),
        Session(None),
        tmp_path,
        False,
    ).run()
    codec, flow = (_losses(tmp_path, phase) for phase in ("codec", "flow"))
    assert codec[-1] < 0.6 * codec[0]
    assert flow[-1] < 0.8 * flow[0]
