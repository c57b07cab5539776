"""What a drawn world returns besides the video: views, duplicates, inputs, weights, and what the memo would keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "text": lambda rows, x: rows,
    "contiguous": lambda rows, x: rows.contiguous(),
    "type_as": lambda rows, x: rows.type_as(x),
    "dropout": lambda rows, x: F.dropout(rows, 0.1, False),
    "einsum": lambda rows, x: torch.einsum("bld->bdl", rows),
    "broadcast": lambda rows, x: torch.broadcast_tensors(rows, x.new_zeros(1, 1, 1))[0],
    "sum_to_size": lambda rows, x: rows.sum_to_size(rows.shape),
    "expand": lambda rows, x: rows.expand(rows.shape),
    "reshape": lambda rows, x: rows.reshape(rows.shape[0], -1),
    "to": lambda rows, x: rows.to(x.dtype),
}


def result_of(
    how: str, x: Tensor, rows: Callable[[], Tensor | None], given: Tensor, weight: Tensor, own: Tensor
) -> Any:
    """The result of a call.

    Args:
        x: the video.
        rows: computes the prompt's rows, anew at every call, as a model does that has the branch in two places.
        given: an input.
        weight, own: a parameter and a buffer of the model.
    """
    plain: dict[str, Callable[[], Any]] = {
        "one": lambda: x,
        "twice": lambda: (x, x),
        "view": lambda: (x, x[:, 0]),
        "views": lambda: (x[:, :1], x.flatten(1), x.transpose(0, 1)),
        "input": lambda: (x, given),
        "input-view": lambda: (given[:1], x, given.transpose(0, 1)),
        "weight": lambda: (x, weight),
        "buffer": lambda: (x, own),
        "dict": lambda: {"sample": x, "mean": x.mean(), "none": None},
        "nested": lambda: ([x, x + 1], {"step": 3, "parts": x.chunk(2, -1)}),
        "empty": lambda: (x, x[:0], x.sum()),
    }
    if how in plain:
        return plain[how]()
    spelling, _, twice = how.partition("-")
    first, second = rows(), rows()
    if first is None or second is None:
        return x, None
    again = _SPELLINGS[spelling](second, x)
    return (x, first, again) if twice else (x + first.sum(), again)
