"""What is computed of sizes in tensors is known while Dynamo traces it; what is data is not, whatever it looks like."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

import einops
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lightint_compile

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_dynamo")


def video(frames: int, height: int = 4, width: int = 6) -> Tensor:
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(frames))


def put(held: Any, index: Any, value: Any) -> None:
    held[index] = value


def grids_of(x: Tensor) -> Tensor:
    """The grid of each sample as a tensor [B, 3]."""
    return torch.stack([torch.tensor(each.shape[1:], dtype=torch.long) for each in x])


Idiom = Callable[[Tensor, Tensor], Tensor]
"""Takes a video [1, 4, F, H, W] and its grid as a tensor [1, 3]."""


def _branches(x: Tensor, grids: Tensor) -> Tensor:
    lengths = torch.tensor([each[0].numel() for each in x])
    assert lengths.max() <= 1000
    assert (grids > 0).all()
    if (grids > 1000).any() or not grids.any():
        return x
    x = x * 2 if grids[0].prod() >= 24 and bool(lengths[0] == grids.prod()) else x * 3
    while grids[0, 0] < 2:
        grids[0, 0] += 1
    return x if not grids[0][1] % 2 else x + 1


def _a_part_of_the_tokens(x: Tensor, grids: Tensor) -> Tensor:
    tokens, rest = x.flatten(2).transpose(1, 2), grids.clone()
    area = grids[0][1] * grids[0][2]
    rest[:, 0] = rest[:, 0] - 1
    rest[0, 2] -= 2
    first, others = tokens[:, : 1 * area], tokens[:, area:]
    others = others.view(1, *grids[0] - torch.tensor([1, 0, 0]), -1).flatten(1, 3)
    return torch.cat([others, first * rest.sum()], 1)[:, -grids[0][0] * area // 2 :] + rest.prod().item()


def _as_sizes(x: Tensor, grids: Tensor) -> Tensor:
    frames, height, width = grids[0]
    zeros = torch.zeros(frames, height * width) + torch.arange(frames * height * width).view(frames, height * width)
    ramp = torch.linspace(0, frames, frames + 1)[:frames]
    left, right = torch.split(x, [height // 2, height - height // 2], dim=3)
    x = torch.cat([right, left], 3).flatten(2).unflatten(2, (frames, height * width))
    return (x + zeros + ramp[:, None]).narrow(2, 0, frames - frames // 2).repeat(1, 1, 1, height % 3 + 1)


def _in_patterns(x: Tensor, grids: Tensor) -> Tensor:
    frames, height, width = grids[0]
    tokens = einops.rearrange(x, "b c f h w -> b (f h w) c")
    tokens = einops.rearrange(tokens, "b (f s) c -> (b s) f c", f=frames, s=height * width)
    return einops.repeat(tokens, "s f c -> s (f n) c", n=height)


def _in_lists(x: Tensor, grids: Tensor) -> Tensor:
    names, count = [x, x * 2, x * 3, x * 4, x * 5, x * 6, x * 7, x * 8, x * 9], int(grids.max())
    picked = names[grids[0][1]] + sum(place * x for place in range(grids[0][1]))
    assert all(extent % 1 == 0 for extent in grids[0])
    return picked * count + max(grids[0][0].item(), min(grids[0].tolist()))


def _of_half_precision(x: Tensor, grids: Tensor) -> Tensor:
    small = grids.to(torch.int32)
    small[0, 1] *= 70000
    return x * (small[0, 1] * 70000) + small.sum().item() + torch.tensor([200], dtype=torch.uint8).add(100).item()


IDIOMS = [_branches, _a_part_of_the_tokens, _as_sizes, _in_patterns, _in_lists]


class OfItsSizes(nn.Module):
    def __init__(self, idiom: Idiom) -> None:
        super().__init__()
        self.idiom = idiom

    def forward(self, x: Tensor) -> Tensor:
        return self.idiom(x, grids_of(x))


class OfData(OfItsSizes):
    """The same, with a grid that is given."""

    def forward(self, x: Tensor, grids: Tensor | None = None) -> Tensor:
        assert grids is not None
        return self.idiom(x, grids.clone())


@pytest.mark.parametrize("idiom", IDIOMS)
def test_sizes_in_tensors_are_sizes(idiom: Idiom) -> None:
    model = OfItsSizes(idiom).eval()
    given = [video(4), video(6), video(8), video(10), video(6)]
    expected = [model(each) for each in given]
    with lightint_compile.accelerate(model, delegate="eager"):
        for each, wanted in zip(given, expected, strict=True):
            torch.testing.assert_close(model(each), wanted)
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 2  # the second serves every number of frames


@pytest.mark.parametrize(
    "idiom",
    [
        _branches,
        _a_part_of_the_tokens,
        pytest.param(_as_sizes, marks=pytest.mark.slow),
        pytest.param(_in_patterns, marks=pytest.mark.slow),
        _in_lists,
        _of_half_precision,
    ],
)
def test_the_same_with_a_grid_that_is_data_is_computed_when_it_runs(idiom: Idiom) -> None:
    model = OfData(idiom).eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for frames in (4, 6, 4):
            x = video(frames)
            torch.testing.assert_close(model(x, grids_of(x)), OfItsSizes(idiom)(x))
        if idiom is not _branches:
            return
        assert counters["graph_break"]
        assert not torch.equal(model(x, grids_of(video(1, 1))), model(x, grids_of(x)))


def test_numbers_that_wrap_are_not_taken_for_what_they_would_be() -> None:
    model = OfItsSizes(_of_half_precision).eval()
    expected = model(video(4))
    with lightint_compile.accelerate(model, delegate="eager"):
        torch.testing.assert_close(model(video(4)), expected)


def _lengths_as(dtype: torch.dtype) -> Idiom:
    """Lengths of samples, as operators for samples of several lengths take them."""

    def idiom(x: Tensor, grids: Tensor) -> Tensor:
        stated = torch.tensor([each.shape[1] * each.shape[2] for each in x], dtype=torch.int64).to(dtype)
        counted = grids[:, :2].prod(1).to(dtype)
        assert counted.dtype == dtype
        return x * counted[0].item() + stated.sum().item() - counted[0]

    return idiom


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_lengths_in_tensors_of_few_bits_stay_symbols(dtype: torch.dtype) -> None:
    model = OfItsSizes(_lengths_as(dtype)).eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for frames in (4, 6, 9, 31, 7):
            x = video(frames)
            torch.testing.assert_close(model(x), x * 4 * frames)
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 2, "one for each length, where its value was guarded"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_a_length_that_no_longer_fits_wraps_as_in_eager(dtype: torch.dtype) -> None:
    idiom = _lengths_as(dtype)
    model = OfItsSizes(idiom).eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for frames in (4, 6, 9, 40, 70, 8, 130):
            x = video(frames)
            torch.testing.assert_close(model(x), idiom(x, grids_of(x)))


def _by_size(x: Tensor, grids: Tensor) -> Tensor:
    return x * 2 if grids.prod() > 200 else x * 3


def test_a_branch_on_a_symbol_is_guarded_as_one_on_a_size() -> None:
    model = OfItsSizes(_by_size).eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for frames, graphs in ((2, 1), (3, 2), (5, 2), (8, 2), (9, 3), (20, 3), (4, 3), (12, 3)):
            x = video(frames)
            assert torch.equal(model(x), x * (2 if frames > 8 else 3))
            assert counters["stats"]["unique_graphs"] == graphs, frames


def test_an_assertion_that_does_not_hold_is_raised() -> None:
    def limited(x: Tensor, grids: Tensor) -> Tensor:
        assert grids.max() <= 6, "too many"
        return x * 2

    model = OfItsSizes(limited).eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        assert torch.equal(model(video(4)), video(4) * 2)
        for frames in (8, 9):
            with pytest.raises(AssertionError, match="too many"):
                model(video(frames))


class Frames(nn.Module):
    """A clip that is given the numbers of its frames as the two ends of a range."""

    def forward(self, x: Tensor, ends: tuple[int, int]) -> Tensor:
        start, end = ends
        numbers = torch.tensor(list(range(start, end)))
        total = sum(number for number in range(start, end))
        return x * torch.cos(numbers.float())[:, None, None] + total + len(range(3))


def test_a_range_that_moves_on_is_one_graph() -> None:
    model = Frames().eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for start in (2, 12, 22, 35, 46):
            torch.testing.assert_close(model(video(4), (start, start + 4)), Frames()(video(4), (start, start + 4)))
        assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2


@torch.library.custom_op("known_numbers_test::grow", mutates_args={"x"})
def grow(x: Tensor) -> None:
    x += 1


WRITES: list[Callable[[Tensor, Tensor], Any]] = [
    lambda sizes, data: sizes.fill_(7),
    lambda sizes, data: sizes[0].copy_(data),
    lambda sizes, data: sizes[0, 1:].mul_(2),
    lambda sizes, data: sizes.view(-1)[2].zero_(),
    lambda sizes, data: torch.add(sizes, 1, out=sizes),
    lambda sizes, data: sizes.index_fill_(1, torch.tensor([1]), 9),
    lambda sizes, data: sizes.data.add_(1),
    lambda sizes, data: sizes.unbind(1)[0].add_(3),
    lambda sizes, data: grow(sizes),
    lambda sizes, data: put(sizes, (0, 1), data),
    lambda sizes, data: put(sizes, data > 0, data),
    lambda sizes, data: put(sizes.T, (0, 0), 5),
    lambda sizes, data: operator.iadd(sizes, data),
    lambda sizes, data: torch.stack([sizes[0], sizes[0]], out=torch.empty(2, 3, dtype=torch.long)).fill_(0),
    lambda sizes, data: setattr(sizes, "data", sizes + 5),
]


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=pytest.mark.slow if place % 2 else ()) for place in range(len(WRITES))]
)
def test_what_is_written_in_a_way_that_is_not_followed_is_data(place: int) -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor, data: Tensor) -> Tensor:
            sizes = grids_of(x)
            shown, before = sizes[0], sizes.clone()
            WRITES[place](sizes, data)
            factor = 2 if sizes.sum() > before.sum() else 3
            return x * factor + shown.sum().item() + 100 * before.prod().item() + sizes[0, 1].item()

    model = Written().eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for frames in (2, 3, 2):
            for data in (torch.tensor([5, 6, 7]), torch.tensor([-1, 0, 2])):
                torch.testing.assert_close(model(video(frames), data[0]), Written()(video(frames), data[0]))


Step = Callable[[list[Tensor], Tensor], None]
"""Changes a pool of tensors of whole numbers; takes it, and a number that is data."""


def _adds(make: Callable[..., Tensor], *places: int) -> Step:
    return lambda pool, data: pool.append(make(*(pool[place % len(pool)] for place in places)))


def _do(_: object) -> None:
    """Drop what a step gives."""


def _drawn(draw: random.Random, *, followed: bool) -> Step:
    """One step: of those that keep numbers known, or also of those that write in other ways or bring data in."""
    one, other, number = draw.randrange(99), draw.randrange(99), draw.randrange(1, 5)
    known: list[Step] = [
        _adds(lambda a: a.clone(), one),
        _adds(lambda a: a[0], one),
        _adds(lambda a: a[:, 1:] if a.dim() > 1 else a[1:], one),
        _adds(lambda a: a.view(-1), one),
        _adds(lambda a: a.reshape(-1, 1), one),
        _adds(lambda a: a.unsqueeze(0), one),
        _adds(lambda a: a.squeeze(), one),
        _adds(lambda a: a * number - a, one),
        _adds(lambda a: -a // (number + 1), one),
        _adds(lambda a: a % (number + 1), one),
        _adds(lambda a: a.sum() + a.max(), one),
        _adds(lambda a: a.prod().long()[None], one),
        _adds(lambda a: a.expand(2, *a.shape).contiguous(), one),
        _adds(lambda a: a.expand(2, *a.shape), one),
        _adds(lambda a, b: torch.cat([a.flatten(), b.flatten()])[:6], one, other),
        _adds(lambda a, b: torch.stack([a.sum(), b.sum()]), one, other),
        _adds(lambda a, b: (a.flatten()[:1] >= b.flatten()[:1]).long(), one, other),
        _adds(lambda a: a.to(torch.int16).long(), one),
        _adds(lambda a: a.to(torch.int32), one),
        lambda pool, data: put(pool[one % len(pool)], ..., number),
        lambda pool, data: put(pool[one % len(pool)], -1, pool[other % len(pool)].flatten()[0]),
        lambda pool, data: put(pool, one % len(pool), operator.iadd(pool[one % len(pool)], number)),
        lambda pool, data: put(pool, one % len(pool), operator.imul(pool[one % len(pool)], 2)),
    ]
    others: list[Step] = [
        lambda pool, data: _do(pool[one % len(pool)].add_(number)),
        lambda pool, data: _do(pool[one % len(pool)].flatten().fill_(number)),
        lambda pool, data: put(pool[one % len(pool)], 0, data),
        lambda pool, data: pool.append(data[None]),
    ]
    return draw.choice(known if followed or draw.random() < 0.8 else others)


def _runs(steps: list[Step]) -> bool:
    pool = [grids_of(video(2)), torch.tensor(video(2).shape)]
    try:
        for step in steps:
            step(pool, torch.tensor(3))
    except (IndexError, RuntimeError):
        return False
    return all(0 < each.numel() <= 40 for each in pool)


class Drawn(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        draw, self.steps = random.Random(seed), list[Step]()
        while len(self.steps) < 12:
            step = _drawn(draw, followed=seed % 2 == 0)
            self.steps += [step] if _runs([*self.steps, step]) else []

    def forward(self, x: Tensor, data: Tensor) -> tuple[Tensor, list[Any]]:
        pool = [grids_of(x), torch.tensor(x.shape)]
        for step in self.steps:
            step(pool, data)
        return x + sum(each.sum() for each in pool), [each.tolist() for each in pool]


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow if seed % 5 else ()) for seed in range(12)])
def test_drawn_programs_hold_what_eager_holds(seed: int) -> None:
    model = Drawn(seed).eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for frames, data in ((2, 3), (3, 3), (5, 8), (2, -1), *((frames, 3) for frames in range(9, 15))):
            wanted, numbers = model.forward(video(frames), torch.tensor(data))
            found, told = model(video(frames), torch.tensor(data))
            torch.testing.assert_close(found, wanted)
            assert told == numbers
        if seed % 2 == 0:
            assert not counters["graph_break"]
            assert counters["stats"]["unique_graphs"] <= 3, "not one for each of nine lengths"
