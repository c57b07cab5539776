"""Run as a program: the portable kernels in Triton's CPU interpreter against the specification; results as JSON.

A program of its own because Triton decides between compiling and interpreting when the kernels are first imported.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"

import torch
from attention_cases import Site, random_lists

from lightint_compile import kernels
from lightint_compile.kernels import reference

SITES = {
    "context": Site((2, 5, 7), (5, 5, 7), (2, 4, 4), prefix=5, heads=2, key_heads=1, head_dim=64),
    "head-96": Site((2, 3, 5), (2, 3, 5), (1, 3, 5), heads=1, key_heads=1, head_dim=96),
    "two-parts": Site((3, 4, 9), (3, 4, 9), (4, 6, 8), prefix=3, heads=1, key_heads=1, head_dim=64),
}

POLICIES = (
    {"density": 0.4},
    {"density": 0.2, "protect_frames": 3, "neighbours": 0},
    {"density": 1.0, "coverage": 0.6, "neighbours": 0, "scale": 1.0},
    {"density": 0.4, "context_density": 0.7, "neighbours": 0},
)
CASES = (
    ("context", "mixed", torch.float32),
    ("context", "permuted", torch.float16),
    ("head-96", "duplicate", torch.float32),
    ("two-parts", "mixed", torch.float16),
)
MASKED = {
    "context": ("text", "frames", "everything", "of text", "numbers"),
    # What leaves frames out is attended to densely, without tiles: a tile in two parts changes nothing there.
    "two-parts": ("text", "numbers"),
}

SHARED_KEYS = ("text", "frames")
"""Masks under which two heads of queries read one of keys: in tiles, and densely."""


def attention_errors() -> dict[str, float]:
    """Largest difference from the specification for every site, kind of list and dtype."""
    errors = {}
    for name, kind, dtype in CASES:
        site = SITES[name]
        tensors, lists = site.tensors(dtype), random_lists(site, kind)
        results = []
        for implementation in ("reference", "portable"):
            with kernels.using(implementation):
                results.append(kernels.block_sparse_attention(*tensors, *lists, **site.grids))
        errors[f"{name} {kind} {dtype}"] = float((results[0] - results[1]).abs().max())
    return errors


def poison_error() -> float:
    """Difference that NaN in every block that is not listed makes."""
    site = SITES["context"]
    query, key, value = site.tensors(torch.float32)
    index, count = random_lists(site, "one")
    index[...] = 0
    with kernels.using("portable"):
        clean = kernels.block_sparse_attention(query, key, value, index, count, **site.grids)
        used = reference.token_weights(index, count, site.layout).any(2).any(1)[0]
        for part in (key, value):
            part[:, :, ~used] = torch.nan
        return float(
            (kernels.block_sparse_attention(query, key, value, index, count, **site.grids) - clean).abs().max()
        )


def pools(site: Site) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Pooled queries, and pooled context (if any) and current keys."""
    query, key, _ = site.tensors(torch.float32)
    layout = site.layout
    spans = key.split([site.prefix, layout.context_tokens, layout.current_tokens], 2)
    key_pools = [kernels.pool_tiles(spans[2], grid=site.query_grid, tile=site.tile)]
    if layout.frames[0]:
        key_pools.insert(0, kernels.prepare_context(spans[1], grid=layout.context_grid, tile=site.tile))
    return kernels.pool_tiles(query, grid=site.query_grid, tile=site.tile), key_pools


def selection_differences() -> dict[str, int]:
    """Entries of index and count that differ from the specification's, for several policies."""
    different = {}
    for name in ("context", "two-parts"):
        site = SITES[name]
        grids = {k: v for k, v in site.grids.items() if k != "prefix"}
        for policy in POLICIES:
            results = []
            for implementation in ("reference", "portable"):
                with kernels.using(implementation):
                    results.append(kernels.select_blocks(*pools(site), **grids, **policy))
            (index, count), (our_index, our_count) = results
            different[f"{name} {policy}"] = int((index != our_index).sum() + (count != our_count).sum())
    return different


