"""Which model a state belongs to: its class, what its weights and buffers are called, a few numbers of each weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn

from lightint_compile.errors import InputError
from lightint_compile.lowering.weight_samples import samples_of


@dataclass(frozen=True)
class Model:
    """What tells models apart.

    Attributes:
        name: of the class or function.
        weights: how many there are.
        form: a hash of their names, sizes and dtypes, and of those of the buffers, whose numbers may change.
        values: a hash of a few numbers of every weight.
    """

    name: str
    weights: int
    form: str
    values: str


def model_of(subject: Any, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """:class:`Model` as plain data."""
    is_module = isinstance(subject, nn.Module)
    named = chain(subject.named_parameters(), subject.named_buffers()) if is_module else ()
    form = repr([(name, tuple(each.shape), str(each.dtype)) for name, each in named])
    name = type(subject).__qualname__ if is_module else getattr(subject, "__qualname__", "")
    return asdict(Model(name, len(parameters), _hash([form.encode()]), _hash(samples_of(parameters))))


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def check_model(saved: Model, here: Model) -> None:
    """Raise :class:`InputError` unless both are one model."""
    if saved == here:
        return
    why = f"it is of {saved.name} with {saved.weights} weights, and this is {here.name} with {here.weights}"
    if (saved.name, saved.weights) == (here.name, here.weights):
        what = "sizes of weights or buffers" if saved.form != here.form else "values of weights"
        why = f"both are {here.name} with {here.weights} weights, and {what} differ"
    fix = "load it into the model that it was saved from, with the same weights"
    raise InputError("the state is of another model", where="compiled", why=why, fix=fix)
