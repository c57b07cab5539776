"""What a drawn world returns besides the video: views, duplicates, inputs, weights, and what the memo would keep."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class Seen:
    """What a world may return.

    Attributes:
        x: the video.
        rows: computes the prompt's rows anew when asked for, as a model that has the branch in two places does.
        given, weight, own: an argument, a parameter and a buffer.
        cache: an argument that was written in place.
        hidden: the tokens after every block.
    """

    x: Tensor
    rows: Rows
    given: Tensor
    weight: Tensor
    own: Tensor
    cache: Tensor | None = None
    hidden: Sequence[Tensor] = ()


@dataclass
class Video:
    """A result as a dataclass."""

    sample: Tensor
    parts: list[Tensor]
    frames: int
    name: str = "video"


class Pair(NamedTuple):
    """A result as a named tuple."""

    sample: Tensor
    mean: Tensor | None


def _kept(spelling: Callable[[Tensor, Tensor], Tensor], twice: bool) -> Callable[[Seen], Any]:
    """A result that shows the prompt's rows, computed in two places, the second one spelled."""

    def result(seen: Seen) -> Any:
        x, first, second = seen.x, seen.rows(), seen.rows()
        if first is None or second is None:
            return x, None
        again = spelling(second, x)
        return (x, first, again) if twice else (x + first.mean(), again)

    return result


def _changed(seen: Seen) -> Any:
    """The video, changed in place after a view of it was made."""
    y = seen.x * 1.0
    view = y[:, :1]
    y.add_(1.0)
    return y, view, seen.x


def _complex(seen: Seen) -> Any:
    """Complex numbers, a lazy conjugate, and a real view of it."""
    x = seen.x.to(torch.promote_types(seen.x.dtype, torch.float32)) * 1.0
    y = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return y, y.conj(), (y * 1j).conj().resolve_conj(), torch.view_as_real(y)


#: What a call returns of what can be seen.
RESULTS: dict[str, Callable[[Seen], Any]] = {
    "one": lambda s: s.x,
    "twice": lambda s: (s.x, s.x),
    "view": lambda s: (s.x, s.x[:, 0]),
    "views": lambda s: (s.x[:, :1], s.x.flatten(1), s.x.transpose(0, 1)),
    "input": lambda s: (s.x, s.given),
    "input-view": lambda s: (s.given[:1], s.x, s.given.transpose(0, 1)),
    "weight": lambda s: (s.x, s.weight),
    "buffer": lambda s: (s.x, s.own),
    "dict": lambda s: {"sample": s.x, "most": s.x.amax(), "none": None},
    "nested": lambda s: ([s.x, s.x + 1], {"step": 3, "parts": s.x.chunk(2, -1)}),
    "empty": lambda s: (s.x, s.x[:0], s.x.amax()),
    "dataclass": lambda s: Video(s.x, list(s.x.split(1)), s.x.shape[1]),
    "named": lambda s: Pair(s.x, s.x.mean()),
    "ordered": lambda s: OrderedDict(last=s.x[:, -1], sample=s.x, shape=s.x.shape),
    "sizes": lambda s: (s.x, s.x.shape[1], s.x.shape[0] * s.x.shape[1] + 1, s.x.dim() > 2),
    "scalars": lambda s: [s.x.sum(), s.x.amax().reshape(()), s.x.sum().expand(3), s.x.new_tensor(2.0)],
    "complex": _complex,
    "mask": lambda s: (s.x, s.x > 0, s.x.argmax(-1), ~(s.x > 0)),
    "changed": _changed,
    "hidden": lambda s: (s.x, [*s.hidden], [each[:, :1] for each in s.hidden]),
    "cache": lambda s: (s.x, s.cache, None if s.cache is None else s.cache[:, :2]),
    "weight-view": lambda s: (s.weight.mT, s.x, s.weight.detach().flatten()[:3], s.own.unsqueeze(0)),
    **{name: _kept(spelling, False) for name, spelling in _SPELLINGS.items()},
    **{f"{name}-twice": _kept(spelling, True) for name, spelling in _SPELLINGS.items()},
}
