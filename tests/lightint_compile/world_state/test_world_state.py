"""Worlds that are saved, loaded and forked between chunks go on bit for bit; states that do not fit change nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_world import KeptWorld
from safetensors.torch import save_file
from step_world import FRAMES, SEEN, Rollout, StepWorld
from torch import Tensor, nn
from toy_world import CHUNK
from world_sessions import WORLDS, Session

import lightint_compile
from lightint_compile import WorldState
from lightint_compile.errors import InputError, StateError
from lightint_compile.world_state.file import FORMAT, read_state, write_state
from lightint_compile.world_state.model import model_of

WAYS: dict[str, dict[str, Any]] = {
    "off": {"preset": "off"},
    "exact": {"preset": "exact"},
    "all": {"preset": "all", "min_tokens": 0},
    "all, age 4": {"preset": "all", "min_tokens": 0, "age": 4},
}
CHUNKS, AT = {"worldplay:tiny": 8, "matrix-game:tiny": 6}, 4


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world", [name for name in WORLDS if name in CHUNKS])
def test_a_world_goes_on_bit_for_bit_from_a_copy_in_memory_and_from_a_file(
    world: str, way: str, tmp_path: Path
) -> None:
    session = Session(world, chunks=CHUNKS[world], depth=2, **WAYS[way])
    compiled, alone = session.compiled, session.latents()
    made = lightint_compile.decisions(compiled)
    assert way in ("off", "exact") or any(each.reused_steps for each in made)
    lightint_compile.reset(compiled)
    history = [each.history for _, each in zip(range(AT), session.rollout(), strict=False)][-1]
    fork = lightint_compile.fork_state(compiled)
    path = lightint_compile.save_state(compiled, tmp_path / "world.safetensors", {"history": history})
    for state in (fork, path, fork):
        another_world(session)
        given = lightint_compile.load_state(compiled, state)
        assert state is fork or torch.equal(given["history"], history)
        assert all(map(torch.equal, behind(session, alone), alone[AT:]))
        assert lightint_compile.decisions(compiled) == made


def another_world(session: Session) -> None:
    """A rollout in another scene, which leaves a state of its own."""
    scene, session.scene = session.scene, session.model.scene(session.device, seed=7)
    try:
        list(zip(range(AT + 1), session.rollout(seed=1), strict=False))
    finally:
        session.scene = scene


def behind(session: Session, known: list[Tensor]) -> list[Tensor]:
    """The chunks behind the first ones, which are ``known``: for those the module is not called."""
    first = iter(known[:AT])

    def call(*args: Any) -> Tensor:
        made = next(first, None)
        return session.compiled(*args) if made is None else made.clone()

    return [each.latents for each in session.rollout(call)][AT:]


class Kept:
    """Chunks of a made-up video through a world whose context keeps keys and values."""

    def __init__(self, seed: int = 0, height: int = 2, age: int = 3, world: type[nn.Module] = KeptWorld) -> None:
        torch.manual_seed(seed)
        self.module = world().eval().requires_grad_(False)
        passes = f"dead-tail,adaptive-context,context-reuse{{age={age}}},outline-regions"
        options = {"passes": passes, "delegate": "eager", "strict": True}
        self.compiled = torch.compile(self.module, backend="lightint", dynamic=False, options=options)
        self.video = torch.randn(1, 4, 32, height, 6 // height, generator=torch.Generator().manual_seed(1))

    def chunk(self, number: int, turn: float = 0.1) -> Tensor:
        history, angles = self.video[:, :, : 4 * number].clone(), turn * torch.arange(4 * number + 4)
        cameras = torch.eye(4).repeat(1, len(angles), 1, 1)
        cameras[0, :, 0, 0] = cameras[0, :, 2, 2] = angles.cos()
        cameras[0, :, 0, 2], cameras[0, :, 2, 0] = -angles.sin(), angles.sin()
        torch._dynamo.mark_dynamic(history, 2)
        torch._dynamo.mark_dynamic(cameras, 1)
        with torch.no_grad():
            result: Tensor = self.compiled(self.video[:, :, 4 * number : 4 * number + 4], history, cameras)
        return result

    def run(self, first: int, last: int = 7, turn: float = 0.1) -> list[Tensor]:
        return [self.chunk(number, turn) for number in range(first, last)]


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    torch._dynamo.reset()
    made = Kept()
    made.run(1, 3)
    yield made
    torch._dynamo.reset()


def test_kept_keys_and_values_are_part_of_a_world(kept: Kept, tmp_path: Path) -> None:
    lightint_compile.reset(kept.compiled)
    kept.run(1, 4)
    path, fork = lightint_compile.save_state(kept.compiled, tmp_path / "w"), lightint_compile.fork_state(kept.compiled)
    alone, made = kept.run(4), lightint_compile.decisions(kept.compiled)
    assert made[4].kept_frames
    for state in (path, fork, fork):
        kept.run(1, 6, turn=-0.2)
        assert lightint_compile.load_state(kept.compiled, state) == {}
        assert all(map(torch.equal, kept.run(4), alone))
        assert lightint_compile.decisions(kept.compiled) == made
    lightint_compile.reset(kept.compiled)
    assert not torch.equal(kept.chunk(4), alone[0]), "without them the world goes on in another way"


@pytest.mark.slow
def test_two_branches_of_one_world_do_not_meet(kept: Kept) -> None:
    lightint_compile.reset(kept.compiled)
    kept.run(1, 4)
    fork = lightint_compile.fork_state(kept.compiled)
    left, forks = kept.run(4), [fork, fork]
    lightint_compile.load_state(kept.compiled, fork)
    right = kept.run(4, turn=0.11)
    lightint_compile.load_state(kept.compiled, fork)
    steps: list[list[Tensor]] = [[], []]
    for number in range(4, 7):
        for branch, turn in enumerate((0.1, 0.11)):
            lightint_compile.load_state(kept.compiled, forks[branch])
            steps[branch].append(kept.chunk(number, turn))
            forks[branch] = lightint_compile.fork_state(kept.compiled)
    assert all(map(torch.equal, steps[0], left)) and all(map(torch.equal, steps[1], right))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_loop_outside_of_the_module_goes_on(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"preset": "cache", "delegate": "eager", "strict": True}
    compiled = torch.compile(StepWorld().eval(), backend="lightint", options=options)

    def walk(rollout: Rollout, first: int, last: int) -> list[Tensor]:
        rollout.exact = None
        results = []
        for number in range(first, last):
            rollout.chunk(number)
            results += rollout.results
        return results

    chunks, at = FRAMES // CHUNK - 2, SEEN - 1
    walk(Rollout(compiled, None), 0, 2)
    lightint_compile.reset(compiled)
    rollout = Rollout(compiled, None)
    walk(rollout, 0, at)
    noise = {"noise": rollout.draw.get_state()}
    state: Any = lightint_compile.fork_state(compiled, noise)
    state = state if scheme == "memory" else state.save(tmp_path / "w")
    alone, made = walk(rollout, at, chunks), lightint_compile.decisions(compiled)
    assert any(each.reused_steps for each in made)
    walk(Rollout(compiled, None), 0, 2)
    rollout.draw.set_state(lightint_compile.load_state(compiled, state)["noise"])
    assert all(map(torch.equal, walk(rollout, at, chunks), alone))
    assert lightint_compile.decisions(compiled) == made


class Wider(KeptWorld):
    """Another model: one weight more."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Parameter(torch.zeros(3))

    def tokens(self, latents: Tensor) -> Tensor:
        return super().tokens(latents) + self.more.sum()


