"""Ways in which a drawn world writes a cache that arrives as an argument, in place, and reads it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SLOTS = 12


def _slice(cache: Tensor, new: Tensor) -> None:
    cache[:, : new.shape[1]] = new


def _index(cache: Tensor, new: Tensor) -> None:
    cache.index_copy_(1, torch.arange(new.shape[1]), new)


def _roll(cache: Tensor, new: Tensor) -> None:
    """The first slot stays, and the others make room for the tokens."""
    count = new.shape[1]
    cache[:, 1:-count] = cache[:, 1 + count :].clone()
    cache[:, -count:] = new


def _moved(cache: Tensor, new: Tensor) -> None:
    """All slots make room at the front."""
    count = new.shape[1]
    cache[:, count:] = cache[:, :-count].clone()
    cache[:, :count] = new


def _halves(cache: Tensor, new: Tensor) -> None:
    """Halves change places, around the tokens."""
    half, count = cache.shape[1] // 2, new.shape[1]
    kept = cache[:, :half].clone()
    cache[:, :half] = cache[:, half:].clone()
    cache[:, half:] = kept
    cache[:, :count].add_(new)


def _put(cache: Tensor, new: Tensor) -> None:
    cache[:, torch.arange(new.shape[1]) + 2] = new


def _scatter(cache: Tensor, new: Tensor) -> None:
    cache.scatter_(1, torch.arange(new.shape[1])[None, :, None].expand(new.shape), new)


def _masked(cache: Tensor, new: Tensor) -> None:
    cache.masked_fill_(torch.arange(cache.shape[1])[:, None] < new.shape[1], 0.0)
    cache.narrow(1, 0, new.shape[1]).add_(new)


def _whole(cache: Tensor, new: Tensor) -> None:
    """The whole cache is written, as a masked update is spelled."""
    padded = F.pad(new, (0, 0, 0, cache.shape[1] - new.shape[1]))
    cache.copy_(torch.where(torch.arange(cache.shape[1])[:, None] < new.shape[1], padded, cache))


def _replaced(cache: Tensor, new: Tensor) -> None:
    """Another tensor takes the place of the cache, which is written to no more."""
    cache.data = torch.cat([cache[:, new.shape[1] :], new], 1)


WRITES: dict[str, Callable[[Tensor, Tensor], None]] = {
    "slice": _slice,
    "index": _index,
    "roll": _roll,
    "moved": _moved,
    "halves": _halves,
    "put": _put,
    "scatter": _scatter,
    "masked": _masked,
    "whole": _whole,
    "data": _replaced,
}


def new_cache(how: str, batch: int, draw: torch.Generator, dtype: torch.dtype, width: int) -> Any:
    """The argument: one tensor ``[batch, SLOTS, width]``, a list of two, or a dict with an end that counts."""

    def tensor() -> Tensor:
        return torch.randn(batch, SLOTS, width, generator=draw).to(dtype)

    if how == "list":
        return [tensor(), tensor()]
    if how in ("dict", "grown"):
        return {"k": tensor(), "v": tensor(), "end": torch.zeros((), dtype=torch.int64)}
    return tensor()


def written(cache: Any, x: Tensor, how: str, start: int) -> Tensor:
    """Tokens ``x [batch, tokens, width]`` written into the cache, and what reading it adds to them."""
    new = x.detach()
    if how == "list":
        for place, each in enumerate(cache):
            _slice(each, new * (place + 1.0))
        return x + sum(each.mean(1, keepdim=True) for each in cache)
    if how == "dict":
        return _through_dict(cache, x, new)
    if how == "grown":
        return _grown(cache, x, new)
    if how == "attend":
        return _attended(cache, x, start)
    WRITES[how](cache, new)
    return x + cache.mean(1, keepdim=True)


def _through_dict(cache: dict[str, Tensor], x: Tensor, new: Tensor) -> Tensor:
    """Slots are written and the end is told by a tensor, as autoregressive models keep it."""
    count = new.shape[1]
    cache["k"][:, -count:] = new
    cache["v"][:, -count:] = new.sin()
    cache["end"].add_(count)
    return F.scaled_dot_product_attention(x, cache["k"], cache["v"]) + 0.01 * cache["end"]


def _grown(cache: dict[str, Tensor], x: Tensor, new: Tensor) -> Tensor:
    """Other tensors take the place of the kept ones, joined from what was there and the tokens."""
    cache["k"] = torch.cat([cache["k"], new], 1)[:, -SLOTS - 3 :]
    cache["v"] = torch.cat([cache["v"], new.sin()], 1)[:, -SLOTS - 3 :]
    return F.scaled_dot_product_attention(x, cache["k"], cache["v"])


def _attended(cache: Tensor, x: Tensor, start: int) -> Tensor:
    """Written at a start that the caller gives as a number; attention reads what is filled."""
    first = max(0, min(start, 4))
    cache[:, first : first + x.shape[1]] = x.detach()
    filled = cache[:, : first + x.shape[1]]
    return x + F.scaled_dot_product_attention(x, filled, filled)
