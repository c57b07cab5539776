"""Dense or sparse: predicted times from a handful of rates per device, measured once and kept on disk.

Both kinds of attention are taken as waves of programs: a program handles 128 queries of one head, and as many run at a
time as the device has multiprocessors. Sparse attention also reads queries, keys and values once more, to pool them,
and takes at least as long as the host needs for its launches. Sparse wins only by a margin that covers the spread of
the model, so that choosing it never loses. Deciding is host arithmetic: nothing is measured, read or synchronised on
the way.

Rates come from :func:`measure` where it ran on this machine, else from the table of known devices, else from a guess
that leaves dense attention in place unless much is skipped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.read_back import UnreadableError, of_type, read_back
from lightint_compile.torch_compat import cache_dir

_PROGRAM = 128
_FEWEST_BLOCKS = 7
"""Blocks that the default neighbourhood keeps whatever the density."""
_SELECTION = 60.0
"""Microseconds of scoring and choosing blocks and of starting the attention kernel."""
_MODEL = 4
"""Counts up when rates mean something else, so that older ones on disk are not read."""
_FASTEST = 1.1
"""Rate of sparse attention over that of dense attention beyond which a measurement is noise."""
MARGIN = 0.92
"""Sparse attention is chosen when its predicted time is below this share of the dense one."""


@dataclass(frozen=True)
class Rates:
    """What one device does in float16 or bfloat16 (float32 on a CPU).

    Attributes:
        dense_fixed: microseconds of a dense call that has next to nothing to compute.
        sparse_fixed: microseconds that the host takes to launch a sparse call; the device waits for it at least.
        dense_rate, sparse_rate: TFLOP/s of full waves, head_dim 128.
        narrow: factor of both rates at head_dim 64 and below.
        pool_rate: bytes of queries and keys over the time of pooling and selection, GB/s; values are pooled in it too.
        units: programs that run at a time.
    """

    dense_fixed: float
    dense_rate: float
    sparse_fixed: float
    sparse_rate: float
    pool_rate: float
    units: int
    narrow: float = 0.75


KNOWN = {
    ("H200", "hopper"): Rates(24.0, 715.0, 85.0, 755.0, 640.0, 132),
    ("H200", "portable"): Rates(24.0, 715.0, 100.0, 320.0, 640.0, 132),
    ("H100", "hopper"): Rates(24.0, 715.0, 85.0, 755.0, 640.0, 132),
    ("H100", "portable"): Rates(24.0, 715.0, 100.0, 320.0, 640.0, 132),
}
"""Rates by part of the device's name and implementation; H100 measured (docs/measurements.md), H200, which has the same
multiprocessors and a faster memory, after it."""

CAPABILITY = {"H200": (9, 0), "H100": (9, 0)}
"""Compute capability by part of the device's name."""

FLOAT32, TF32, PARTS = 48.0, 334.0, 229.0
"""TFLOP/s of float32 products: as they are, in TF32, and over weights in 16 bits in three parts, which count once.
Those of an H200, which multiplies as an H100 does (docs/measurements.md)."""

_UNKNOWN_GPU = Rates(20.0, 150.0, 300.0, 75.0, 500.0, 108)
_CPU = Rates(100.0, 0.1, 1000.0, 0.065, 2.0, 1, narrow=1.0)
_MANY_CORES = replace(_CPU, sparse_rate=0.042)
"""Only the ratio of the two rates matters; with many cores skipping loses more of it (docs/measurements.md)."""


def prefers_sparse(
    device: torch.device | str,
    dtype: torch.dtype,
    batch: int,
    heads: int,
    head_dim: int,
    query_tokens: int,
    key_tokens: int,
    density: float,
    implementation: str | None = None,
    *,
    host_hidden: bool = False,
) -> bool:
    """Whether block-sparse attention is expected to beat dense attention by :data:`MARGIN`.

    Args:
        density: kept fraction of all keys, a prefix included.
        implementation: the sparse implementation that would run; None: the best of the device.
        host_hidden: the device will not wait for the host's launches, as when a CUDA graph is replayed.
    """
    rates = rates_of(torch.device(device), implementation)
    shape = (batch * heads, head_dim, query_tokens, key_tokens)
    width = dtype.itemsize
    if host_hidden:
        rates = replace(rates, sparse_fixed=0.0)
    return sparse_time(rates, *shape, density, width) < MARGIN * dense_time(rates, *shape)


def dense_time(rates: Rates, rows: int, head_dim: int, query_tokens: int, key_tokens: int) -> float:
    """Predicted microseconds of dense attention; ``rows`` is batch times heads."""
    return rates.dense_fixed + _wave_time(rates, rates.dense_rate, rows, head_dim, query_tokens, key_tokens)


