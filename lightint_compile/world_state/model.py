"""Which model a state belongs to: its class, what its weights are called, and a few of their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.errors import InputError

SAMPLED = 8
"""Weights of which a few numbers are looked at."""


@dataclass(frozen=True)
class Model:
    """What tells models apart.

    Attributes:
        name: of the class or function.
        weights: how many there are.
        form: a hash of their names, sizes and dtypes.
        values: a few numbers of a few of them, spread over all.
    """

    name: str
    weights: int
    form: str
    values: tuple[tuple[float, ...], ...]


def model_of(subject: Any, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """:class:`Model` as plain data."""
    named = list(subject.named_parameters()) if isinstance(subject, nn.Module) else []
    form = repr([(name, tuple(each.shape), str(each.dtype)) for name, each in named])
    name = type(subject).__qualname__ if isinstance(subject, nn.Module) else getattr(subject, "__qualname__", "")
    looked_at = parameters[:: max(len(parameters) // SAMPLED, 1)]
    values = tuple(_numbers(each) for each in looked_at if each.numel())
    return asdict(Model(name, len(named), hashlib.sha256(form.encode()).hexdigest(), values))


def _numbers(weight: Tensor) -> tuple[float, ...]:
    with torch.no_grad():
        flat = weight.detach().reshape(-1)
        return tuple(flat[:: max(len(flat) // 4, 1)].double().tolist())


def check_model(saved: Model, here: Model) -> None:
    """Raise :class:`InputError` unless both are one model."""
    if saved == here:
        return
    why = f"it is of {saved.name} with {saved.weights} weights, and this is {here.name} with {here.weights}"
    if (saved.name, saved.weights) == (here.name, here.weights):
        what = "sizes of the weights" if saved.form != here.form else "values of the weights"
        why = f"both are {here.name} with {here.weights} weights, and the {what} differ"
    fix = "load it into the model that it was saved from, with the same weights"
    raise InputError("the state is of another model", where="compiled", why=why, fix=fix)
