"""``lightint bench kernels``: block-sparse attention against dense attention and its peers, on this machine.

``sites``: the attention sites of a world model's chunk with the published budgets; every row is one way to compute
them, whole operators with selection and layout and bare kernels on lists that exist already, peers where they are
installed. ``sweep``: self-attention over length and density, sparse attention forced and as the cost model runs it,
called from Python. ``graphs``: the same replayed from CUDA graphs, where the host is out of the way. ``host``: how long
a call keeps the host busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightint_compile.errors import OptionError
from lightint_compile.kernels import api, dispatch
from lightint_compile.kernels.skipped import Means, joined
from lightint_compile.kernels.tiles import Layout
from lightint_compile.models.devices import checked_device

from .about import device_name, write
from .kernel_tables import host_table, site_table, sweep_table
from .peers import Way
from .peers import ways as peer_ways
from .sites import BLOCK, Site, Tensors, square, visual, world_chunk
from .timing import Call, graphed, host_microseconds, milliseconds, paired

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
SMALL = {"heads": 4, "head_dim": 64}

TABLES = ("sites", "sweep", "graphs", "host")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long.

    Attributes:
        device: ``cuda`` or ``cpu``; CUDA where there is one.
        tables: some of :data:`TABLES`.
        lengths: tokens of the sweep, powers of two from 512 on; :data:`LENGTHS` unless given.
        densities: of the sweep.
        seconds: time spent on one figure.
        flex: also FlexAttention with the same block mask, which compiles.
        width: columns of the printed tables.
        json_file: where every figure is written.
    """

    device: str | None = None
    tables: Sequence[str] = TABLES
    lengths: Sequence[int] = ()
    densities: Sequence[float] = DENSITIES
    seconds: float = 0.2
    flex: bool = False
    width: int = 100
    json_file: Path | None = None


def run(options: Settings) -> None:
    """Measure and print.

    Raises:
        DeviceError: the device is not there.
        OptionError: a length of the sweep is no power of two from 512 on.
    """
    for length in options.lengths:
        if length < 512 or length & (length - 1):
            why = f"{length} is no power of two from 512 on"
            raise OptionError("a length does not fit", where="--length", why=why, fix="for example 4096")
    device = checked_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    console = Console(width=options.width)
    console.print(f"{device_name(device)}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}")
    figures: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")}
    if "sites" in options.tables:
        sites = world_chunk() if device.type == "cuda" else [_small_site()]
        figures["sites"] = [_measure_site(site, device, dtype, options, console) for site in sites]
    for name in ("sweep", "graphs"):
        if name in options.tables and (name == "sweep" or device.type == "cuda"):
            figures[name] = _measure_sweep(device, dtype, options, console, in_graphs=name == "graphs")
    if "host" in options.tables and device.type == "cuda":
        figures["host"] = _measure_host(device, dtype, console)
    if options.json_file:
        write(options.json_file, figures, device)


def _small_site() -> Site:
    return Site("denoise, 4 context frames", Layout((4, 4), 15, 26, (4, 8, 4), 77), 0.3, 4, heads=4, head_dim=64)


def _measure_site(
    site: Site, device: torch.device, dtype: torch.dtype, options: Settings, console: Console
) -> dict[str, Any]:
    tensors = Tensors.random(site, device, dtype)
    times: dict[str, float] = {}
    operations: dict[str, float] = {}
    notes: list[str] = []
    for way in _ways(site, tensors, options.flex):
        if isinstance(way, str):
            notes.append(way)
            continue
        name, call, flops = way
        times[name] = milliseconds(call, device, options.seconds)
        if flops:
            operations[name] = flops
    sizes = {"queries": tensors.query.shape[2], "keys": site.layout.key_tokens}
    kept = {"kept": site.kept, "blocks": site.layout.key_blocks}
    figures = {"site": site.name, **sizes, **kept, "ms": times, "flops": operations, "notes": notes}
    console.print(site_table(figures), *notes, sep="\n")
    return figures


