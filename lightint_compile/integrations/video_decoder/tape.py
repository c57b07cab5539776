"""What a streaming decoder remembers between two chunks, and how its parts read and write it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

DecoderState = dict[str, Tensor]
"""Tensors by the name of the part that keeps them: last frames of causal convolutions, keys and values of attention.

It is a value: a call takes one and gives a new one, and changes neither. So a state is forked by keeping it, and is
copied, moved and saved as any dictionary of tensors.
"""


class Tape:
    """The state that a running call was given, and the one that it makes.

    It is empty between calls. It carries the state past the forwards of a library's blocks, which have no argument
    for it. So one call of a decoder runs at a time; ``turn`` is held by the one that does.
    """

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self._given: Mapping[str, Tensor] | None = None
        self._made: DecoderState = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy begins empty, with a turn of its own."""
        return Tape, ()

    @property
    def is_first(self) -> bool:
        """Whether the running call decodes the first frames of a video."""
        return self._given is None

    def start(self, given: Mapping[str, Tensor] | None) -> None:
        """Begin a call with the state that it was given."""
        self._given, self._made = given, {}

    def finish(self) -> DecoderState:
        """The state that the call made; the tape is empty again."""
        made = self._made
        self._given, self._made = None, {}
        return made

    def take(self, name: str) -> Tensor | None:
        """What a part kept at the end of the chunk before; ``None`` in the first chunk."""
        return None if self._given is None else self._given[name]

    def put(self, name: str, kept: Tensor) -> None:
        """Keep what a part will need of this chunk."""
        self._made[name] = kept