OTHERS: dict[str, tuple[Callable[[], Kept], str]] = {
    "another model": (lambda: Kept(world=Wider), "of another model"),
    "other weights": (lambda: Kept(seed=1), "values of weights differ"),
    "other options": (lambda: Kept(age=2), "passes is .*age=2.* here and .*age=3"),
    "other sizes": (
        lambda: Kept(height=3),
        r"history_ is float32\[1, 4, any, 3, 2\] here and float32\[1, 4, any, 2, 3\]",
    ),
}


@pytest.mark.parametrize(
    "name",
    ["other weights", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS if name != "other weights")],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(name: str, kept: Kept) -> None:
    kept.run(1, 3)
    state, (make, said) = lightint_compile.fork_state(kept.compiled), OTHERS[name]
    other = make()
    other.run(1, 3)
    made = lightint_compile.decisions(other.compiled)
    with pytest.raises(InputError, match=said):
        lightint_compile.load_state(other.compiled, state)
    assert made and lightint_compile.decisions(other.compiled) == made


@pytest.mark.parametrize("place", range(4))
def test_one_weight_that_is_another_makes_another_model(place: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 40), nn.LayerNorm(40))
    before = model_of(module, list(module.parameters()))
    assert model_of(module, list(module.parameters())) == before
    with torch.no_grad():
        list(module.parameters())[place].mul_(3).add_(1)
    assert model_of(module, list(module.parameters())) != before