def _ways(site: Site, tensors: Tensors, flex: bool) -> Iterator[Way | str]:
    yield from _dense_ways(site, tensors)
    on_gpu = tensors.query.is_cuda
    if on_gpu:
        yield from peer_ways(site, tensors)
    if on_gpu and flex:
        yield _flex_way(site, tensors)
    if on_gpu:
        yield from _published_ways(site, tensors)
    implementations = ["portable"] if on_gpu else []
    best = str(dispatch.implementation(tensors.query, site.layout.tile))
    for name in dict.fromkeys([*implementations, best]):
        yield from _our_ways(site, tensors, name)


def _dense_ways(site: Site, tensors: Tensors) -> Iterator[Way]:
    key, value = tensors.whole()
    backends = {"dense, cuDNN": SDPBackend.CUDNN_ATTENTION, "dense, FlashAttention-2": SDPBackend.FLASH_ATTENTION}

    def attend() -> Tensor:
        return functional.scaled_dot_product_attention(tensors.query, key, value, scale=site.scale)

    def attend_by(backend: SDPBackend) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                return attend()

        return call

    if tensors.query.is_cuda:
        for name, backend in backends.items():
            yield name, attend_by(backend), site.dense_flops
    yield "dense, as torch chooses", attend, site.dense_flops


def _published_ways(site: Site, tensors: Tensors) -> Iterator[Way]:
    from .published import Published

    peer = Published(site, tensors)
    yield "published steps: whole", peer.whole, 0.0
    peer.whole()
    yield "published steps: tile and pool", peer.prepare, 0.0
    yield "published steps: select", peer.select, 0.0
    yield "published steps: list kernel", lambda: peer.attend(*peer.lists), site.kept_flops


def _our_ways(site: Site, tensors: Tensors, name: str) -> Iterator[Way]:
    ours = dispatch.load(name)
    layout, keys = site.layout, tensors.keys
    spans = [(tensors.query, layout.current_grid), *visual(keys, layout)]
    pools = ours.pool_spans(spans, layout.tile)
    index, count, _ = ours.select_blocks(pools[0], pools[1:], layout, **site.policy())
    for parts, how in _SKIPPED.items():
        yield f"{name}: whole, skipped blocks {how}", operator_call(site, tensors, name, skipped_means=parts), 0.0
    # Parts are replayed from graphs: called by themselves they would wait for the host, in the whole they do not.
    part = graphed if tensors.query.is_cuda else _unchanged
    yield f"{name}: pool, device only", part(lambda: ours.pool_spans(spans, layout.tile)), 0.0
    yield (
        f"{name}: select, device only",
        part(lambda: ours.select_blocks(pools[0], pools[1:], layout, **site.policy())),
        0.0,
    )
    for parts, how in _SKIPPED.items():
        means = _means(site, tensors, ours, parts) if parts else None
        yield (
            f"{name}: kernel, skipped blocks {how}",
            partial(ours.attend, tensors.query, keys, tensors.values, index, count, layout, site.scale, means),
            site.kept_flops,
        )


_SKIPPED = {0: "left out", 1: "by a mean each", 2: "by means of halves", 4: "by means of quarters"}


def _means(site: Site, tensors: Tensors, ours: dispatch.Implementation, parts: int) -> Means:
    """Means for the kernel alone."""
    layout, finer = site.layout, site.layout.finer(parts)
    query, *keys = ours.pool_spans([(tensors.query, layout.current_grid), *visual(tensors.keys, layout)], layout.tile)
    offsets = ours.select_blocks(query, keys, layout, **site.policy(), finer=finer).offsets
    assert offsets is not None
    each = (ours.pool_spans(visual(spans, finer), finer.tile) for spans in (tensors.keys, tensors.values))
    key, value = (joined(pools, tensors.query.dtype) for pools in each)
    return Means(key, value, offsets)


def whole_operator(site: Site, tensors: Tensors, name: str | None) -> Tensor:
    """The operator as a model calls it; ``name`` forces an implementation, None asks the cost model."""
    return operator_call(site, tensors, name)()


