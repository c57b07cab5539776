"""The tables: what each way of running makes ready to be timed. All run on a CUDA device."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import causal_wan
import torch
import turns
import worldplay
from torch import Tensor
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.models.worldplay.config import WorldPlayConfig

DEVICE = torch.device("cuda")


def _calls(given: argparse.Namespace, way: str) -> turns.Made:
    pipe, inputs, told = _worldplay(given, way, f"w-{given.context + 3}")
    return turns.Made(worldplay.Calls(pipe, inputs, given.context, DEVICE).named(), told)


def _rollout(given: argparse.Namespace, way: str) -> turns.Made:
    pipe, inputs, told = _worldplay(given, way, given.path)
    calls: dict[str, Callable[[], Any]] = {"rollout": lambda: worldplay.rollout(pipe, inputs, DEVICE)}
    if given.eager_warm_up is None or way != "eager":
        return turns.Made(calls, told)
    short = worldplay.Inputs.of(WorldPlayConfig(), given.eager_warm_up, DEVICE)
    return turns.Made(calls, told, {"rollout": lambda: worldplay.rollout(pipe, short, DEVICE)})


def _worldplay(given: argparse.Namespace, way: str, path: str) -> tuple[Any, Any, Any]:
    config = WorldPlayConfig(depth=given.depth or WorldPlayConfig().depth)
    name = "HY-WorldPlay-Light-Interaction" if way == "release" else "HY-WorldPlay"
    code = worldplay.imported(given.checkouts / name, compiled=way == "flag")
    model = worldplay.transformer(config, DEVICE, torch.bfloat16)
    inputs = worldplay.Inputs.of(config, path, DEVICE)
    pipe = worldplay.pipeline(code, model, config, DEVICE)
    if way == "release":
        worldplay.accelerated_by_release(pipe, "all")
    return pipe, inputs, _accelerated(pipe, way, given.reports)


def _causal_wan(given: argparse.Namespace, way: str) -> turns.Made:
    pipe = causal_wan.pipeline(given.checkouts / "Self-Forcing", given.window, given.depth or 30)
    told, generator, ends = _accelerated(pipe.generator.model, way, given.reports), pipe.generator, []

    def before(*_: Any) -> None:
        ends.append(torch.cuda.Event(enable_timing=True))
        ends[-1].record()

    generator.register_forward_pre_hook(before)

    def rollout() -> Tensor:
        ends.clear()
        result = causal_wan.rollout(pipe, given.frames)
        before()
        return result

    def more() -> dict[str, Any]:
        calls = [first.elapsed_time(last) for first, last in itertools.pairwise(ends)]
        chunks = [round(sum(calls[at : at + 5]), 1) for at in range(0, len(calls), 5)]
        return {"chunks": chunks, "last chunk": chunks[-1], **told()}

    return turns.Made({"rollout": rollout}, more)


def _accelerated(target: Any, way: str, reports: Path | None) -> Callable[[], dict[str, Any]]:
    """Accelerate as the way says; what it tells of itself afterwards."""
    if way in ("eager", "flag", "release"):
        return lambda: {"graphs": counters["stats"]["unique_graphs"]}
    preset, *rest = ("off" if way == "inductor" else way).split(",")
    options = {name: json.loads(value) for name, value in (each.split("=", 1) for each in rest)}
    handle = lightint_compile.accelerate(target, preset=preset, **options)

    def told() -> dict[str, Any]:
        if reports is not None:
            (reports / f"report-{way.replace('=', '-').replace(',', '-')}.txt").write_text(str(handle.report()))
        decided = handle.decisions()
        reused = sum(len(each.reused_steps) for each in decided) if decided else 0
        return {"graphs": counters["stats"]["unique_graphs"], "reused steps": reused}

    return told


MAKERS = {"calls": _calls, "worldplay": _rollout, "causal-wan": _causal_wan}
