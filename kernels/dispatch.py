"""Which implementation runs a call, and why: chosen by the device's capability, and visible to the caller.

The order is Hopper Gluon, portable Triton, then plain torch. Whether sparse attention runs at all is the cost model's
decision, so that sparse never loses; :func:`using` overrides both, for tests and benchmarks.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor

from lightint_compile.errors import OptionError, did_you_mean

from .skipped import Selection
from .tiles import Layout

log = logging.getLogger(__name__)
NAMES = ("dense", "reference", "gather", "portable", "hopper")
_forced: ContextVar[str | None] = ContextVar("lightint_forced_implementation", default=None)


class Implementation(Protocol):
    """A module that runs the steps of sparse attention; the contracts are those of ``reference``."""

    pool_spans: Callable[..., list[Tensor]]
    select_blocks: Callable[..., Selection]
    attend: Callable[..., Tensor]
    attend_all: Callable[..., Tensor]


class Choice(str):
    """The name of an implementation, with the reason for it."""

    reason: str

    def __new__(cls, name: str, reason: str) -> Choice:
        """A choice that compares and prints as its name."""
        choice = super().__new__(cls, name)
        choice.reason = reason
        return choice


@contextmanager
def using(name: str) -> Iterator[None]:
    """Force an implementation inside the block (``dense`` skips sparsity, the others skip the cost model).

    Raises:
        OptionError: a name that is not one of :data:`NAMES`.
    """
    if name not in NAMES:
        raise OptionError(f"no implementation is called {name!r}", fix=did_you_mean(name, NAMES))
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """The implementation that :func:`using` forces here."""
    return _forced.get()


def implementation(query: Tensor, tile: Sequence[int] = (4, 8, 4)) -> Choice:
    """The implementation that runs block-sparse attention for such a query (device, dtype, head_dim) and tile."""
    forced = _forced.get()
    if forced and forced != "dense":
        return Choice(forced, "forced by the caller")
    return _by_capability(query.device, query.dtype, query.shape[3], tuple(tile))


@lru_cache(maxsize=256)
def _by_capability(device: torch.device, dtype: torch.dtype, head_dim: int, tile: tuple[int, ...]) -> Choice:
    if device.type == "cpu":
        return Choice("gather", "the CPU gathers kept tiles and attends them in batches")
    if device.type != "cuda":
        return Choice("reference", f"no kernel for {device.type} devices")
    obstacle = _portable_obstacle(device, dtype, head_dim)
    if obstacle:
        return Choice("reference", obstacle)
    obstacle = _hopper_obstacle(device, dtype, head_dim, tile)
    if not obstacle:
        return Choice("hopper", "Gluon kernel for sm_90")
    if torch.cuda.get_device_capability(device) == (9, 0):
        _warn_once(
            f"sparse attention on this sm_90 device runs on the portable kernel, at about half the speed: {obstacle}"
        )
    return Choice("portable", obstacle)


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """One warning a process and reason; ``lightint doctor`` and the reports say it again."""
    log.warning(message)


def _portable_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the GPU kernels take bfloat16 and float16, not {dtype}"
    if head_dim not in (64, 96, 128):
        return f"the GPU kernels take head_dim 64, 96 and 128, not {head_dim}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the portable kernel needs sm_80 or later"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return ""


def _hopper_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int, tile: tuple[int, ...]) -> str:
    """Why the Gluon kernel cannot run; it is experimental in Triton, so any failure to load it only means portable."""
    try:
        hopper = importlib.import_module("lightint_compile.kernels.hopper")
        example = torch.empty((1, 1, 0, head_dim), dtype=dtype, device=device)
        return str(hopper.supported(example, tile=tile) or "")
    except Exception as error:
        return f"the Gluon kernel is not available: {type(error).__name__}: {error}"


def load(choice: str) -> Implementation:
    """The module behind a choice."""
    home = {"hopper": "hopper_adapter"}.get(choice, choice)
    return cast(Implementation, importlib.import_module(f"lightint_compile.kernels.{home}"))


def selector(query_pool: Tensor) -> Callable[..., Selection]:
    """The selection that runs for such pools, which are float32 for tokens of any dtype."""
    forced = _forced.get()
    if forced in ("portable", "hopper") or (forced is None and _pools_on_gpu(query_pool)):
        return load("portable").select_blocks
    return load("reference").select_blocks


def _pools_on_gpu(pool: Tensor) -> bool:
    return pool.is_cuda and not _portable_obstacle(pool.device, torch.bfloat16, pool.shape[3] - 1)


def prefers_sparse(
    query: Tensor,
    layout: Layout,
    kept_blocks: int,
    parts: int,
    tile: Sequence[int],
    *,
    min_tokens: int | None = None,
    host_hidden: bool = False,
) -> Choice:
    """``dense`` or the implementation that will run, for one call of sparse attention.

    ``min_tokens``: keys from which the call is sparse; the cost model is not asked then. ``host_hidden``: the device
    will not wait for launches (a CUDA graph is being captured).
    """
    forced = _forced.get()
    if forced == "dense":
        return Choice("dense", "forced by the caller")
    chosen = implementation(query, tile)
    if forced:
        return chosen
    if chosen == "reference":
        return Choice("dense", chosen.reason)
    if min_tokens is not None:
        return chosen if layout.key_tokens >= min_tokens else Choice("dense", f"fewer than {min_tokens} keys")
    batch, heads, tokens, head_dim = query.shape
    shape = (batch, heads, head_dim, tokens, layout.key_tokens)
    kept = kept_fraction(layout, kept_blocks, parts)
    cost = importlib.import_module("lightint_compile.kernels.cost")
    if cost.prefers_sparse(query.device, query.dtype, *shape, kept, str(chosen), host_hidden=host_hidden):
        return chosen
    return Choice("dense", "the cost model expects no gain from skipping blocks")


def kept_fraction(layout: Layout, kept_blocks: int, parts: int) -> float:
    """Share of all keys that a query tile reads, the prefix and the means of all blocks included."""
    visual = layout.key_tokens - layout.prefix
    means = layout.finer(parts).key_blocks if parts else 0
    return min((layout.prefix + kept_blocks / layout.key_blocks * visual + means) / layout.key_tokens, 1.0)