def operator_call(site: Site, tensors: Tensors, name: str | None, *, skipped_means: int = 1) -> Callable[[], Tensor]:
    """:func:`whole_operator` with its arguments made already."""
    layout = site.layout
    keys, values = tensors.pieces()
    settings: dict[str, Any] = {
        "query_grid": layout.current_grid,
        "key_grid": (sum(layout.frames), layout.height, layout.width),
        "prefix": layout.prefix,
        "tile": layout.tile,
        **site.policy(),
        "skipped_means": skipped_means,
    }
    call: Callable[[], Tensor] = partial(api.sparse_attention_segments, tensors.query, keys, values, **settings)
    if len(keys) == 1:
        call = partial(api.sparse_attention, tensors.query, keys[0], values[0], **settings)

    def forced() -> Tensor:
        assert name is not None
        with api.using(name):
            return call()

    return call if name is None else forced


def _flex_way(site: Site, tensors: Tensors) -> Way:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    from .published import Published

    peer = Published(site, tensors)
    peer.whole()
    index, count = (part[None] for part in peer.lists)
    queries, blocks = site.layout.query_tiles * BLOCK, peer.blocks
    full = torch.zeros(*index.shape[:3], blocks, dtype=torch.int32, device=index.device)
    full[..., : index.shape[3]] = index
    none = torch.zeros_like(count)
    mask = BlockMask.from_kv_blocks(none, full, count, full, BLOCK_SIZE=BLOCK, seq_lengths=(queries, blocks * BLOCK))
    query, key, value = (t.flatten(1, 2)[None] for t in (peer.query_tiles, peer.key_tiles, peer.value_tiles))
    compiled = torch.compile(flex_attention, dynamic=False)

    def call() -> object:
        return compiled(query, key, value, block_mask=mask, scale=site.scale, kernel_options={"USE_TMA": True})

    return "FlexAttention, tiles prepared", call, site.kept_flops


def _measure_sweep(
    device: torch.device, dtype: torch.dtype, options: Settings, console: Console, *, in_graphs: bool
) -> list[dict[str, float]]:
    lengths = options.lengths or (LENGTHS if device.type == "cuda" else LENGTHS[:4])
    rows = [row for length in lengths for row in _sweep_length(length, device, dtype, options, in_graphs)]
    console.print(sweep_table(rows, in_graphs=in_graphs))
    return rows


def _swept(length: int, density: float, device: torch.device) -> Site:
    return square(length, density, **({"heads": 16, "head_dim": 128} if device.type == "cuda" else SMALL))


def _sweep_length(
    length: int, device: torch.device, dtype: torch.dtype, options: Settings, in_graphs: bool
) -> list[dict[str, float]]:
    sites = [_swept(length, density, device) for density in options.densities]
    tensors = Tensors.random(sites[0], device, dtype)
    best = str(dispatch.implementation(tensors.query, sites[0].layout.tile))

    ready = graphed if in_graphs else _unchanged
    candidates = [call for _, call, _ in _dense_ways(sites[0], tensors)]
    times = paired([ready(call) for call in candidates], device, options.seconds)
    # What torch chooses stands for its backends unless one of them is clearly faster.
    best_dense = min(times)
    dense = candidates[-1] if times[-1] < 1.03 * best_dense else candidates[times.index(best_dense)]
    rows = []
    for site in sites:
        calls = [dense, *(operator_call(site, tensors, name) for name in (best, None))]
        figures = paired([ready(call) for call in calls], device, 3 * options.seconds)
        named = dict(zip(("dense", "forced", "chosen"), figures, strict=True))
        rows.append({"tokens": length, "density": site.density, **named})
    return rows


def _unchanged(call: Call) -> Call:
    return call


def _measure_host(device: torch.device, dtype: torch.dtype, console: Console) -> dict[str, float]:
    """Host time of one call: many in a row, too small for the device to fall behind."""
    site = _swept(512, 0.5, device)
    tensors = Tensors.random(site, device, dtype)
    best = str(dispatch.implementation(tensors.query, site.layout.tile))
    calls = {
        "scaled_dot_product_attention": list(_dense_ways(site, tensors))[-1][1],
        "sparse_attention, dense by the cost model": operator_call(site, tensors, None),
        f"sparse_attention, {best}": operator_call(site, tensors, best),
        "sparse_attention, portable": operator_call(site, tensors, "portable"),
    }
    figures = {name: host_microseconds(call, device) for name, call in calls.items()}
    console.print(host_table(figures))
    return figures