def sparse_time(
    rates: Rates, rows: int, head_dim: int, query_tokens: int, key_tokens: int, density: float, width: int = 2
) -> float:
    """Predicted microseconds of sparse attention with pooling and selection, ``width`` bytes an element."""
    kept = min(max(density * key_tokens, _FEWEST_BLOCKS * _PROGRAM), key_tokens)
    pooled = rows * head_dim * (query_tokens + key_tokens) * width / rates.pool_rate / 1e3
    device = _SELECTION + pooled + _wave_time(rates, rates.sparse_rate, rows, head_dim, query_tokens, kept)
    return max(rates.sparse_fixed, device)


def _wave_time(rates: Rates, rate: float, rows: int, head_dim: int, query_tokens: int, key_tokens: float) -> float:
    waves = math.ceil(rows * math.ceil(query_tokens / _PROGRAM) / rates.units)
    flops = 4.0 * waves * rates.units * _PROGRAM * key_tokens * head_dim
    return flops / (rate * (1.0 if head_dim > 64 else rates.narrow)) / 1e6


class Origin(StrEnum):
    """Where rates come from, best first."""

    MEASURED = "measured on this machine"
    KNOWN = "measured on another machine with this device"
    GUESSED = "guessed"


_assumed: ContextVar[str | None] = ContextVar("lightint assumed device", default=None)


@contextmanager
def assuming(name: str) -> Iterator[str]:
    """Decide for a device that need not be here, by the rates shipped for it, while the context lasts.

    Args:
        name: ``h100`` or another device of :data:`KNOWN`, in any case. Gives the name as it is known.

    Raises:
        OptionError: no rates are shipped for it.
    """
    known = list(dict.fromkeys(part for part, _ in KNOWN))
    if name.upper() not in known:
        fix = did_you_mean(name, [part.lower() for part in known])
        raise OptionError(f"no rates are shipped for the device {name!r}", where="device", fix=fix)
    token = _assumed.set(name.upper())
    try:
        yield name.upper()
    finally:
        _assumed.reset(token)


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of the device that is decided for: the assumed one, else this one; ``None`` without CUDA."""
    assumed = _assumed.get()
    if assumed is not None:
        return CAPABILITY[assumed]
    there = device.type == "cuda" and torch.cuda.is_available() and not torch.version.hip
    return torch.cuda.get_device_capability(device) if there else None


def kind_of(device: torch.device) -> str:
    """The type of the device that is decided for."""
    return device.type if _assumed.get() is None else "cuda"


def rates_of(device: torch.device, implementation: str | None = None) -> Rates:
    """Measured rates of a device where there are some, else known ones, else a guess."""
    return _rates(device, implementation)[0]


def origin_of(device: torch.device, implementation: str | None = None) -> Origin:
    """Where :func:`rates_of` has its numbers from."""
    return _rates(device, implementation)[1]


def fingerprint() -> str:
    """A hash of every rate that a decision here may come from: it changes when :func:`prefers_sparse` may answer anew.

    It covers the CPU with the thread count at hand and all visible CUDA devices, with each of their implementations.
    """
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    implementations = (None, "gather", "portable", "hopper")
    rates = [asdict(rates_of(device, name)) for device in devices for name in implementations]
    constants = (_MODEL, MARGIN, _PROGRAM, _FEWEST_BLOCKS, _SELECTION)
    return hashlib.sha256(json.dumps([constants, rates]).encode()).hexdigest()[:16]


def _rates(device: torch.device, implementation: str | None) -> tuple[Rates, Origin]:
    assumed = _assumed.get()
    if assumed is not None:
        return KNOWN[assumed, "portable" if implementation == "portable" else "hopper"], Origin.KNOWN
    return _kept_rates(device, implementation, torch.get_num_threads())


@functools.lru_cache(maxsize=64)
def _kept_rates(device: torch.device, implementation: str | None, _threads: int) -> tuple[Rates, Origin]:
    path = _path(device, implementation)
    try:
        return read_back(path, lambda data: of_type(Rates, data["rates"])), Origin.MEASURED
    except (OSError, UnreadableError):
        return _known(device, implementation)


def _known(device: torch.device, implementation: str | None) -> tuple[Rates, Origin]:
    if device.type != "cuda":
        return (_CPU if torch.get_num_threads() <= 2 else _MANY_CORES), Origin.GUESSED
    name = torch.cuda.get_device_name(device)
    for (part, kind), rates in KNOWN.items():
        if part in name and kind == (implementation or "hopper"):
            return rates, Origin.KNOWN
    return _UNKNOWN_GPU, Origin.GUESSED


def _path(device: torch.device, implementation: str | None) -> Path:
    """Where the rates of this device, these versions and this implementation are kept."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {torch.get_num_threads()} threads"
    versions = f"{_MODEL} {torch.__version__} {_triton_version()} {implementation or 'best'}"
    digest = hashlib.sha256(f"{name} {versions}".encode()).hexdigest()[:16]
    return kept_folder() / f"{digest}.json"