def test_weights_of_any_dtype_tell_models_apart() -> None:
    kinds = (torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int8, torch.bool)
    weights = [torch.ones(3, dtype=kind) for kind in kinds]
    found = model_of(None, weights)
    for place in range(len(kinds)):
        assert (
            model_of(None, [torch.zeros_like(each) if at == place else each for at, each in enumerate(weights)])
            != found
        )


def test_buffers_tell_models_apart_by_their_sizes_alone() -> None:
    first, second, third = (
        nn.BatchNorm1d(3, affine=False),
        nn.BatchNorm1d(3, affine=False),
        nn.BatchNorm1d(4, affine=False),
    )
    second.running_mean.add_(1)
    assert model_of(first, []) == model_of(second, []) != model_of(third, [])


def test_a_module_that_was_not_called_has_no_state(kept: Kept) -> None:
    fresh = torch.compile(nn.Linear(2, 2), backend="lightint", options={"delegate": "eager"})
    for ask in (lightint_compile.fork_state, lambda it: lightint_compile.load_state(it, "nowhere")):
        with pytest.raises((StateError, InputError), match=r"no compiled graph|cannot be read"):
            ask(fresh)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def _header_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _of_a_model(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def _of_another_format(path: Path) -> None:
    save_file({}, path, metadata={"lightint_state": "0"})


def _with_another_letter(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"records", b"recordz", 1))


def _of_other_content(path: Path) -> None:
    save_file({}, path, metadata={"lightint_state": FORMAT, "lightint_content": "[1]"})


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (_cut, "cannot be read"),
    "cut off in the header": (_header_cut, "cannot be read"),
    "missing": (Path.unlink, "cannot be read"),
    "weights of a model": (_of_a_model, "holds tensors and no state"),
    "another format": (_of_another_format, "its format is 0"),
    "another letter in the header": (_with_another_letter, "its header is not what was written"),
    "other content": (_of_other_content, "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_holds_no_state_is_named(name: str, kept: Kept, tmp_path: Path) -> None:
    damage, said = DAMAGES[name]
    path = lightint_compile.save_state(kept.compiled, tmp_path / "world.safetensors", {"video": kept.video})
    damage(path)
    with pytest.raises(InputError, match=said) as error:
        lightint_compile.load_state(kept.compiled, path)
    assert str(path) in str(error.value) and error.value.fix


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(kept: Kept, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        lightint_compile.save_state(kept.compiled, tmp_path / "missing" / "world")
    with pytest.raises(InputError, match="cannot be written"):
        lightint_compile.save_state(kept.compiled, 5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"cannot be written(.|\n)*another dtype"):
        lightint_compile.save_state(kept.compiled, tmp_path / "world", {"x": torch.ones(2, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []


ODD_WORLDS: dict[str, tuple[Any, str]] = {
    "a number": ({"seed": 3}, "it is a int"),
    "a name": ({1: torch.ones(2)}, "its name is a int"),
    "a list": ([torch.ones(2)], "it is a list"),
    "sparse": ({"x": torch.eye(3).to_sparse()}, "its layout is torch.sparse_coo"),
    "meta": ({"x": torch.ones(2, device="meta")}, "its device is meta"),
    "nested": ({"x": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)}, "nested"),
}


@pytest.mark.parametrize("name", ODD_WORLDS)
def test_a_world_of_something_else_is_named(name: str, kept: Kept, tmp_path: Path) -> None:
    world, said = ODD_WORLDS[name]
    with pytest.raises(InputError, match=f"made of tensors by name(.|\\n)*{said}"):
        lightint_compile.save_state(kept.compiled, tmp_path / "world", world)
    assert list(tmp_path.iterdir()) == []


def test_a_link_leads_to_the_file_and_nothing_but_a_file_is_replaced(kept: Kept, tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    assert lightint_compile.save_state(kept.compiled, link) == link
    assert link.is_symlink() and target.stat().st_mode == _plain_file(tmp_path / "plain").stat().st_mode
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            lightint_compile.save_state(kept.compiled, place)
    assert pipe.is_fifo()


def _plain_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_what_is_written_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"a": (1, 2.5, None, True, "text"), 3: [torch.float16, torch.device("cpu"), {"nested": torch.arange(3)}]}
    found = read_state(write_state(tmp_path / "state", state))
    assert found["a"] == state["a"] and found[3][:2] == state[3][:2]
    assert torch.equal(found[3][2]["nested"], torch.arange(3))
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_a_copy_does_not_follow_what_it_was_made_of(kept: Kept) -> None:
    video = torch.zeros(3)
    state = lightint_compile.fork_state(kept.compiled, {"video": video})
    video += 1
    given = lightint_compile.load_state(kept.compiled, state)
    given["video"] += 1
    assert isinstance(state, WorldState) and not state.world["video"].any()
