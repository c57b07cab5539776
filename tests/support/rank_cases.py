"""Cases that every rank of a pool runs: a world on one rank and on several, side by side."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import rank_worlds
import torch
import torch.distributed as dist
import torch.utils._pytree as pytree
from formed_world import World
from forms import FORMS, Scene
from recorded_here import Recorded, recorded_here
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from toy_world import there_and_back, toy_rollout

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.passes.hoist_invariants import HoistInvariants
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.runtime import recorded_stretch
from lightint_compile.testing.capturing import captured


class Seen(NamedTuple):
    """What a rank saw: the largest relative difference from one rank, remarks of the pass, bytes sent, decisions."""

    difference: float
    applied: list[str]
    missed: list[str]
    sent: int = 0
    reused: tuple[Any, ...] = ()


def remarks_of(compiled: Any) -> list[Any]:
    report = lightint_compile.report(compiled)
    return [r for section in report.sections for r in section.remarks if r.pass_name == "shard-sequence"]


def told(remarks: list[Any], difference: float, reused: list[Any] | None = None) -> Seen:
    return Seen(
        difference,
        [r.message for r in remarks if r.kind == "applied"],
        [r.message for r in remarks if r.kind == "missed"],
        sum(r.args.get("bytes_sent", 0) for r in remarks),
        tuple(reused or ()),
    )


def difference(one: Any, several: Any) -> float:
    """The largest difference of any result, relative to the largest value of it."""
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(several), strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def compiled(module: nn.Module, **options: Any) -> Any:
    return torch.compile(module, backend="lightint", fullgraph=True, options={"strict": True, **options})


FRONT = "canonicalize-attention,hoist-invariants,dead-tail"
SPARSE = f"{FRONT},sparse-attention{{density=0.5,context-density=0.5,min-tokens=0,tile=2x2x4}}"


def graph(
    model: dict[str, Any],
    given: dict[str, Any],
    dtype: torch.dtype = torch.float64,
    front: str = FRONT,
    world: type[rank_worlds.World] = rank_worlds.World,
) -> Seen:
    """The graph of a world after passes on one rank, against the same on several; collectives run as they stand."""
    module = world(**model).to(dtype).eval().requires_grad_(False)
    program, flat = captured(module, rank_worlds.inputs(module, dtype=dtype, **given))
    count = dist.get_world_size()
    alone, several = program.snapshot(), program.snapshot()
    Pipeline.parse(front).run(alone, strict=True)
    found = Pipeline.parse(f"{front},shard-sequence{{gpus={count}}}").run(several, strict=True).remarks
    results = []
    for each in (alone, several):
        each.graph_module.recompile()
        results.append(each.graph_module(*flat))
    own = [r for r in found if r.pass_name == "shard-sequence"]
    return told(own, difference(*results))


def compiled_world(
    model: dict[str, Any], given: dict[str, Any], dtype: torch.dtype = torch.float64, **options: Any
) -> Seen:
    """A world in eager against several ranks, twice with other inputs."""
    module = rank_worlds.World(**model).to(dtype).eval().requires_grad_(False)
    shared, found = compiled(module, **shared_by(options)), 0.0
    for seed in (0, 1):
        args = rank_worlds.inputs(module, dtype=dtype, seed=seed, **given)
        found = max(found, difference(module(*args), shared(*args)))
    return told(remarks_of(shared), found)


def on_gpus(
    model: dict[str, Any],
    given: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    world: type[rank_worlds.World] = rank_worlds.World,
    seeds: tuple[int, ...] = (0, 1),
    **options: Any,
) -> Seen:
    """A world on the GPU of each rank: the compiled one on all against float64 on one, each time with other inputs.

    Eager in the same dtype is no reference: in bfloat16 it is further from float64 than the ranks are, and where a
    query sees no key its attention gives what the kernel of that dtype happens to.
    """
    module, found = world(**model).cuda().to(dtype).eval().requires_grad_(False), 0.0
    exact, shared = copy.deepcopy(module).double(), compiled(module, gpus=dist.get_world_size(), **options)
    for seed in seeds:
        args = [each.cuda() for each in rank_worlds.inputs(module, dtype=dtype, seed=seed, **given)]
        found = max(found, difference(exact(*(each.double() for each in args)), shared(*args).double()))
    return told(remarks_of(shared), found)


def shared_by(options: dict[str, Any]) -> dict[str, Any]:
    """Options with the ranks of this pool, as a number, or as a mesh where ``mesh`` is true."""
    if not options.pop("mesh", False):
        return {"gpus": dist.get_world_size(), **options}
    return {"mesh": init_device_mesh("cpu", (dist.get_world_size(),)), **options}


def sizes(
    given: list[dict[str, Any]],
    model: dict[str, Any] | None = None,
    world: type[rank_worlds.World] = rank_worlds.World,
    **options: Any,
) -> Seen:
    """One compiled world over inputs of several sizes; each is compared with eager."""
    module = world(**(model or {})).double().eval().requires_grad_(False)
    shared, found = compiled(module, gpus=dist.get_world_size(), **options), 0.0
    for each in given:
        args = rank_worlds.inputs(module, **each)
        found = max(found, difference(module(*args), shared(*args)))
    return told(remarks_of(shared), found)


def cached(chunks: int = 3, heads: int = 4, **options: Any) -> Seen:
    """Keys and values written in place, call after call: results and buffers as in eager."""
    module = rank_worlds.Cached(depth=2, heads=heads, width=8 * heads).double().eval().requires_grad_(False)
    shared, found = compiled(module, gpus=dist.get_world_size(), **options), 0.0
    count = 4 * 4 * 8
    ours, theirs = (
        [tuple(torch.zeros(1, heads, chunks * count, 8).double() for _ in "kv") for _ in module.blocks] for _ in "ab"
    )
    for chunk in range(chunks):
        latents, text = rank_worlds.inputs(module, seed=chunk)
        results = module(latents, text, ours, chunk * count), shared(latents, text, theirs, chunk * count)
        found = max(found, difference(results[0], results[1]), difference(ours, theirs))
    return told(remarks_of(shared), found)


def formed(form: str, **options: Any) -> Seen:
    """Chunks of the small world in one of its forms: several ranks against eager, with what the caller holds."""
    world, found = World(torch.float64).in_float64(), 0.0
    theirs = FORMS[form](world)
    ours = FORMS[form](world, lambda part: compiled(part, gpus=dist.get_world_size(), **options), dynamic=True)
    for frames in (4, 8, 4):
        scene = Scene.behind(frames, frames).to(torch.float64, torch.float64)
        results = [[*side.chunk(scene), *side.held] for side in (theirs, ours)]
        found = max(found, difference(*results))
    return told(remarks_of(next(iter(ours.calls.values()))), found)


def rollout(frames: int, model: dict[str, Any] | None = None, size: tuple[int, int] = (4, 6), **options: Any) -> Seen:
    """A rollout of the toy world that decides on context and steps: one rank against several, chunk by chunk."""
    module, path = rank_worlds.Headed(**(model or {})).double().eval(), there_and_back(frames)
    options = {"preset": "all", "delegate": "eager", "strict": True, **options}
    torch.nn.Module.requires_grad_(module, False)
    results, made, remarks = [], [], []
    for more in ({}, {"gpus": dist.get_world_size()}):
        torch._dynamo.reset()
        model = torch.compile(module, backend="lightint", options={**options, **more})
        results.append(toy_rollout(lambda n, h, c, model=model: model(n.double(), h, c.double()), path, size))
        made.append([(d.context_frames, d.reused_steps, d.refused_steps) for d in lightint_compile.decisions(model)])
        remarks = remarks_of(model)
    assert made[0] == made[1], made
    return told(remarks, difference(*results), [reused for _, reused, _ in made[1] if reused])


def library(family: str, heads: int, calls: tuple[int, ...], **options: Any) -> Seen:
    """A model of the project at its tiny size: one rank with the same options against several, call by call."""
    module, given = _model(family, heads, calls)
    alone = compiled(module, **options)
    ones = [alone(*args, **named) for args, named in given]
    torch._dynamo.reset()
    shared = compiled(module, gpus=dist.get_world_size(), **options)
    several = [shared(*args, **named) for args, named in given]
    return told(remarks_of(shared), difference(ones, several))


def _model(family: str, heads: int, calls: tuple[int, ...]) -> tuple[nn.Module, list[tuple[Any, Any]]]:
    if family == "worldplay":
        from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs, fill_random

        dims = {2: (8, 12, 12), 4: (4, 6, 6)}[heads]
        config = dataclasses.replace(WorldPlayConfig.tiny(), heads=heads, rope_dims=dims)
        module = fill_random(WorldPlayChunk(config))
        given = [example_inputs(config, frames, dtype=torch.float64, seed=frames) for frames in calls]
    else:
        from lightint_compile.models import matrix_game

        small = matrix_game.MatrixGameConfig.tiny()
        module = matrix_game.fill_random(matrix_game.MatrixGameClip(dataclasses.replace(small, heads=heads, steps=2)))
        given = [((), matrix_game.example_inputs(module.config, frames, dtype=torch.float64)) for frames in calls]
    return module.double().eval().requires_grad_(False), given


def recorded(which: str, **options: Any) -> tuple[Seen, int]:
    """A case of this module whose drivers record stretches, and how often they played one."""
    with pytest.MonkeyPatch.context() as patched:
        recorded_here(patched)
        before = Recorded.plays
        return globals()[which](cuda_graphs=True, **options), Recorded.plays - before


def uneven(event: str) -> tuple[float, int]:
    """Recorded calls, in front of one of which something happens to the last rank alone; and how often one played."""
    module = rank_worlds.World(steps=2).double().eval().requires_grad_(False)
    options: dict[str, Any] = {"delegate": "eager", "cuda_graphs": True, "gpus": dist.get_world_size()}
    found, is_last = 0.0, dist.get_rank() == dist.get_world_size() - 1
    with pytest.MonkeyPatch.context() as patched:
        recorded_here(patched)
        shared, before = compiled(module, **options), Recorded.plays
        for seed in range(8):
            args, context = rank_worlds.inputs(module, past=3, seed=seed), nullcontext()
            if is_last and seed == 4:
                context = _happens(event, shared, patched)
            with context:
                found = max(found, difference(module(*args), shared(*args)))
        return found, Recorded.plays - before


def _happens(event: str, shared: Any, patched: pytest.MonkeyPatch) -> Any:
    if event == "regions are watched":
        (graph,) = CompiledGraph.of(shared)
        assert graph.driver is not None
        return graph.driver.watched(lambda name, region, *args: region(*args))
    if event == "memory is full":
        patched.setattr(recorded_stretch, "_memory_beside", lambda args: 0.0)
    for parameter in shared.parameters():
        parameter.data = parameter.data.clone()
    return nullcontext()


def of_another_size(**options: Any) -> None:
    """The last rank gives other sizes than the others."""
    module = rank_worlds.World().double().eval().requires_grad_(False)
    odd = dist.get_rank() == dist.get_world_size() - 1
    compiled(module, gpus=dist.get_world_size(), **options)(*rank_worlds.inputs(module, frames=8 if odd else 4))


def with_a_failure(**options: Any) -> None:
    """A pass fails on the last rank alone."""
    module = rank_worlds.World().double().eval().requires_grad_(False)
    fails = dist.get_rank() == dist.get_world_size() - 1
    with patch.object(HoistInvariants, "run", side_effect=KeyError("no such thing")) if fails else nullcontext():
        compiled(module, gpus=dist.get_world_size(), **options)(*rank_worlds.inputs(module))


def exchanging_differently(**options: Any) -> None:
    """The last rank exchanges by copies, the others by collectives."""
    module = rank_worlds.World().double().eval().requires_grad_(False)
    way = "copies" if dist.get_rank() == dist.get_world_size() - 1 else "collectives"
    shared = compiled(module, gpus=dist.get_world_size(), exchanges=way, **options)
    shared(*rank_worlds.inputs(module))
