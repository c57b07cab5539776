"""What a trace of Dynamo's is made of, as plain data: the call, the code, and the conditions under which it holds.

Like ``errors`` this is a bottom rung of the import ladder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any


class UnkeepableError(Exception):
    """A trace that cannot be kept, and why."""


@dataclass(frozen=True)
class Frame:
    """A call of a function that Dynamo is about to trace.

    Attributes:
        backend: what ``torch.compile`` made of the backend's name and options.
    """

    code: CodeType
    globals: dict[str, Any]
    locals: dict[str, Any]
    builtins: dict[str, Any]
    closure: Any
    backend: Any
    cache_entries: Sequence[Any] = ()

    @property
    def stands_alone(self) -> bool:
        """Whether the function uses no variables of one that it was made in."""
        return not set(self.code.co_freevars) - {"__class__"}


PlainGuard = tuple[str, Any, tuple[Any, ...], tuple[tuple[str, Any], ...]]
"""A guard's kind, its source, and further arguments by place and by name."""


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a trace holds, as Dynamo states them.

    Attributes:
        guards: without what lives in this process.
        layouts: sizes and strides of tensors by source, ``None`` where they may change.
        ordered: the dictionaries whose order counts.
        sizes: the conditions on sizes, as Dynamo wrote them.
        state: the switches of the process.
    """

    guards: tuple[PlainGuard, ...]
    layouts: tuple[tuple[Any, dict[str, Any]], ...]
    ordered: tuple[Any, ...]
    sizes: Any
    state: str


@dataclass(frozen=True)
class Traced:
    """What Dynamo made of a call.

    Attributes:
        bytecode: of the code that is run instead.
        program: the name under which it finds the compiled graph.
        imports: the modules that it and the guards name, by alias.
        conditions: see :class:`Conditions`.
        codes: every Python function that was traced.
    """

    bytecode: bytes
    program: str
    imports: dict[str, str]
    conditions: Conditions
    codes: tuple[CodeType, ...]


def names_in(code: CodeType) -> Iterator[str]:
    """The names of globals and attributes that code uses, and the functions that are made in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)
