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


Rows = Callable[[], Tensor | None]


def _kept(spelling: Callable[[Tensor, Tensor], Tensor], twice: bool) -> Callable[..., Any]:
    """A result that shows the prompt's rows, computed in two places, the second one spelled."""

    def result(x: Tensor, rows: Rows, given: Tensor, weight: Tensor, own: Tensor) -> Any:
        first, second = rows(), rows()
        if first is None or second is None:
            return x, None
        again = spelling(second, x)
        return (x, first, again) if twice else (x + first.mean(), again)

    return result


#: What a call returns, of the video ``x``, the rows of the prompt (computed anew when asked for, as a model that has
#: the branch in two places does), an input, a parameter and a buffer.
RESULTS: dict[str, Callable[[Tensor, Rows, Tensor, Tensor, Tensor], Any]] = {
    "one": lambda x, rows, given, weight, own: x,
    "twice": lambda x, rows, given, weight, own: (x, x),
    "view": lambda x, rows, given, weight, own: (x, x[:, 0]),
    "views": lambda x, rows, given, weight, own: (x[:, :1], x.flatten(1), x.transpose(0, 1)),
    "input": lambda x, rows, given, weight, own: (x, given),
    "input-view": lambda x, rows, given, weight, own: (given[:1], x, given.transpose(0, 1)),
    "weight": lambda x, rows, given, weight, own: (x, weight),
    "buffer": lambda x, rows, given, weight, own: (x, own),
    "dict": lambda x, rows, given, weight, own: {"sample": x, "most": x.amax(), "none": None},
    "nested": lambda x, rows, given, weight, own: ([x, x + 1], {"step": 3, "parts": x.chunk(2, -1)}),
    "empty": lambda x, rows, given, weight, own: (x, x[:0], x.amax()),
    **{name: _kept(spelling, False) for name, spelling in _SPELLINGS.items()},
    **{f"{name}-twice": _kept(spelling, True) for name, spelling in _SPELLINGS.items()},
}
