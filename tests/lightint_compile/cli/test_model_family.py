"""A model family of another package: explained, measured and rolled out through the command line, by its name alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import other_package
import pytest
import torch

import lightint_compile
from lightint_compile import explain
from lightint_compile.cli import main
from lightint_compile.models import registry
from lightint_compile.models.world_model import WorldModel
from lightint_compile.passes.ir.world_spec import PUBLISHED

TOY = '''
import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from lightint_compile.models.world_model import ChunkResult, ModelFamily
from lightint_compile.models.worldplay import Trajectory
from lightint_compile.passes.ir.world_spec import WorldSpec

FRAMES = 3


class ToyChunk(nn.Module):
    """Two denoising steps of a chunk of latent frames, which look at all frames so far and at the cameras."""

    def __init__(self, depth):
        super().__init__()
        self.cameras = nn.Linear(12, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, latents, past, poses, prompt):
        seen = latents.new_zeros(()) if past is None else past.mean()
        for _ in range(2):
            cameras = self.cameras(poses[:, -FRAMES:, :3].flatten(2))
            tokens = latents.flatten(2).transpose(1, 2) + seen + cameras.mean(1, True)
            for block in self.blocks:
                tokens = tokens + block(tokens * prompt.mean())
            latents = latents - 0.5 * tokens.transpose(1, 2).view_as(latents)
        return latents


@dataclass(frozen=True)
class Toy:
    depth: int = 2
    spec: WorldSpec = WorldSpec(chunk=FRAMES, clip=FRAMES, memory=64, recent=FRAMES)
    needs_gpu: bool = False
    example_history: int = 2 * FRAMES
    roles = {"latents": "latent", "past": "context", "poses": "camera", "prompt": "text"}
    frame_axes = {"past": 2, "poses": 1}

    def at_depth(self, depth):
        return dataclasses.replace(self, depth=depth)

    def module(self, device="cpu", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        return ToyChunk(self.depth).to(device, dtype).eval().requires_grad_(False)

    def example_inputs(self, history, device="cpu", dtype=torch.float32, seed=0):
        past = torch.zeros(1, 8, history, 4, 4, device=device, dtype=dtype) if history else None
        poses = self.camera_path(f"w-{history + FRAMES - 1}").extrinsics[None].to(device, dtype)
        noise = torch.zeros(1, 8, FRAMES, 4, 4, device=device, dtype=dtype)
        return {"latents": noise, "past": past, "poses": poses, "prompt": self.scene(device, dtype, seed)}

    def camera_path(self, text):
        return Trajectory.from_pose_string(text)

    def recorded_path(self, poses, times, frames):
        return Trajectory.from_poses(poses[torch.linspace(0, len(poses) - 1, frames).long()])

    def scene(self, device="cpu", dtype=torch.float32, seed=0):
        return torch.ones(1, 4, 8, device=device, dtype=dtype)

    def rollout(self, call, scene, path, *, seed=0):
        noise = torch.randn(1, 8, len(path), 4, 4, generator=torch.Generator().manual_seed(seed))
        past = None
        for index, first in enumerate(range(0, len(path), FRAMES)):
            poses = path.extrinsics[None, : first + FRAMES].clone()
            if past is not None:
                torch._dynamo.mark_dynamic(past, 2)
                torch._dynamo.mark_dynamic(poses, 1)
            with torch.no_grad():
                latents = call(noise[:, :, first : first + FRAMES].clone(), past, poses, scene)
            past = latents.clone() if past is None else torch.cat([past, latents], 2)
            yield ChunkResult(index, latents, past)

    def context_frames(self, path, first):
        return range(first)

    def stages(self, module):
        return {}


class Unfinished:
    depth = 2


FAMILY = ModelFamily({"small": Toy, "wide": lambda: Toy(depth=4), "unfinished": Unfinished})
ALONE = ModelFamily({"only": Toy})
'''


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    registry._of_another_package.cache_clear()
    module = "lightint_toy_family"
    families = {"toy": f"{module}:FAMILY", "alone": f"{module}:ALONE", "broken": f"{module}:Toy"}
    other_package.install(tmp_path, monkeypatch, "toy-family", {f"{module}.py": TOY}, {registry.GROUP: families})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    registry._of_another_package.cache_clear()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lightint", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("target", ["toy:small", "alone", "alone:only"])
def test_it_is_explained(target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "explain", target, "-p", "exact") == 0
    assert "lightint · ToyChunk" in capsys.readouterr().out


def test_its_rollout_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--variant", "eager", "--depth", "2", "--trajectory", "w-8", "--repeats", "1"]
    assert run(monkeypatch, "bench", "rollout", "--model", "toy:small", *arguments, "--json", str(tmp_path / "r")) == 0
    assert "Seconds of toy:small along w-8" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "r").read_text())["rows"]
    assert len(result["chunks"]) == 3 and not result["error"]


def test_its_checks_and_flops_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "bench", "checks", "--model", "toy:small", "--device", "cpu", "--seconds", "0") == 0
    assert "all parameters" in capsys.readouterr().out
    depths = ["--depth", "1", "--depth", "2", "--depth", "3"]
    counted = ["--variant", "off", *depths, "--latents", "3", "--trajectory", "w-2"]
    assert run(monkeypatch, "bench", "flops", "--model", "toy:wide", *counted, "--json", str(tmp_path / "f")) == 0
    (chunk,) = json.loads((tmp_path / "f").read_text())["variants"]["off"]
    # two steps: four blocks of 8 x 8 on 48 tokens, and a layer on each of three cameras
    assert chunk["flops"] == {"denoise linear": 2 * 2 * (4 * 48 * 8 * 8 + 3 * 12 * 8)}


@pytest.mark.slow
def test_its_compilation_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--depth", "1", "--inductor-up-to", "0", "--history", "6"]
    assert run(monkeypatch, "bench", "compile", "--model", "toy:small", *arguments) == 0
    assert "lightint warm" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_demonstrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "demo", "--model", "toy:small", "--chunks", "3", "--out", str(tmp_path / "demo")) == 0
    assert len(json.loads((tmp_path / "demo/measurements.json").read_text())) == 6


def test_its_cameras_are_decided_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "decisions", "--model", "toy:small", "--trajectory", "left-8,right-9", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 6, "a chunk of this world has three frames"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("toy:smal", "did you mean 'toy:small'?"),
        ("toy", "toy has several sizes"),
        ("toyy:small", "there is no target 'toyy:small'"),
        (
            "toy:unfinished",
            "toy:unfinished is no world model · at the family toy · Unfinished has no spec, needs_gpu",
        ),
        ("broken", "'broken': this is no model family"),
    ],
)
def test_what_is_wrong_with_a_model_is_one_line(
    target: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "explain", target) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "name", [f"{name}:{size}" for name in registry.FAMILIES for size in registry.family(name).sizes]
)
def test_every_size_of_what_is_built_in_is_a_world_model(name: str) -> None:
    model = registry.world_model(name)
    assert isinstance(model, WorldModel) and name in registry.model_names()
    inputs = model.example_inputs(model.example_history, "meta")
    assert set(model.roles) | set(model.frame_axes) <= set(inputs)
    with_history = model.example_inputs(model.example_history + model.spec.chunk, "meta")
    for argument, axis in model.frame_axes.items():
        more = with_history[argument].shape[axis] - inputs[argument].shape[axis]
        assert more > 0 and more % model.spec.chunk == 0, "a latent frame may have several cameras"


def test_no_command_benchmark_or_demo_names_a_family() -> None:
    package = Path(lightint_compile.__file__).parent
    paths = [
        package / "path_decisions.py",
        *(path for name in ("cli", "bench", "demo", "play") for path in (package / name).rglob("*")),
    ]
    texts = {path: path.read_text().lower() for path in paths if path.suffix == ".py"}
    assert len(texts) > 20
    listed = package / "bench" / "parts" / "listed.py"  # data: which models all measurements are taken of
    named = {path for path, text in texts.items() for name in registry.FAMILIES if name in text}
    assert named == {listed}


def test_the_world_of_the_large_size_is_that_of_the_published_rules() -> None:
    assert registry.world_model(registry.LARGE).spec == PUBLISHED


@pytest.mark.parametrize("name", ["worldplay:tiny", pytest.param("matrix-game:tiny", marks=pytest.mark.slow)])
def test_the_roles_that_a_model_states_are_those_that_are_inferred(name: str) -> None:
    model = registry.world_model(name).at_depth(1)
    inputs = model.example_inputs(model.example_history)
    report = explain(model.module(), *inputs.values(), options={"passes": ""})
    found = [remark.args for section in report.sections for remark in section.remarks if remark.pass_name == "roles"]
    assert {each["input"]: each["role"] for each in found if each["role"]} == dict(model.roles)
