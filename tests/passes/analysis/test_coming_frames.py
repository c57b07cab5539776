"""Which cameras the steps read: found through every way to write it, refused with a reason where it cannot be told."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.passes.analysis.cameras import camera_input
from lightint_compile.passes.analysis.coming_frames import Coming, coming_frames
from lightint_compile.passes.ir.fake_values import hint_at
from lightint_compile.passes.ir.remarks import Miss

FRAMES, START = 16, 8
Pick = Callable[..., Tensor]


class Reads(nn.Module):
    """One step on a chunk of four latent frames, told of the cameras that ``pick`` takes: [B, 4, 4, 4] or embedded."""

    def __init__(self, pick: Pick) -> None:
        super().__init__()
        self.pick, self.pose, self.mix = pick, nn.Linear(16, 4), nn.Linear(4, 4)

    def forward(self, noise: Tensor, cameras: Tensor, *more: Tensor) -> Tensor:
        told = self.pick(cameras, *more)
        told = self.pose(told.flatten(2)) if told.dim() == 4 else told
        mixed = self.mix(noise.movedim(1, -1)).movedim(-1, 1)
        return noise + mixed * told.movedim(1, 2)[..., None, None]


def found_by(pick: Pick, *more: Tensor, dynamic: bool = False, frames: int = 4, batch: int = 1):
    module = Reads(pick)
    inputs = (torch.randn(batch, 4, frames, 4, 6), torch.eye(4).repeat(batch, FRAMES, 1, 1), *more)
    with torch.no_grad():
        program = capture.trace(module, inputs, dynamic={"cameras": 1} if dynamic else {})
    cameras = camera_input(program)
    return coming_frames(program, cameras), cameras


WAYS: dict[str, tuple[Pick, int]] = {
    "the last": (lambda c: c[:, -4:], 12),
    "a slice": (lambda c: c[:, START : START + 4], START),
    "from a place on, of the path so far": (lambda c: c[:, START:][:, :4], START),
    "narrow": (lambda c: c.narrow(1, START, 4), START),
    "a slice of a slice": (lambda c: c[:, 4:][:, 2:10][:, 2:6], START),
    "a range of numbers": (lambda c: c.index_select(1, torch.arange(4) + START), START),
    "numbers from a place on": (lambda c: c[:, torch.arange(START, START + 4)], START),
    "frame by frame": (lambda c: torch.stack([c[:, START + k] for k in range(4)], 1), START),
    "joined from slices": (lambda c: torch.cat([c[:, START : START + 2], c[:, START + 2 : START + 4]], 1), START),
    "split": (lambda c: c.split(4, 1)[2], START),
    "chunks": (lambda c: c.chunk(4, 1)[2], START),
    "unbound": (lambda c: torch.stack(c.unbind(1)[START : START + 4], 1), START),
    "inverted, then a slice": (lambda c: torch.linalg.inv(c)[:, START : START + 4], START),
    "relative to the first": (lambda c: (c @ torch.linalg.inv(c[:, :1]))[:, START : START + 4], START),
    "relative to the first of all": (lambda c: c[:, START : START + 4] @ c[:, 0, None].mT, START),
    "moved to the front": (lambda c: c.permute(1, 0, 2, 3)[START : START + 4].transpose(0, 1), START),
    "scaled, in half precision": (lambda c: (c * 2).bfloat16()[:, START : START + 4].float(), START),
    "flattened": (lambda c: c.flatten(2)[:, START : START + 4].unflatten(2, (4, 4)), START),
}


def ways() -> list[object]:
    """Every way, dynamic where it may be; where sizes are fixed as well, all but every third are slow."""
    pieces = ("split", "chunks", "unbound")  # of a number of the capture
    static = [
        pytest.param(way, False, id=f"{way}-static", marks=[pytest.mark.slow] * (way not in pieces and number % 3 > 0))
        for number, way in enumerate(WAYS)
    ]
    return [*static, *(pytest.param(way, True, id=f"{way}-dynamic") for way in WAYS if way not in pieces)]


@pytest.mark.parametrize(("way", "dynamic"), ways())
def test_the_frames_that_the_steps_read_are_found(way: str, dynamic: bool) -> None:
    pick, first = WAYS[way]
    found, cameras = found_by(pick, dynamic=dynamic)
    assert isinstance(found, Coming), found
    assert (found.count, hint_at(cameras, found.first)) == (4, first) and found.index is None
    if way == "the last" and dynamic:
        assert not isinstance(found.first, int), "it follows the length of the path"


def test_frames_named_by_numbers_that_arrive_are_read_by_them() -> None:
    for pick in (lambda c, n: c[:, n], lambda c, n: c.index_select(1, n), lambda c, n: c.mT[:, n].mT):
        found, _ = found_by(pick, torch.arange(START, START + 4))
        assert isinstance(found, Coming) and found.first is None and found.count == 4
        assert found.index.op == "placeholder"
    found, _ = found_by(lambda c, s: c.index_select(1, s + torch.arange(4)), torch.tensor(START))
    assert isinstance(found, Coming) and found.index is not None and found.index.op == "call_function"


@pytest.mark.parametrize("seed", range(6))
def test_any_chain_of_slices_and_frame_wise_work_is_followed(seed: int) -> None:
    """Against the numbers themselves: every camera carries its own number, which the picked ones must show."""
    draw = random.Random(seed)
    steps: list[Pick] = []
    left, count = 0, FRAMES
    while count > 4:
        size = draw.choice([4, *range(4, count)])
        start = draw.randrange(count - size + 1)
        steps.append(
            draw.choice(
                [
                    lambda c, a=start, b=start + size: c[:, a:b],
                    lambda c, a=start, n=size: c.narrow(1, a, n),
                    lambda c, a=start, n=size: c.index_select(1, torch.arange(n) + a),
                    lambda c, a=start - count, b=start + size: c[:, a:b],
                ]
            )
        )
        if draw.random() < 0.6:
            steps.append(draw.choice([lambda c: c * 1.0, lambda c: c.mT.mT, lambda c: c + 0, lambda c: c.clone()]))
        left, count = left + start, size

    def pick(cameras: Tensor) -> Tensor:
        for step in steps:
            cameras = step(cameras)
        return cameras

    numbers = torch.arange(FRAMES)[None, :, None, None].expand(1, FRAMES, 4, 4)
    assert pick(numbers)[0, :, 0, 0].tolist() == list(range(left, left + 4))
    found, _ = found_by(pick)
    assert found == Coming(4, left)


SPARSE: dict[str, tuple[Pick, int, int]] = {
    "the last": (lambda c: c[:, -13::4], 3, 4),
    "one in two": (lambda c: torch.linalg.inv(c)[:, -7::2], 9, 2),
    "relative to the one before": (
        lambda c: c[:, -13::4] @ torch.cat([c[:, -13:-12], c[:, -13::4][:, :-1]], 1).mT,
        3,
        4,
    ),
    "a slice of a slice": (lambda c: c[:, 1:][:, 2::4], 3, 4),
    "of the last ones": (lambda c: c[:, 9:][:, ::2], 9, 2),
    "the first of every four": (lambda c: c[:, ::4], 0, 4),
}


@pytest.mark.parametrize(
    ("way", "dynamic"), [*((way, False) for way in SPARSE), *((way, True) for way in list(SPARSE)[:3])]
)
def test_one_camera_in_so_many_up_to_the_end(way: str, dynamic: bool) -> None:
    pick, first, step = SPARSE[way]
    found, cameras = found_by(pick, dynamic=dynamic)
    assert isinstance(found, Coming), found
    assert (found.count, found.step, hint_at(cameras, found.first)) == (4, step, first)


def test_numbers_that_cameras_chose_are_no_cameras() -> None:
    def pick(cameras: Tensor) -> Tensor:
        seen = (cameras[:, -4:, 2, :3] @ cameras[:, :12, 2, :3].mT).sum(0).argmax(1)
        return cameras[:, -4:] + seen[None, :, None, None]

    found, _ = found_by(pick)
    assert found == Coming(4, 12)


def test_numbers_of_every_frame_are_cameras_still() -> None:
    found, _ = found_by(lambda c: c[:, -4:] + (c[:, :4] > 0).long())
    assert isinstance(found, Miss) and "several parts" in found.reason


REFUSED: dict[str, tuple[Pick, str]] = {
    "every second frame": (lambda c: c[:, 0:8:2], "16 frames from 0 on"),
    "one in three, not to the end": (lambda c: c[:, 2:12:3], "16 frames from 0 on"),
    "all four of every latent frame": (lambda c: c.unflatten(1, (4, 4)).mean(2), "16 frames from 0 on"),
    "backwards": (lambda c: c.flip(1)[:, :4], "16 frames from 0 on"),
    "rolled": (lambda c: c.roll(4, 1)[:, :4], "16 frames from 0 on"),
    "a sum over all before": (lambda c: c.cumsum(1)[:, START : START + 4], "16 frames from 0 on"),
    "eight of a chunk of four": (lambda c: c[:, :8].unflatten(1, (4, 2)).mean(2), "8 frames from 0 on"),
    "two chunks": (lambda c: c[:, :4] + c[:, START : START + 4], "several parts"),
    "a chunk and the mean of the path": (lambda c: c[:, START : START + 4] + c.mean(1, True), "more than the cameras"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_cannot_be_told_is_refused_with_what_is_read(way: str) -> None:
    pick, message = REFUSED[way]
    found, cameras = found_by(pick)
    assert isinstance(found, Miss) and found.node is cameras
    assert message in found.reason and "cameras[:, start" in found.hint


def test_chunks_of_other_lengths_and_steps_without_cameras() -> None:
    found, _ = found_by(lambda c: c[:, 6:9], frames=3)
    assert found == Coming(3, 6)
    found, _ = found_by(lambda c: torch.zeros(1, 4, 4, 4), batch=2)
    assert found is None
