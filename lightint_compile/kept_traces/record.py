"""A kept trace on disk: beside the program that it calls, with a hash in front."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightint_compile.kept_traces.guards import packed
from lightint_compile.kept_traces.surroundings import Sources
from lightint_compile.trace_parts import Traced, UnkeepableError

_HASH = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Trace:
    """A trace as it is kept.

    Attributes:
        program: the key of the compiled program.
        traced: what Dynamo made, without the functions it traced.
        says: what the guards on arguments are about, and what all others are, as hashes.
        sources: what it was traced from.
        sizes: as of :class:`~lightint_compile.compiled.CompiledGraph`.
        inputs: where the graph's tensors come from, as Dynamo's sources.
    """

    program: str
    traced: Traced
    says: tuple[str, str]
    sources: Sources
    sizes: Mapping[str, tuple[str, tuple[int | None, ...]]]
    inputs: tuple[Any, ...]

    def to_bytes(self) -> bytes:
        """What is written.

        Raises:
            UnkeepableError: an object of this process is part of it.
        """
        content = packed(self)
        return hashlib.sha256(content).digest() + content

    @classmethod
    def from_bytes(cls, content: bytes) -> Trace:
        """The inverse of :meth:`to_bytes`.

        Raises:
            UnkeepableError: the bytes are not what was written.
        """
        expected, rest = content[:_HASH], content[_HASH:]
        if hashlib.sha256(rest).digest() != expected:
            raise UnkeepableError("the file is damaged")
        try:
            found = pickle.loads(rest)
        except Exception as error:  # a class of it is gone, or has other fields by now
            raise UnkeepableError("the file is not of this version") from error
        if not isinstance(found, cls):
            raise UnkeepableError("the file is damaged")
        return found
