"""Inputs that calls write to, such as caches of keys and values, as another setting would have left them.

The caller's buffers are written by one setting alone. Any other that is tried beside it gets copies: what it left there
itself in the calls before, as long as the caller's buffer still has what the last call left, else what is in it now.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Place = tuple[int, torch.Size, tuple[int, ...]]
"""Where a tensor lies."""


class OwnBuffers:
    """The buffers of one caller, and those of every setting that is tried beside."""

    def __init__(self) -> None:
        self._left: dict[Place, Tensor] = {}
        self._own: dict[tuple[Hashable, Place], Tensor] = {}
        self._before: dict[Place, Tensor] = {}

    def begin(self, args: Sequence[Any], written: Sequence[int]) -> bool:
        """Look at the inputs of a call that writes to ``args`` at the positions ``written``.

        Returns:
            Whether it goes on from an earlier call: all buffers have what that left in them.
        """
        self._before = {_place(args[position]): _copy(args[position]) for position in written}
        known = {place: buffer for _, place, buffer in self._known(args)}
        for place, buffer in known.items():
            if place in self._left and not torch.equal(buffer, self._left[place]):
                self._forget(place)
        return bool(known) and all(place in self._left for place in known)

    def _known(self, args: Sequence[Any]) -> Iterator[tuple[int, Place, Tensor]]:
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                place = _place(value)
                if place in self._left or place in self._before:
                    yield position, place, value

    def _forget(self, place: Place) -> None:
        del self._left[place]
        for key in [key for key in self._own if key[1] == place]:
            del self._own[key]

    def given(self, setting: Hashable, args: Sequence[Any]) -> list[Any]:
        """``args`` with the buffers of ``setting``, which the call that gets them may write to."""
        own = list(args)
        for position, place, _ in self._known(args):
            key = (setting, place)
            if key not in self._own and place in self._before:
                self._own[key] = _copy(self._before[place])
            own[position] = self._own.get(key, own[position])
        return own

    def end(self, args: Sequence[Any], written: Sequence[int]) -> None:
        """What the caller's buffers have once all settings have run."""
        for position in written:
            self._left[_place(args[position])] = _copy(args[position])
        self._before = {}

    def put_back(self, args: Sequence[Any], written: Sequence[int]) -> None:
        """Undo what was written to the caller's buffers since :meth:`begin`."""
        for position in written:
            args[position].copy_(self._before[_place(args[position])])


def _place(tensor: Tensor) -> Place:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
