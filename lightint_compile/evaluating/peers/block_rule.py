"""Rules that leave out transformer blocks and put what they did earlier in their place."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.errors import StateError
from lightint_compile.models.world_model import WorldModel

from .rule import StepRule, denoise_stage, replaced


@dataclasses.dataclass
class BlockRule(StepRule):
    """A rule on the stack of blocks: it looks before the first one, or behind it, and may skip what is left.

    What the blocks that may be skipped add to their tokens is their residual.
    """

    _inside: bool = dataclasses.field(default=False, init=False)
    _number: int = dataclasses.field(default=0, init=False)
    _skips: bool = dataclasses.field(default=False, init=False)
    _start: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0), init=False)
    _results: dict[int, int] = dataclasses.field(default_factory=dict, init=False)

    def skips_all(self, number: int, tokens: Tensor, block: nn.Module, rest: tuple[Any, ...]) -> bool:
        """Whether step `number` skips every block; the first one is called on `tokens` [B, N, C] and `rest`."""
        return False

    def skips_rest(self, number: int, before: Tensor, after: Tensor) -> bool:
        """Whether it skips every block but the first, which made `after` of `before`."""
        return False

    @abstractmethod
    def residual(self, number: int) -> Tensor:
        """What the skipped blocks are taken to add in step `number`."""

    @abstractmethod
    def computed_residual(self, number: int, residual: Tensor) -> None:
        """What the blocks that may be skipped have added in step `number`."""

    def step(self, number: int, compute: Callable[[], Tensor], latents: Tensor) -> Tensor:
        """See `StepRule.step`; a step whose blocks were skipped does not count as computed."""
        self._inside, self._number, self._skips = True, number, False
        try:
            made = compute()
        finally:
            self._inside = False
        self.computed -= self._skips
        return made

    @contextmanager
    def hooked(self, model: WorldModel, module: nn.Module) -> Iterator[None]:
        """Every block asks the rule."""
        blocks = stack_of(denoise_stage(model, module)[0])
        with ExitStack() as hooks:
            for index, block in enumerate(blocks):
                ruled = partial(self._block, index, len(blocks) - 1, block, block.forward)
                hooks.enter_context(replaced(block, "forward", ruled))
            yield

    def _block(
        self, index: int, last: int, block: nn.Module, original: Callable[..., Any], tokens: Tensor, *rest: Any
    ) -> Any:
        if not self._inside:
            return original(tokens, *rest)
        if index == 0:
            self._start, self._skips = tokens, self.skips_all(self._number, tokens, block, rest)
        if self._skips:
            return self._like(index, tokens + self.residual(self._number) if index == last else tokens)
        made = original(tokens, *rest)
        self._results[index] = len(made) if isinstance(made, tuple) else 0
        after = made[0] if isinstance(made, tuple) else made
        if index == 0 and self._looks_behind:
            self._start, self._skips = after, self.skips_rest(self._number, tokens, after)
        if index == last:
            self.computed_residual(self._number, after - self._start)
        return made

    def _like(self, index: int, tokens: Tensor) -> Any:
        """Tokens as block number `index` hands them on when it gives nothing else of use."""
        count = self._results.get(index, 0)
        return (tokens, *[None] * (count - 1)) if count else tokens

    @property
    def _looks_behind(self) -> bool:
        return type(self).skips_rest is not BlockRule.skips_rest


@dataclasses.dataclass
class LastResidual(BlockRule):
    """Skipped blocks add what they added in the last computed step of the chunk."""

    _residual: Tensor | None = dataclasses.field(default=None, init=False)

    def begin_chunk(self) -> None:
        """Nothing is known of the chunk."""
        self._residual = None

    def residual(self, number: int) -> Tensor:
        """That of the last computed step."""
        assert self._residual is not None
        return self._residual

    def computed_residual(self, number: int, residual: Tensor) -> None:
        """Kept for steps that are skipped."""
        self._residual = residual


def stack_of(owner: nn.Module) -> nn.ModuleList:
    """The longest list of alike blocks of a module.

    Raises:
        StateError: it has none.
    """
    lists = [each for each in owner.children() if isinstance(each, nn.ModuleList) and len(each) > 1]
    if not lists:
        raise StateError("the rule has no blocks to act on", where=type(owner).__name__, why="it has no list of blocks")
    return max(lists, key=len)
