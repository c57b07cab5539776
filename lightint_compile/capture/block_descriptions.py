"""What tells blocks apart for whoever traces them: everything that is reached from a block, as text.

Two blocks with the same text have the same attributes, of the same types, with equal constants, the same classes of
modules, hooks, layouts of tensors and functions, and the same of these are one object. So a trace of one is a trace of
the other, unless their code asks which object a block is.
"""

from __future__ import annotations

import enum
import functools
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

_PLAIN = (
    *(bool, int, float, complex, str, bytes, types.NoneType, types.EllipsisType, range, slice),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
)
_BY_IDENTITY = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.CodeType)
_LISTS = (list, tuple, deque)
_DICTS = (dict, OrderedDict)


class Descriptions:
    """The text of each of several blocks, by the block's identity; what several of them reach is named by its own.

    Args:
        blocks: they live as long as this.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        reached = Counter(each for block in blocks for each in _reached(block))
        self._shared = {each for each, times in reached.items() if times > 1}
        self._texts: dict[int, str] = {}
        for block in blocks:
            self._texts[id(block)] = ";".join(_Walk(self._shared).of(block))

    def of(self, value: object) -> str | None:
        """The text of a block; ``None`` for any other object."""
        return self._texts.get(id(value))


def _reached(block: nn.Module) -> Iterable[int]:
    walk = _Walk(frozenset())
    list(walk.of(block))
    return walk.places


class _Walk:
    """One way through everything that is reached from an object, which is met once.

    Attributes:
        places: the identity of what was met, with its number; plain values are not among it.
    """

    def __init__(self, shared: Iterable[int]) -> None:
        self._shared = shared
        self.places: dict[int, int] = {}

    def of(self, value: Any) -> Iterator[str]:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, enum.Enum):
            yield f"{_named(kind)}={value!r}"
        elif id(value) in self.places:
            yield f"#{self.places[id(value)]}"
        else:
            self.places[id(value)] = len(self.places)
            if id(value) in self._shared or isinstance(value, _BY_IDENTITY):
                yield f"@{id(value)}"
            else:
                yield _named(kind)
                yield from self._inside(value, kind)

    def _inside(self, value: Any, kind: type) -> Iterator[str]:
        if isinstance(value, torch.Tensor):
            layout = (value.dtype, value.device, value.layout, value.requires_grad, value.is_leaf, tuple(value.shape))
            yield f"{layout} {value.stride() if value.layout is torch.strided else ''}"
            yield from self.of(vars(value))
        elif kind in _LISTS or (isinstance(value, tuple) and not hasattr(value, "__dict__")):
            yield from self._items(value)
        elif kind in _DICTS:
            yield from self._items([each for item in value.items() for each in item])
        elif kind in (set, frozenset):
            yield from sorted("".join(_Walk(self._shared).of(each)) for each in value)
        elif isinstance(value, types.MethodType):
            yield from self._items((value.__func__, value.__self__))
        elif kind is functools.partial:
            yield from self._items((value.func, value.args, value.keywords))
        elif _holds_attributes_alone(kind):
            yield from self.of(vars(value))
        else:
            yield f"@{id(value)}"

    def _items(self, values: Sequence[Any]) -> Iterator[str]:
        yield "("
        for value in values:
            yield from self.of(value)
        yield ")"


def _holds_attributes_alone(kind: type) -> bool:
    """Whether all that an object of this class holds is in its dictionary: it has no slots, and no base of C's."""
    bases = [each for each in kind.__mro__ if each is not object]
    return not hasattr(kind, "__slots__") and all(each.__flags__ & _OF_PYTHON for each in bases)


_OF_PYTHON = 1 << 9
"""``Py_TPFLAGS_HEAPTYPE``: set of classes that a class statement makes, and of few of C's."""


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}@{id(kind)}"
