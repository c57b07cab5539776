"""An accelerated rollout without PyTorch's compiler or without Python: equal to the driver's, decisions included."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_world import CHUNK, ToyWorld, there_and_back

import lightint_compile
import lightint_compile.exporting

pytestmark = pytest.mark.slow
DOCS = Path(__file__).resolve().parents[3] / "docs/how-to"
CHUNKS = 8


@pytest.fixture(scope="module")
def driven() -> dict[str, Any]:
    """A rollout of eight chunks by the driver: what it was given, its latents and its decisions."""
    torch.manual_seed(0)
    module = ToyWorld().eval().requires_grad_(False)
    cameras = there_and_back(CHUNKS * CHUNK, turn=3.0).contiguous()
    noise = torch.randn(1, 4, CHUNKS * CHUNK, 4, 6, generator=torch.Generator().manual_seed(1))
    first = module(noise[:, :, :CHUNK].contiguous(), None, cameras[:, :CHUNK].contiguous())
    options = {"preset": "all", "delegate": "eager", "strict": True}
    compiled = torch.compile(module, backend="lightint", options=options)
    history = first
    for number in range(1, CHUNKS):
        place = slice(number * CHUNK, number * CHUNK + CHUNK)
        seen = cameras[:, : place.stop].contiguous()
        torch._dynamo.mark_dynamic(history, 2)
        torch._dynamo.mark_dynamic(seen, 1)
        history = torch.cat([history, compiled(noise[:, :, place].contiguous(), history, seen)], 2)
    made = lightint_compile.decisions(compiled)[1:]  # of the first chunk, which has no history, nothing is decided
    assert any(decision.reused_steps for decision in made)
    return {"module": module, "cameras": cameras, "noise": noise, "first": first, "latents": history, "made": made}


def written(driven: dict[str, Any], path: Path) -> lightint_compile.exporting.Exported:
    frames = 24
    args = (
        driven["noise"][:, :, :CHUNK].contiguous(),
        torch.randn(1, 4, frames, 4, 6),
        driven["cameras"][:, : frames + CHUNK].contiguous(),
    )
    dynamic = {"history": 2, "extrinsics": 1}
    return lightint_compile.export(driven["module"], args, path, options={"preset": "all"}, dynamic=dynamic)


def drift_of(made: lightint_compile.exporting.Exported) -> float:
    """The limit that the options say, from what the input is told to mean."""
    return float(made.inputs["largest_drift"].rpartition(" ")[2])


def test_onnxruntime_rolls_out_as_the_driver_does(driven: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    made = written(driven, tmp_path / "chunk.onnx")
    assert made.decide is not None
    (code,) = re.findall(r"```python title=\"rollout\"\n(.*?)```", (DOCS / "export.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "rollout.py", "exec"), names)
    given = {name: driven[name].numpy() for name in ("noise", "cameras", "first")}
    found, decided = names["rollout"](made.path, made.decide, **given, chunks=CHUNKS, drift=drift_of(made))
    torch.testing.assert_close(torch.from_numpy(found), driven["latents"], rtol=1e-4, atol=1e-4)
    assert [tuple(each["context_frames"]) for each in decided] == [each.context_frames for each in driven["made"]]
    assert [each["reuse"] for each in decided] == [bool(each.reused_steps) for each in driven["made"]]


def built(folder: Path) -> Path:
    """The example in C++, compiled."""
    root, program = Path(torch.__file__).parent, folder / "rollout"
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    libraries = [
        f"-L{root / 'lib'}",
        f"-Wl,-rpath,{root / 'lib'}",
        "-Wl,--no-as-needed",
        "-ltorch_cpu",
        "-ltorch",
        "-lc10",
    ]
    command = ["g++", "-std=c++20", "-O0", abi, *includes, str(DOCS / "rollout.cpp")]
    done = subprocess.run([*command, "-o", str(program), *libraries], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return program


class Held(torch.nn.Module):
    """Tensors that C++ reads."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self) -> None:
        return None


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_cpp_rolls_out_as_the_driver_does(driven: dict[str, Any], tmp_path: Path) -> None:
    program = built(tmp_path)
    made = written(driven, tmp_path / "chunk.aoti.pt2")
    assert made.decide is not None and list(made.inputs) == [
        "context_frames",
        "reuse_step_1",
        "largest_drift",
        "reuse_step_2",
    ]
    tensors = {name: driven[name] for name in ("noise", "cameras", "first")}
    torch.jit.script(Held({**tensors, "drift": torch.tensor(drift_of(made))})).save(tmp_path / "tensors.pt")
    command = [program, made.path, made.decide, tmp_path / "tensors.pt", CHUNKS, tmp_path / "out.pt"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(found, driven["latents"], rtol=1e-4, atol=1e-4)
    counts = re.findall(r"(\d+) context frames", done.stdout)
    assert list(map(int, counts)) == [len(each.context_frames) for each in driven["made"]]
