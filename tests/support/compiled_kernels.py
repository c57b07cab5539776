"""Every kernel compiled ahead of time by the installed Triton, without a GPU; run as a program: one JSON line a kernel.

The launches are those of real calls: the host's code runs on tensors of the CPU, and where it would launch, Triton
compiles for a stated chip instead. So descriptors, sizes and options are what a call on that chip would pass.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

GRID, CONTEXT, PREFIX, TILE = (8, 16, 12), (12, 16, 12), 64, (4, 8, 4)
HEADS, KEY_HEADS = 4, 2


class Resources(NamedTuple):
    """What one compiled kernel takes of a chip."""

    triton: str
    chip: int
    head_dim: int
    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    fused: bool
    seconds: float


_DEVICES = itertools.count(1000)


@contextmanager
def compiling(capability: int) -> Iterator[list[Any]]:
    """Inside, launches compile for a chip (80, 90) and are collected, instead of running."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, **options: Any) -> None:
        compiled.append(run(self, *arguments, **{**options, "warmup": True}))

    device = next(_DEVICES)
    active = SimpleNamespace(
        get_current_device=lambda: device,  # Triton keeps what it compiled by device: a new one compiles anew
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    )
    kind = type(triton.runtime.driver)
    before = kind.active
    kind.active, JITFunction.run = active, compile_only
    try:
        yield compiled
    finally:
        kind.active, JITFunction.run = before, run


def kernels_of(implementation: str, head_dim: int) -> None:
    """Calls whose kernels :func:`compiling` collects: sparse attention, ``others``, the small ones, or linears."""
    if implementation.startswith("linears-"):
        _linears(implementation.removeprefix("linears-"))
    elif implementation == "others":
        _camera_heads(head_dim)
        _checksums()
        _masked(head_dim)
        _row_weights()
        _edge_rows()
    else:
        _sparse_attention(implementation, head_dim)


def _camera_heads(head_dim: int) -> None:
    from lightint_compile.kernels.portable import camera

    batch, tokens, frame = 1, 24, 6
    heads = torch.zeros(batch, tokens, HEADS, head_dim, dtype=torch.bfloat16)
    matrix, table = torch.zeros(batch, tokens, 4, 4), torch.zeros(tokens, head_dim)
    camera.camera_heads(heads, matrix, torch.zeros(head_dim), 1e-6, table, table, True)
    pool, slots = torch.zeros(batch, 8, frame, HEADS, head_dim, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64)
    camera.camera_heads_kept(pool, slots, heads[:, : tokens - 2 * frame], matrix, table, table)


def _checksums() -> None:
    from lightint_compile.kernels.portable import checksum

    checksum.sums_at([16, 17], [4096, 4096], torch.device("cpu"))


def _masked(head_dim: int) -> None:
    from lightint_compile.kernels.portable import dense
    from lightint_compile.kernels.spans import Spans

    query, keys = (
        _tokens(HEADS, 128, head_dim),
        Spans(*(_tokens(KEY_HEADS, length, head_dim) for length in (64, 128, 96))),
    )
    bias, wanted = torch.zeros(1, sum(key.shape[2] for key in keys)), torch.ones(1, dtype=torch.bool)
    dense.attend_all(torch.empty_like(query), query, keys, keys, bias, wanted, head_dim**-0.5)


def _row_weights() -> None:
    from lightint_compile.kernels.portable import row_weights

    scores, mask = torch.zeros(2, 24, 104)[..., :100], torch.ones(24, 100, dtype=torch.bool).expand(1, 2, 24, 100)
    weights = torch.zeros(2, 24, 104, dtype=torch.bfloat16)[..., :100]
    for each in (None, mask, mask.to(torch.bfloat16)):
        row_weights.fill_row_weights(scores, weights, torch.zeros(2, 24), each, 0, 0, 0.1)


def _edge_rows() -> None:
    from lightint_compile.kernels.portable import edge_rows

    part, out = (
        torch.zeros(1, 64, 3, *size, dtype=torch.bfloat16).to(memory_format=torch.channels_last_3d)
        for size in ((4, 5), (6, 7))
    )
    edge_rows.fill_frames(out, part, (1, 1, 1, 1, 0, 0), 0, 3)


def _linears(home: str) -> None:
    """Linears in float32 over weights in bfloat16, of three parts with a bias and of one without."""
    import importlib

    kernels = importlib.import_module(f"lightint_compile.kernels.{home}.mixed_linear")
    parts, weight = [torch.zeros(300, 256, dtype=torch.bfloat16)] * 3, torch.zeros(192, 256, dtype=torch.bfloat16)
    for count, bias in ((3, torch.zeros(192)), (1, None)):
        kernels.linear_of_parts(parts[:count], weight, bias, torch.zeros(300, 192))


def _sparse_attention(implementation: str, head_dim: int, parts: int = 2) -> None:
    from lightint_compile.kernels import dispatch
    from lightint_compile.kernels.settings import Policy
    from lightint_compile.kernels.spans import Spans
    from lightint_compile.kernels.steps import ContextPools
    from lightint_compile.kernels.tiles import Layout

    layout = Layout.of(GRID, (CONTEXT[0] + GRID[0], *GRID[1:]), TILE, PREFIX)
    query = _tokens(HEADS, math.prod(GRID), head_dim)
    lengths = (PREFIX, math.prod(CONTEXT), math.prod(GRID))
    keys, values = (Spans(*(_tokens(KEY_HEADS, length, head_dim) for length in lengths)) for _ in range(2))
    chosen = Policy(0.3, None, 0, 1, None).arguments(query)
    pipeline = dispatch.load(implementation).bind(  # type: ignore[attr-defined]
        query, keys, values, layout, chosen, pools=ContextPools(), parts=parts
    )
    assert pipeline is not None
    pipeline(query, keys, values, ContextPools())


def _tokens(heads: int, length: int, head_dim: int) -> torch.Tensor:
    return torch.zeros(1, length, heads, head_dim, dtype=torch.bfloat16).transpose(1, 2)


def resources(told: str) -> list[tuple[int, int]]:
    """Registers a thread, and bytes spilled to memory, of each kernel that Triton's assembler told of."""
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", told)]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    return list(zip(registers, (int(stores) + int(loads) for stores, loads in spills), strict=True))


def measured(implementation: str, capability: int, head_dim: int) -> Iterator[Resources]:
    """Resources of every kernel of one implementation."""
    import triton

    told, knobs = io.StringIO(), triton.knobs
    start = time.perf_counter()
    with compiling(capability) as compiled, redirect_stdout(told), knobs.nvidia.scope(), knobs.compilation.scope():
        # The assembler tells of what it assembles, and not of what an earlier run has kept.
        knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
        kernels_of(implementation, head_dim)
    seconds = round((time.perf_counter() - start) / len(compiled), 1)
    for kernel, found in zip(compiled, resources(told.getvalue()), strict=True):
        known = kernel.metadata
        more = (known.shared, known.enable_fp_fusion, seconds)
        yield Resources(triton.__version__, capability, head_dim, known.name, *found, *more)


def main(arguments: Sequence[str]) -> None:
    """``compiled_kernels.py implementation:chip:head_dim ...``"""
    for wanted in arguments:
        implementation, chip, head_dim = wanted.split(":")
        for found in measured(implementation, int(chip), int(head_dim)):
            print(json.dumps(found._asdict()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
