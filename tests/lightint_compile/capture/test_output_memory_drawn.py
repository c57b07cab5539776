"""Drawn modules with several outputs: values, memory order and who shares memory are eager's, through writes."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Views, copies and what is either, of any tensor with at least one axis.
STEPS = {
    "flat": lambda e: e.reshape(-1),
    "flatten": lambda e: e.flatten(),
    "turn": lambda e: e.transpose(0, -1),
    "first": lambda e: e[:1],
    "second half": lambda e: e.chunk(2, -1)[-1],
    "split": lambda e: torch.unsafe_split(e, 1, -1)[0],
    "row": lambda e: torch.atleast_2d(e),
    "more": lambda e: e.unsqueeze(0),
    "fewer": lambda e: e.squeeze(),
    "contiguous": lambda e: e.contiguous(),
    "clone": lambda e: e.clone(),
    "cast": lambda e: e.to(torch.float32),
    "copy": lambda e: e.to(torch.float32, copy=True),
    "like": lambda e: e.type_as(e.new_zeros(())),
    "alias": lambda e: e.detach(),
    "same": lambda e: e.view(e.shape),
    "spread": lambda e: torch.broadcast_tensors(e, e.new_zeros(()))[0],
    "einsum": lambda e: torch.einsum("...->...", e),
    "sum_to_size": lambda e: e.sum_to_size(e.shape),
    "dropout": lambda e: F.dropout(e, 0.5, False),
    "sine": lambda e: torch.sin(e),
    "twice": lambda e: torch.cat([e, e], -1),
}


class Drawn(nn.Module):
    """Values of a text, a video, both, a parameter and a constant; each output is one of them through drawn steps."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.text, self.video = nn.Linear(12, 16), nn.Linear(8, 16)
        self.table = nn.Parameter(torch.randn(3, 16))
        draw = random.Random(seed)
        self.outputs = [(draw.randrange(8), draw.choices(list(STEPS), k=draw.randint(0, 3))) for _ in range(4)]

    def forward(self, video: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        def first():
            return torch.sin(self.text(text))

        frames = F.silu(self.video(video[:, :1].expand(-1, 4, -1)))
        scores = torch.softmax(self.video(video).transpose(1, 2) @ self.video(video) * 0.25, -1)
        values = (
            first(),
            first(),
            self.video(video),
            video,
            text,
            self.table,
            frames,
            scores @ self.text(text[:, :1]).mT,
        )
        results = []
        for source, steps in self.outputs:
            value = values[source]
            for step in steps:
                value = STEPS[step](value)
            results.append(value)
        return self.video(video) + first().sum(), *results


def sharing(tensors: list[Tensor]) -> list[int]:
    """For each tensor the first in the list with the same memory."""
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    return [places.index(place) for place in places]


def strides(tensor: Tensor) -> list[int]:
    """Where it has more than one element to step to."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


class Side:
    """A module with tensors of its own, and the last results."""

    def __init__(self, module: nn.Module, function, inputs: tuple[Tensor, ...]) -> None:
        self.module, self.function, self.inputs = module, function, inputs
        self.results: tuple[Tensor, ...] = ()

    def call(self) -> None:
        self.results = self.function(*self.inputs)

    def tensors(self) -> list[Tensor]:
        return [*self.results, *self.inputs, *self.module.parameters()]

    def write(self, which: int, number: float) -> None:
        self.tensors()[which].mul_(number).add_(1)


def inputs_for(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    random_numbers = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, 8, generator=random_numbers), torch.randn(2, rows, 12, generator=random_numbers)


def play(seed: int) -> None:
    torch._dynamo.reset()
    torch.manual_seed(seed)
    draw, module = random.Random(seed), Drawn(seed).eval().requires_grad_(False)
    twin = copy.deepcopy(module)
    dynamic = True if seed % 3 == 2 else None
    options = {"preset": "exact", "delegate": "eager", "strict": True}
    compiled = torch.compile(twin, backend="lightint", dynamic=dynamic, options=options)
    eager, ours = Side(module, module, inputs_for(seed, 6)), Side(twin, compiled, inputs_for(seed, 6))
    for turn in range(5):
        if dynamic and turn == 3:
            eager.inputs, ours.inputs = inputs_for(seed, 9), inputs_for(seed, 9)
        eager.call()
        ours.call()
        assert list(map(strides, ours.results)) == list(map(strides, eager.results))
        assert sharing(ours.tensors()) == sharing(eager.tensors())
        torch.testing.assert_close(ours.tensors(), eager.tensors())
        for _ in range(2):
            which, number = draw.randrange(len(eager.results)), draw.uniform(0.2, 0.9)
            eager.write(which, number)
            ours.write(which, number)
            torch.testing.assert_close(ours.tensors(), eager.tensors())


QUICK = (0, 1, 2, 9, 145)


@pytest.mark.parametrize("seed", QUICK)
@torch.no_grad()
def test_drawn_outputs_share_what_eagers_share(seed) -> None:
    play(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", sorted({*range(300)} - {*QUICK}))
@torch.no_grad()
def test_more_drawn_outputs_share_what_eagers_share(seed) -> None:
    play(seed)
