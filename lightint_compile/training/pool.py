"""The pool of walks that batches are drawn from, renewed a block at a time; one block has a past of the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightint_compile.models.maze.hashing import draw
from lightint_compile.training.sequences import Sequences
from lightint_compile.training.walks import TRAINING_SEEDS

Make = Callable[[Tensor], Sequences]
"""Walks through the mazes of seeds [n]."""


class Batch(NamedTuple):
    """Walks to train on; `past` [n, C, F, h, w] is what contexts are taken from, the truth or the model's own."""

    walks: Sequences
    past: Tensor


class Pool:
    """`blocks` blocks of `block` walks each, a function of the seed, the rank and how often it was renewed.

    Block 0 is for pasts of the model's own (`own` [block, C, F, h, w], None until there are any).
    """

    def __init__(self, make: Make, seed: int, rank: int, blocks: int, block: int, renewed: int = 0) -> None:
        self._make, self._key, self.blocks, self.block = make, (seed, rank), blocks, block
        self.renewed = renewed
        self.own: Tensor | None = None
        parts = [make(self._seeds(self._generation(number))) for number in range(blocks)]
        self.walks = parts[0] if blocks == 1 else _joined(parts)

    def renew(self) -> None:
        """Replace the block that is oldest; never block 0."""
        self.renewed += 1
        if self.blocks > 1:
            number = self._renewed_block(self.renewed)
            self.walks.put(number * self.block, self._make(self._seeds(self.blocks + self.renewed)))

    def draw(self, count: int, share: float, generator: torch.Generator) -> Batch:
        """`count` walks; about a `share` of them from block 0 with the model's own past, where there is one."""
        device, total = self.walks.latents.device, self.blocks * self.block
        index = torch.randint(0, total, (count,), generator=generator, device=device)
        if self.own is None:
            walks = self.walks.rows(index)
            return Batch(walks, walks.latents.float())
        mine = torch.rand(count, generator=generator, device=device) < share
        index = torch.where(mine, index % self.block, index)
        walks = self.walks.rows(index)
        past = torch.where(mine[:, None, None, None, None], self.own[index % self.block], walks.latents)
        return Batch(walks, past.float())

    def first_block(self) -> Sequences:
        """The walks of block 0."""
        return self.walks.rows(torch.arange(self.block, device=self.walks.latents.device))

    def _renewed_block(self, renewal: int) -> int:
        return 1 + (renewal - 1) % (self.blocks - 1)

    def _generation(self, number: int) -> int:
        """Of which draw the block is: its own at first, later of the last renewal that reached it."""
        if number == 0 or self.renewed < number:
            return number
        last = self.renewed - (self.renewed - number) % (self.blocks - 1)
        return self.blocks + last

    def _seeds(self, generation: int) -> Tensor:
        keys = draw(torch.tensor(self._key[0]), self._key[1], generation, torch.arange(self.block))
        return TRAINING_SEEDS + keys % (2**31 - TRAINING_SEEDS)


def _joined(parts: list[Sequences]) -> Sequences:
    cameras = [
        type(parts[0].cameras)(*(torch.cat(each) for each in zip(*(part.cameras for part in parts), strict=True)))
    ]
    return Sequences(
        torch.cat([part.latents for part in parts]), cameras[0], torch.cat([part.context for part in parts])
    )
