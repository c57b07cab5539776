"""What a denoising step predicted, in whatever it came: copied when it is kept, and put together again."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A prediction taken apart.

    Attributes:
        tensors: copies of its tensors, which nothing else writes to.
        join: takes as many tensors, one after another, and gives the same around them.
    """

    tensors: tuple[Tensor, ...]
    join: Callable[[Iterator[Tensor]], Any]

    @classmethod
    def of(cls, value: Any) -> Prediction:
        """A tensor, or tuples, lists, mappings, dataclasses and plain objects of them; anything else is passed on."""
        if isinstance(value, Tensor):
            return cls((value.clone(),), next)
        children, join = _children(value)
        inner = [cls.of(child) for child in children]
        if join is None:
            return cls((), lambda tensors: value)
        tensors = tuple(tensor for each in inner for tensor in each.tensors)
        return cls(tensors, lambda given: join([each.join(given) for each in inner]))

    def held(self) -> Any:
        """The same again, in tensors of its own."""
        return self.join(tensor.clone() for tensor in self.tensors)

    def along(self, before: Prediction, share: float) -> Any:
        """What lies ``share`` of the way from ``before`` to this behind it; values without a fraction are held."""
        if [each.shape for each in before.tensors] != [each.shape for each in self.tensors]:
            return self.held()
        return self.join(_extrapolated(*pair, share) for pair in zip(self.tensors, before.tensors, strict=True))


def _extrapolated(latest: Tensor, before: Tensor, share: float) -> Tensor:
    if not (latest.is_floating_point() or latest.is_complex()):
        return latest.clone()
    wide = torch.promote_types(latest.dtype, torch.float32)
    return (latest.to(wide) + (latest.to(wide) - before.to(wide)) * share).to(latest.dtype)


def _children(value: Any) -> tuple[list[Any], Callable[[list[Any]], Any] | None]:
    """The parts of a container and what puts them together; ``None`` for a value without parts."""
    parts, spec = pytree.tree_flatten(value, is_leaf=lambda each: each is not value)
    if not spec.is_leaf():
        return parts, partial(_unflattened, spec)
    names = _attributes(value)
    return [_attribute(value, name) for name in names], partial(_with_attributes, value, names) if names else None


def _attributes(value: Any) -> list[Any]:
    """What an object consists of: keys of a mapping of its own kind, fields of a dataclass, attributes with tensors."""
    if isinstance(value, dict):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [each.name for each in dataclasses.fields(value) if hasattr(value, each.name)]
    return [name for name, each in getattr(value, "__dict__", {}).items() if isinstance(each, Tensor)]


def _attribute(value: Any, name: Any) -> Any:
    return value[name] if isinstance(value, dict) else getattr(value, name)


def _with_attributes(value: Any, names: list[Any], parts: list[Any]) -> Any:
    """A copy with other parts, made past its ``__init__`` and a freeze; a mapping sets its attributes itself."""
    made = copy.copy(value)
    for name, part in zip(names, parts, strict=True):
        if isinstance(made, dict):
            made[name] = part
        else:
            object.__setattr__(made, name, part)
    return made


def _unflattened(spec: pytree.TreeSpec, parts: list[Any]) -> Any:
    return pytree.tree_unflatten(parts, spec)
