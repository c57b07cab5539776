"""The settings of a call of sparse attention, without its tensors, as one value in the order of the schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Required, TypedDict

from torch import Tensor

from . import checks
from .steps import default_scale
from .tiles import Layout

Grid = Sequence[int]


class SiteArguments(TypedDict, total=False):
    """Where a site's tokens are.

    Attributes:
        query_grid: (frames, height, width) of the queries, the last frames of ``key_grid``.
        key_grid: (frames, height, width) of the visual keys.
        prefix: text tokens in front; always attended. 0 by default.
        tile: (t, h, w) tokens of one block, (4, 8, 4) by default.
        scale: factor of the logits; ``head_dim ** -0.5`` by default.
    """

    query_grid: Required[Grid]
    key_grid: Required[Grid]
    prefix: int
    tile: Grid
    scale: float | None


class PolicyArguments(TypedDict, total=False):
    """Which blocks are kept.

    Attributes:
        density: kept fraction of the visual key blocks, 0.3 by default; forced blocks count toward it. 1.0 is dense.
        coverage: keep only as many blocks as hold this share of the estimated attention mass; density then caps it.
        protect_frames: latest key frames that are always kept, 0 by default.
        neighbours: blocks within this Manhattan distance in the block grid are always kept (0: the own block); 1 by
            default.
        context_density: with it, the budget is ``density`` of the current blocks and this share of the context's.
    """

    density: float
    coverage: float | None
    protect_frames: int
    neighbours: int
    context_density: float | None


class SparseArguments(SiteArguments, PolicyArguments, total=False):
    """All settings of sparse attention.

    Attributes:
        skipped_means: number of mean keys and values that approximate a skipped block (1, 2, 4 or 8, as far as the tile
            can be halved; 1 by default); 0 leaves skipped blocks out, as in the published method.
        min_tokens: keys from which the call is sparse, 0 for always; without it the cost model decides for these sizes.
    """

    skipped_means: int
    min_tokens: int | None


SITE: dict[str, Any] = {"prefix": 0, "tile": (4, 8, 4), "scale": None}
POLICY: dict[str, Any] = {
    "density": 0.3,
    "coverage": None,
    "protect_frames": 0,
    "neighbours": 1,
    "context_density": None,
}
SPARSE: dict[str, Any] = {**SITE, **POLICY, "skipped_means": 1, "min_tokens": None}
"""Defaults of the Python entry points. Those of the schemas are the last ones of :class:`Settings`."""


class Policy(NamedTuple):
    """Which blocks are kept; see :class:`PolicyArguments`."""

    density: float
    coverage: float | None
    protect_frames: int
    neighbours: int
    scale: float | None
    context_density: float | None = None

    def check(self) -> None:
        """Raise :class:`InputError` for what is out of range."""
        checks.policy(self.density, self.coverage, self.protect_frames, self.neighbours, self.context_density)

    def arguments(self, query: Tensor) -> dict[str, Any]:
        """The keyword arguments of an implementation's ``select_blocks``, with the scale of ``query`` by default."""
        return {**self._asdict(), "scale": default_scale(self.scale, query)}


class Settings(NamedTuple):
    """What an operator of sparse attention takes after its tensors."""

    query_grid: Grid
    key_grid: Grid
    prefix: int
    tile: Grid
    density: float
    coverage: float | None
    protect_frames: int
    neighbours: int
    scale: float | None
    context_density: float | None = None
    skipped_means: int = 0
    min_tokens: int | None = None

    @property
    def policy(self) -> Policy:
        """Which blocks are kept."""
        return Policy(*self[4:10])

    @property
    def layout(self) -> Layout:
        """Where the tokens are; nothing is checked."""
        return Layout.of(self.query_grid, self.key_grid, self.tile, self.prefix)

    def checked(self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Layout:
        """Where the tokens of these tensors are, once everything fits.

        Raises:
            InputError: arguments that do not fit together.
        """
        layout = checks.site(query, keys, values, *self[:4])
        self.policy.check()
        checks.parts(self.tile, self.skipped_means)
        checks.min_tokens(self.min_tokens)
        return layout