def kept_folder() -> Path:
    """Where measured rates are kept."""
    return Path(cache_dir()) / "lightint" / "cost"


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "no triton"
    return str(triton.__version__)


def measure(device: torch.device | str) -> Rates:
    """Measure a device in about two seconds, keep the rates on disk, and use them from now on.

    The best implementation for head_dim 128 in bfloat16 (float32 on a CPU) is measured; it waits for the device.
    """
    from . import planning

    device = torch.device(device)
    probe = _Probe(device)
    rates = probe.rates()
    for implementation in (None, probe.implementation):
        path = _path(device, implementation)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rates": asdict(rates)}), encoding="utf-8")
    _kept_rates.cache_clear()
    planning.forget()
    return rates


class _Probe:
    """Times of a few calls, and the rates that explain them."""

    def __init__(self, device: torch.device) -> None:
        from .dispatch import implementation

        self.device, gpu = device, device.type == "cuda"
        self.heads, self.head_dim = (16, 128) if gpu else (4, 64)
        self.large = (16, 64, 32) if gpu else (8, 32, 16)
        self.dtype = torch.bfloat16 if gpu else torch.float32
        self.units = torch.cuda.get_device_properties(device).multi_processor_count if gpu else 1
        self.implementation = str(implementation(self._tokens((4, 8, 4))))

    def rates(self) -> Rates:
        """Solve for each rate with the others known; equations are those of the predictions."""
        small = (4, 8, 16)
        dense_rate, dense_fixed = self._line(
            (self._work(small, 1.0), self._dense(small)), (self._work(self.large, 1.0), self._dense(self.large))
        )
        thin, full = (self._sparse(self.large, density) for density in (0.2, 0.9))
        sparse_rate, rest = self._line((self._work(self.large, 0.2), thin), (self._work(self.large, 0.9), full))
        sparse_rate = min(sparse_rate, _FASTEST * dense_rate)
        tiny = self._sparse(small, 0.5)
        pool_rate = self._bytes(self.large) / max(rest - _SELECTION, 1.0) / 1e3
        narrow = 1.0 if self.head_dim <= 64 else 0.75
        return Rates(dense_fixed, dense_rate / 1e6, tiny, sparse_rate / 1e6, pool_rate, self.units, narrow)

    @staticmethod
    def _line(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
        """Rate and fixed time of ``time = fixed + work / rate`` through two points; noise makes neither negative."""
        if second[1] < 1.2 * first[1]:
            return second[0] / second[1], 1.0
        rate = (second[0] - first[0]) / (second[1] - first[1])
        return rate, max(first[1] - first[0] / rate, 1.0)

    def _work(self, grid: tuple[int, int, int], density: float) -> float:
        tokens = math.prod(grid)
        programs = self.heads * math.ceil(tokens / _PROGRAM)
        kept = min(max(density * tokens, _FEWEST_BLOCKS * _PROGRAM), tokens)
        return 4.0 * math.ceil(programs / self.units) * self.units * _PROGRAM * kept * self.head_dim

    def _bytes(self, grid: tuple[int, int, int]) -> float:
        return 2.0 * math.prod(grid) * self.heads * self.head_dim * self.dtype.itemsize

    def _tokens(self, grid: tuple[int, int, int]) -> Tensor:
        shape = (1, math.prod(grid), self.heads, self.head_dim)
        return torch.randn(shape, device=self.device, dtype=self.dtype).transpose(1, 2)

    def _dense(self, grid: tuple[int, int, int]) -> float:
        query, key, value = (self._tokens(grid) for _ in range(3))
        return self._time(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value))

    def _sparse(self, grid: tuple[int, int, int], density: float) -> float:
        from . import api

        query, key, value = (self._tokens(grid) for _ in range(3))

        def call() -> Any:
            with api.using(self.implementation):
                return api.sparse_attention(query, key, value, query_grid=grid, key_grid=grid, density=density)

        return self._time(call)

    def _time(self, call: Callable[[], object]) -> float:
        """Microseconds of the fastest of a few calls, launches included: what a quiet machine would take."""
        times = []
        for _ in range(12):
            start = time.perf_counter()
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(1e6 * (time.perf_counter() - start))
        return min(times[2:])
