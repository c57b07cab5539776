"""A window of a buffer that the call writes to: what was there before is context frames, in one program for all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from differential import largest_difference, rewritten, trace
from in_place_context import SIZE, WORLDS, Rolling
from kept_context import PLANE, World, noise
from torch import Tensor
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.passes.analysis.attention_sites import AttentionSites, SiteKind
from lightint_compile.passes.ir.remarks import RemarkKind

SPARSE = {"preset": "sparse", "delegate": "eager", "strict": True, "min_tokens": 0, "tile": [2, 2, 2]}
#: Every tile is kept, but by the operator: what it keeps is decided in a call, by the mass of the scores.
ALL_READ = "sparse-attention{tile=2x2x2,density=1.0,context-density=1.0,coverage=0.999999999,min-tokens=0}"
NEW = 4 * PLANE


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        yield


def built(world: type[World]) -> World:
    return world().eval().requires_grad_(False)


def filled(world: type[World], dtype: torch.dtype = torch.float64) -> Any:
    return pytree.tree_map_only(Tensor, lambda held: noise(*held.shape).to(held.dtype), world.caches())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("start", "keys"), [(6 * PLANE, "6x4x4 | 4x4x4"), (SIZE, "8x4x4 | 4x4x4")])
@pytest.mark.parametrize("name", WORLDS)
def test_what_a_buffer_held_is_frames(name: str, start: int, keys: str):
    inputs = {"latent": noise(1, 4, 4, 8, 8), "caches": filled(WORLDS[name]), "start": start}
    found = list(trace(built(WORLDS[name]), inputs).fact(AttentionSites))
    assert [str(site.key_grid) for site in found] == [f"{start // PLANE + 4 if start < SIZE else 12}x4x4"] * 2
    assert {site.kind for site in found} == {SiteKind.DENOISE}


@pytest.mark.parametrize("start", [6 * PLANE, SIZE])
@pytest.mark.parametrize("name", WORLDS)
def test_reading_all_tiles_is_the_attention_that_was_there(name: str, start: int):
    module = built(WORLDS[name]).double()
    inputs = {"latent": noise(1, 4, 4, 8, 8), "caches": filled(WORLDS[name]), "start": start}
    inputs = pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    changed, result = rewritten(trace(module, inputs), ALL_READ)
    applied = [r for r in result.remarks if r.pass_name == "sparse-attention" and r.kind is RemarkKind.APPLIED]
    assert len(applied) == 2
    mine = copy.deepcopy(inputs)
    leaves, _ = pytree.tree_flatten_with_path(mine)
    named = {".".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path): leaf for path, leaf in leaves}
    named |= dict(module.named_parameters())
    changed.graph_module.recompile()
    got = changed.graph_module(*(named[entry.path] for entry in changed.inputs))[0]
    assert largest_difference([got], [module(**inputs)]) < 1e-6
    assert largest_difference(pytree.tree_leaves(mine["caches"]), pytree.tree_leaves(inputs["caches"])) < 1e-6


@pytest.mark.parametrize(("name", "stock"), [("rolling", "eager"), ("stacked", "aot_eager")])
def test_a_long_rollout_is_sparse_in_as_many_graphs_as_dynamo_makes(name: str, stock: str):
    """A full window of heads-first buffers is contiguous, which torch guards on below Dynamo."""
    module = built(WORLDS[name])
    made = {}
    for backend, options in ((stock, None), ("lightint", SPARSE)):
        torch._dynamo.reset()
        counters.clear()
        call = torch.compile(module, backend=backend, options=options)
        mine, theirs, counts = WORLDS[name].caches(), WORLDS[name].caches(), []  # type: ignore[attr-defined]
        for turn in range(8):
            latent, start = noise(1, 4, 4, 8, 8, seed=turn), min(turn * NEW, SIZE)
            got, expected = call(latent, mine, start), module(latent, theirs, start)
            assert largest_difference([got], [expected]) < 0.1
            counts.append(counters["stats"]["unique_graphs"])
        assert largest_difference(pytree.tree_leaves(mine), pytree.tree_leaves(theirs)) < 0.1
        made[backend] = counts
    assert made["lightint"] == made[stock] and len(set(made[stock][4:])) == 1
    found = [r for s in lightint_compile.report(call).sections for r in s.remarks if r.pass_name == "sparse-attention"]
    kept = [r.message for r in found if r.kind is RemarkKind.APPLIED and "kept frames of 4x4" in r.message]
    assert len(kept) == made[stock][-1] - 1, "every graph but that of the first call"


def test_a_buffer_that_is_no_whole_frames_stays_dense():
    module = built(Rolling)
    inputs = {"latent": noise(1, 4, 4, 8, 8), "caches": filled(Rolling), "start": 3 * PLANE + 5}
    found = list(trace(module, inputs).fact(AttentionSites))
    assert {site.kind for site in found} == {SiteKind.CACHE}
