"""Numbers in small integer tensors: sizes that are read back, and counters of caches, keep a forward in one graph."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._dynamo.variables import builder
from torch._dynamo.variables.tensor import TensorVariable

import lightint_compile

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_dynamo")
X = torch.randn(1, 4, 2, 4, 6)


class SizesReadBack(nn.Module):
    """A grid as a tensor [B, 3] that travels to the end, as video transformers of one family write it."""

    def forward(self, x: Tensor) -> Tensor:
        grids = torch.stack([torch.tensor(each.shape[1:], dtype=torch.long) for each in x])
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens * math.prod(grids[0][1:]).item()  # type: ignore[call-overload]
        for frames, height, width in grids.tolist():
            tokens = tokens + torch.arange(frames * height * width)[None, :, None]
        return tokens.view(1, *grids[0], -1)


class SizesAsArguments(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        sizes = torch.tensor(x.shape[2:])
        frames = x.mean((3, 4))[..., None]
        return frames.repeat(1, 1, 1, sizes[1] * sizes[2]).reshape([1, -1, *sizes])


class LongestText(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([each.shape[1] for each in x], dtype=torch.long)
        return x[:, :, : int(lengths.max())] * 2


class SizesPut(nn.Module):
    """Sizes that are written to in parts: read before and behind it, through a view, in a tensor made of them."""

    def forward(self, x: Tensor) -> Tensor:
        grids = torch.stack([torch.tensor(each.shape[1:], dtype=torch.long) for each in x])
        before, sums = grids.prod().item(), grids[0, 1:].sum()
        one, row = grids.clone(), grids[0]
        one[:, 0] = 3
        row[1:] = sums
        copy = one.clone()
        one[0, 2] = copy.sum()
        counts = [before, sums.item(), *row.tolist(), *grids[0].tolist(), *one[0].tolist(), *copy.flatten().tolist()]
        return x * torch.tensor([float(count) for count in counts]).sum() + sum(counts)


@pytest.mark.parametrize("kind", [SizesReadBack, SizesAsArguments, LongestText, SizesPut])
def test_sizes_that_are_read_back_are_sizes(kind: type[nn.Module]) -> None:
    model = kind().eval()
    given = [X, X[:, :, :, :2], torch.randn(1, 4, 3, 2, 2)]
    expected = [model(each) for each in given]
    with lightint_compile.accelerate(model, delegate="eager"):
        for each, wanted in zip(given, expected, strict=True):
            torch.testing.assert_close(model(each), wanted)
        assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 3


class Cache(nn.Module):
    """A window of keys with a counter of its end, both written in place."""

    def forward(self, x: Tensor, cache: dict[str, Tensor]) -> Tensor:
        end = cache["end"].item() + x.shape[1]
        cache["keys"][:, end - x.shape[1] : end] = x
        cache["end"].fill_(end)
        return torch.softmax(x @ cache["keys"][:, :end].transpose(1, 2), -1) @ cache["keys"][:, :end]


def rolled(model: nn.Module, calls: int = 6) -> list[Any]:
    draw = torch.Generator().manual_seed(3)
    cache = {"keys": torch.zeros(1, 64, 8), "end": torch.tensor([0])}
    results: list[Any] = [model(torch.randn(1, 4, 8, generator=draw), cache) for _ in range(calls)]
    return [*results, cache["keys"], cache["end"]]


def test_a_counter_of_a_cache_is_a_size_that_changes() -> None:
    model = Cache().eval()
    expected = rolled(model)
    with lightint_compile.accelerate(model, delegate="eager"):
        for result, wanted in zip(rolled(model), expected, strict=True):
            torch.testing.assert_close(result, wanted)
        assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 3
        before = counters["stats"]["unique_graphs"]
        rolled(model, 12)
        assert counters["stats"]["unique_graphs"] == before


class Written(nn.Module):
    """Numbers that are written before they are read: in a part, in the whole, and in an input."""

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        sizes = torch.tensor(x.shape[2:])
        sizes[0].fill_(7)
        other = torch.tensor(x.shape[2:])
        other += 1
        count.add_(2)
        return x * sizes.tolist()[0] + other[0].item() + count.item()


class Data(nn.Module):
    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        return x * x.argmax().item() + torch.tensor(2.5).item() + count.sum().item()


@pytest.mark.parametrize(("kind", "count"), [(Written, torch.tensor([3])), (Data, torch.tensor([3, 4]))])
def test_what_was_written_or_is_data_is_read_when_it_runs(kind: type[nn.Module], count: Tensor) -> None:
    model = kind().eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for _ in range(3):
            mine, theirs = count.clone(), count.clone()
            torch.testing.assert_close(model(X, mine), kind().forward(X, theirs))
            assert torch.equal(mine, theirs)
            count = count + 1


class Positions(nn.Module):
    """Rotary tables from ``linspace(a, b, n + 1)[:n]``, of as many frames as come."""

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        whole = torch.linspace(0, count, count + 1, dtype=torch.float32)[:count]
        behind = torch.linspace(3, 3 + count, count + 1)[:count]
        half = torch.linspace(0, 1, 5)
        return x * torch.cos(whole)[None, :, None] + torch.sin(behind)[None, :, None] + half.sum()


def test_tables_of_positions_serve_every_length() -> None:
    model = Positions().eval()
    with lightint_compile.accelerate(model, delegate="eager"):
        for count in (4, 5, 6, 7, 9, 13):
            given = torch.randn(1, count, 8)
            assert torch.equal(model(given), Positions().forward(given))
        assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2


CHUNK = {"end": 0, "frames": 2, "mode": 1}
"""What a model publishes for its layers before each call, as one code base does in front of its attention."""


class Published(nn.Module):
    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        end = CHUNK["end"] + CHUNK["frames"]
        keys[:, CHUNK["end"] : end] = x * CHUNK["mode"]
        return torch.softmax(x @ keys[:, :end].transpose(1, 2), -1) @ keys[:, :end]


def test_numbers_in_a_dictionary_of_a_module_may_change() -> None:
    model = Published().eval()
    keys, expected = torch.zeros(1, 32, 8), torch.zeros(1, 32, 8)
    with lightint_compile.accelerate(model, delegate="eager"):
        for CHUNK["end"] in range(0, 24, 2):
            CHUNK["mode"] = 1 if CHUNK["end"] < 20 else 3
            given = torch.randn(1, 2, 8)
            torch.testing.assert_close(model(given, keys), Published().forward(given, expected))
            if CHUNK["end"] == 18:
                assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2
    assert torch.equal(keys, expected)


def test_only_accelerated_modules_are_read_and_nothing_stays() -> None:
    own, model = TensorVariable.call_method, SizesReadBack().eval()
    numbers = builder.is_int_specialization_case
    with lightint_compile.accelerate(model, delegate="eager"), lightint_compile.accelerate(Cache()):
        assert TensorVariable.call_method is not own
        torch.compile(SizesReadBack().eval(), backend="eager")(X)
        assert counters["graph_break"]
    assert TensorVariable.call_method is own and builder.is_int_specialization_case is numbers
