"""A rollout of WorldPlay under ``all``: by the compiled driver, and by the package with that of its decision."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import subjects
import torch
from torch import Tensor

import lightint_compile
from lightint_compile.models.worldplay.rollout import video_noise


@dataclass(frozen=True)
class Rollout:
    """What every way of rolling out is given.

    Attributes:
        first: latents [1, C, chunk, h, w] of the first chunk, which has no history: by the module as it is.
        noise: [1, C, frames, h, w].
        cameras: extrinsics, intrinsics and actions of all frames, a batch of one.
        scene: image, text, glyphs and vision.
    """

    module: torch.nn.Module
    first: Tensor
    noise: Tensor
    cameras: dict[str, Tensor]
    scene: dict[str, Tensor]

    def calls(self, history: list[Tensor]) -> Iterator[dict[str, Any]]:
        """Arguments of each later chunk; the newest entry of ``history`` is what it follows."""
        chunk = self.first.shape[2]
        for begin in range(chunk, self.noise.shape[2], chunk):
            seen = {name: value[:, : begin + chunk].contiguous() for name, value in self.cameras.items()}
            noise = self.noise[:, :, begin : begin + chunk].contiguous()
            yield {"noise": noise, "history": history[-1], **seen, **self.scene}

    def run(self, call: Callable[[dict[str, Any]], Tensor]) -> Tensor:
        """Latents of the chunks behind the first."""
        history = [self.first.clone()]
        for given in self.calls(history):
            history.append(torch.cat([history[-1], call(given)], 2))
        return history[-1][:, :, self.first.shape[2] :]


def ways(given: argparse.Namespace) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """The driver, and the package."""
    made = subjects.subject(given, "all")
    rollout = _rollout(given, made)
    found: dict[str, Any] = {
        "driver": lambda: _Driver(rollout, made.options),
        "package by lightint.load": lambda: _Package(rollout, subjects.package(given, "all")),
    }
    return {name: functools.cache(lambda make=make: make().rollout) for name, make in found.items()}


def _rollout(given: argparse.Namespace, made: subjects.Subject) -> Rollout:
    model = subjects.world(given)
    chunk = model.spec.chunk
    frames = given.chunks * chunk
    path = model.camera_path(f"right-{frames // 2},left-{frames - frames // 2 - 1}")
    walked = {"extrinsics": path.extrinsics, "intrinsics": path.intrinsics, "actions": path.actions}
    cameras = {name: value[None].to(given.device, made.inputs[name].dtype) for name, value in walked.items()}
    noise = video_noise(model.config, frames, 0, made.inputs["noise"])
    scene = {name: made.inputs[name] for name in ("image", "text", "glyphs", "vision")}
    start = {name: value[:, :chunk].contiguous() for name, value in cameras.items()}
    with torch.no_grad():
        first = made.module(noise[:, :, :chunk].contiguous(), None, *start.values(), *scene.values())
    return Rollout(made.module, first, noise, cameras, scene)


class _Driver:
    def __init__(self, rollout: Rollout, options: dict[str, Any]) -> None:
        self._rollout, self._told = rollout, False
        self._call = torch.compile(rollout.module, backend="lightint", options=options)

    def rollout(self) -> Tensor:
        found = self._rollout.run(self._chunk)
        if not self._told:
            self._told = True
            for each in lightint_compile.decisions(self._call):
                _say(f"driver: {len(each.context_frames)} frames, reuse {each.reused_steps}, not {each.refused_steps}")
        return found

    def _chunk(self, given: dict[str, Any]) -> Tensor:
        torch._dynamo.mark_dynamic(given["history"], 2)
        for name in self._rollout.cameras:
            torch._dynamo.mark_dynamic(given[name], 1)
        result: Tensor = self._call(**given)
        return result


class _Package:
    """The chunk's package, asked as docs/how-to/export.md says; the decision is made on the host."""

    def __init__(self, rollout: Rollout, path: Path) -> None:
        self._rollout, self._told = rollout, False
        self._run = lightint_compile.load(path)
        self._ask = lightint_compile.load(path.with_name(path.name.replace(".aoti", ".decide.aoti")))
        meanings = json.loads(subjects.meanings(path).read_text())
        self._steps = [name for name in meanings if name.startswith("reuse_step_")]
        limit = meanings.get("largest_drift", "").rpartition(" ")[2]
        self._limit = {"largest_drift": torch.tensor(float(limit))} if limit else {}
        self._extrinsics = rollout.cameras["extrinsics"][0].cpu().double()
        self._novel = torch.tensor(True)

    def rollout(self) -> Tensor:
        self._novel = torch.tensor(True)
        found = self._rollout.run(self._chunk)
        self._told = True
        return found

    def _chunk(self, given: dict[str, Any]) -> Tensor:
        history = given["history"]
        seen = self._extrinsics[: given["extrinsics"].shape[1]].contiguous()
        answer = self._ask(seen, history.cpu(), self._novel)
        self._novel, frames = answer["novel"], answer["context_frames"]
        decided = {"context_frames": frames.to(history.device), **self._limit}
        results = self._run(**given, **decided, **dict.fromkeys(self._steps, answer["reuse"]))
        result, state = (results["result"], results["state"]) if isinstance(results, dict) else (results, {})
        if not self._told:
            reused = {name: bool(state[f"reused_{name.removeprefix('reuse_')}"]) for name in self._steps}
            _say(f"package: {len(frames)} frames, reuse {bool(answer['reuse'])}: {reused}")
        return result


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
