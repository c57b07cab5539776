"""WorldKV's rule: keys and values of a chunk are computed once, stored, and retrieved instead of computed anew.

WorldKV (arXiv 2605.22718, cvlab-kaist/WorldKV). A chunk that is done is encoded once, behind the stored keys and
values of the frames that the model remembers at that time; later chunks gather the stored ones of the frames they
look back at, their temporal positions applied again. Its pruning of stored tokens by likeness to an anchor frame is
left out: it saves memory, and here the context is bounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightint_compile.errors import StateError
from lightint_compile.models.dtypes import wide
from lightint_compile.models.world_model import WorldModel
from lightint_compile.models.worldplay.blocks import KeyValue
from lightint_compile.models.worldplay.camera import apply_rope, rope_table
from lightint_compile.models.worldplay.transformer import WorldPlayTransformer
from lightint_compile.runtime import device_to_host

from .rule import Configured, replaced, stage_of

Store = dict[int, list[KeyValue]]
"""Frame to keys and values [2B, heads, tokens of a frame, head_dim] of every block, keys without temporal position."""


@dataclasses.dataclass
class WorldKV(Configured):
    """It has no settings. It acts on the prefill of HY-WorldPlay's transformer."""

    sweep: ClassVar[tuple[str, ...]] = ("",)
    computed: None = dataclasses.field(default=None, init=False)
    _store: Store = dataclasses.field(default_factory=dict, init=False)
    _frames: list[int] = dataclasses.field(default_factory=list, init=False)

    def begin(self) -> None:
        """Nothing is stored."""
        self._store = {}

    @contextmanager
    def applied(self, model: WorldModel, module: nn.Module) -> Iterator[None]:
        """See `Rule.applied`.

        Raises:
            StateError: another architecture.
        """
        owner, method = stage_of(model, module, "prefill")
        selector = getattr(module, "selector", None)
        if not isinstance(owner, WorldPlayTransformer) or selector is None:
            raise StateError("WorldKV has no adapter for this model", where=type(owner).__name__, why="not WorldPlay's")
        hook = selector.register_forward_hook(self._selected)
        try:
            with replaced(owner, method, self._prefill(owner)):
                yield
        finally:
            hook.remove()

    def _selected(self, selector: nn.Module, args: Any, frames: Tensor) -> None:
        self._frames = [int(frame) for frame in device_to_host.to_host(frames)]

    def _prefill(self, owner: WorldPlayTransformer) -> Callable[..., list[KeyValue]]:
        def stored(
            latents: Tensor,
            timestep: Tensor,
            actions: Tensor,
            extrinsics: Tensor,
            intrinsics: Tensor,
            text: Sequence[KeyValue],
        ) -> list[KeyValue]:
            chunk = owner.config.chunk_frames
            for first in range(0, len(self._frames), chunk):
                part = slice(first, first + chunk)
                if any(frame not in self._store for frame in self._frames[part]):
                    known = [frame for frame in self._frames[:first] if frame in self._store]
                    conditions = (timestep[:, part], actions[:, part], extrinsics[:, part], intrinsics[:, part])
                    self._encode(owner, self._frames[part], known, latents[:, :, part], conditions, text)
            return gathered(owner, self._store, self._frames)

        return stored

    def _encode(
        self,
        owner: WorldPlayTransformer,
        frames: Sequence[int],
        known: Sequence[int],
        latents: Tensor,
        conditions: tuple[Tensor, ...],
        text: Sequence[KeyValue],
    ) -> None:
        """Store the keys and values of frames, computed behind those of the `known` ones."""
        timestep, actions, extrinsics, intrinsics = conditions
        token_conditions = owner._conditions(timestep, actions, extrinsics, intrinsics, len(known))
        context = gathered(owner, self._store, known) if known else [None] * len(owner.double_blocks)
        tokens = owner.img_in(latents)
        per_frame = owner.config.tokens_per_frame
        found: list[list[KeyValue]] = [[] for _ in frames]
        cosine, sine = token_conditions.rope
        for block, text_entry, context_entry in zip(owner.double_blocks, text, context, strict=True):
            tokens, key, value = block(tokens, token_conditions, text_entry, context_entry)
            key = _rotated(key, (cosine, -sine))
            for each, *pair in zip(found, key.split(per_frame, 2), value.split(per_frame, 2), strict=True):
                each.append(KeyValue(*pair))
        self._store.update(zip(frames, found, strict=True))


def gathered(owner: WorldPlayTransformer, store: Store, frames: Sequence[int]) -> list[KeyValue]:
    """Stored keys and values of frames in every block, at temporal positions 0, 1, ... ."""
    first = store[frames[0]][0].key
    table = rope_table(owner.config, len(frames), 0, first.device, wide(first.dtype))
    found = []
    for index in range(len(owner.double_blocks)):
        key, value = (torch.cat([store[frame][index][part] for frame in frames], 2) for part in (0, 1))
        found.append(KeyValue(_rotated(key, table), value))
    return found


def _rotated(key: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Keys [2B, heads, N, head_dim] with the rows of the RoPE branch, the first half, rotated."""
    rope, prope = key.chunk(2)
    return torch.cat([apply_rope(rope, table), prope])