def whole_errors() -> dict[str, float]:
    """Largest difference of pooling, selection and attention together: a first call, one that finds its launches
    bound, one with prepared context, one whose memory starts where bound launches cannot read, one that leaves out
    what it does not read."""
    errors = {}
    calls_of = {"context": ("first", "bound", "unaligned", "prepared", "dropped", "halves", "prepared halves")}
    calls_of["two-parts"] = ("first", "bound", "eighths")
    parts = {"dropped": 0, "halves": 2, "prepared halves": 2, "eighths": 8}
    for name, calls in calls_of.items():
        site = SITES[name]
        for call in calls:
            query, key, value = site.tensors(torch.float32, seed=len(errors))
            if call == "unaligned":
                key = torch.cat([key.new_zeros(1), key.flatten()])[1:].view(key.shape)
            run = prepared if call.startswith("prepared") else kernels.sparse_attention
            results = []
            for implementation in ("reference", "portable"):
                with kernels.using(implementation):
                    policy = {"protect_frames": 1, "density": 0.2, "context_density": 0.3, "neighbours": 0}
                    policy["skipped_means"] = parts.get(call, 1)
                    results.append(run(query, key, value, **policy, **site.grids))
            errors[f"{name} {call}"] = float((results[0] - results[1]).abs().max())
    return errors


def masked_errors() -> dict[str, float]:
    """Largest difference under masks of keys: of text, of frames in one element of a batch, and numbers to be added."""
    errors = {}
    for name, kinds in MASKED.items():
        site = replace(SITES[name], batch=2)
        keys, prefix = site.layout.key_tokens, site.prefix
        masks = {kind: torch.ones(2, keys, dtype=torch.bool) for kind in ("text", "frames", "everything")}
        masks["text"][0, 1:prefix] = masks["text"][1, :prefix] = False
        masks["frames"][1, prefix + 3 :: 2] = False
        masks["everything"][0] = False
        masks["of text"] = masks["text"][:1, :prefix]
        masks["numbers"] = torch.where(masks["text"], torch.linspace(-2, 2, keys), -torch.inf)
        for kind in kinds:
            mask = masks[kind]
            each = site if kind in SHARED_KEYS else replace(site, heads=1)
            query, key, value = each.tensors(torch.float32, seed=len(errors))
            results = []
            for implementation in ("reference", "portable"):
                with kernels.using(implementation):
                    policy = {"density": 0.3, "neighbours": 0, "skipped_means": 0 if kind == "text" else 2}
                    spans = ([part[:, :, :prefix], part[:, :, prefix:]] for part in (key, value))
                    results.append(kernels.sparse_attention_masked(query, *spans, mask, **policy, **site.grids))
            errors[f"{name} {kind}"] = float((results[0] - results[1]).abs().max())
    return errors


def prepared(query, key, value, *, skipped_means, **settings):
    """Sparse attention over segments with the context pooled beforehand."""
    site = next(site for site in SITES.values() if site.grids.items() <= settings.items())
    layout = site.layout
    cut = [layout.prefix, layout.context_tokens, layout.current_tokens]
    keys, values = key.split(cut, 2), value.split(cut, 2)
    tiles = site.tile, *[kernels.part_tile(site.tile, skipped_means)] * 2
    pools = (
        kernels.prepare_context(part[1], grid=layout.context_grid, tile=tile)
        for part, tile in zip((keys, keys, values), tiles, strict=True)
    )
    settings["skipped_means"] = skipped_means
    return kernels.sparse_attention_prepared(query, keys, values, *pools, **settings)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        json.dumps(
            {
                "attention": attention_errors(),
                "poison": poison_error(),
                "selection": selection_differences(),
                "whole": whole_errors(),
                "masked": masked_errors(),
            }
        )
    )
