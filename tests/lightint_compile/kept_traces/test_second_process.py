"""A later process takes the trace that an earlier one kept, and notices everything that makes it another one."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import foreign_tensors
import pytest
import torch
from quick_variants import mostly_slow
from torch import Tensor, nn

import lightint_compile
from lightint_compile.torch_frames import opens_frames

pytestmark = pytest.mark.skipif(not opens_frames(), reason="traces are kept under torch 2.14 only")

MODULE = """
import os
import torch
from collections import namedtuple
from torch import nn

Pair = namedtuple("Pair", ("scale", "shift"))
SHIFT = 0.5

def squashed(x):
    return torch.tanh(x)

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.gain = 1.0
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        pair = Pair(self.gain, SHIFT)
        return self.drop(squashed(self.linear(x))) * pair.scale + pair.shift

class Model(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])

    def forward(self, x):
        x = x.repeat_interleave(16, 0)
        for block in self.blocks:
            x = block(x)
        return x

class Reading(nn.Module):
    def forward(self, x):
        return torch.tanh(x.repeat_interleave(16, 0)) * float(os.environ.get("TRACED_SCALE", "1"))

class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, cache):
        y = torch.tanh(self.linear(x.repeat_interleave(16, 0)))
        cache[:, 2:4] = y[:2, :2]
        return y + cache.sum()
"""

RUN = """
import json, sys, torch, lightint_compile
sys.path.insert(0, sys.argv[1])
import traced_model
torch.manual_seed(0)
found = []
with torch.no_grad():
    for make, inputs in (
        (traced_model.Model, (torch.randn(2, 8),)),
        (traced_model.Caching, (torch.randn(2, 4, 8), torch.zeros(2, 6, 8))),
    ):
        torch.manual_seed(1)
        model = make().eval().requires_grad_(False)
        compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "traces": True})
        result = compiled(*inputs)
        (section,) = lightint_compile.report(compiled).sections
        found.append([section.measurements.get("kept trace", 0.0), result.tolist(), [each.tolist() for each in inputs]])
print(json.dumps(found))
"""


def run(folder: Path, cache: Path) -> Any:
    """What the script above says in a process of its own: whether each trace was kept, results, and inputs after it."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", RUN, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sources")
    (made / "traced_model.py").write_text(MODULE)
    return made


@pytest.fixture(scope="module")
def first(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A process that traces, and the cache that it leaves."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, run(folder, cache)


@pytest.fixture(scope="module")
def here(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache that this process leaves; it counts as a later one once Dynamo and the module are forgotten."""
    cache = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
        patch.syspath_prepend(str(folder))
        module = forgotten()
        assert not kept(model_of(module), torch.randn(2, 8))
        assert not kept(model_of(module), torch.randn(5, 8))
        yield cache
        forgotten()


def forgotten() -> ModuleType:
    torch._dynamo.reset()
    sys.modules.pop("traced_model", None)
    return importlib.import_module("traced_model")


@pytest.fixture
def second(here: Path) -> ModuleType:
    """The module as a later process has it."""
    return forgotten()


def kept(model: nn.Module, *inputs: Tensor, **options: Any) -> bool:
    """Whether a call took a kept trace; its result is that of the model itself."""
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "traces": True, **options})
    state = torch.get_rng_state()
    found = compiled(*inputs)
    torch.set_rng_state(state)
    if not model.training:
        torch.testing.assert_close(found, model(*inputs))
    return any(section.measurements.get("kept trace") for section in lightint_compile.report(compiled).sections)


def model_of(module: ModuleType, width: int = 8) -> Any:
    torch.manual_seed(1)
    return module.Model(width).eval().requires_grad_(False)


def test_a_second_process_does_not_trace_and_its_results_are_equal(folder: Path, first: tuple[Path, Any]) -> None:
    cache, traced = first
    found = run(folder, cache)
    assert [each[0] for each in traced] == [0.0, 0.0]
    assert [each[0] for each in found] == [1.0, 1.0]
    assert [each[1:] for each in found] == [each[1:] for each in traced], "bit for bit, what is written to included"


@torch.no_grad()
def test_the_trace_serves_what_its_guards_allow(second: ModuleType) -> None:
    assert kept(model_of(second), torch.randn(2, 8))
    model = model_of(second)
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "traces": True})
    compiled(torch.randn(2, 8))
    with torch.no_grad():
        model.blocks[0].linear.weight.mul_(2.0)
    x = torch.randn(2, 8)
    torch.testing.assert_close(compiled(x), model(x), msg="weights are no part of it")
    model.blocks[1].gain = 3.0
    torch.testing.assert_close(compiled(x), model(x), msg="guards hold in later calls as well")


def _wider(module: ModuleType) -> tuple[Any, Tensor]:
    return model_of(module, 16), torch.randn(2, 16)


def _one_weight(module: ModuleType) -> tuple[Any, Tensor]:
    model = model_of(module)
    model.blocks[2].linear = nn.Linear(8, 8, bias=False)
    return model, torch.randn(2, 8)


def _attribute(module: ModuleType) -> tuple[Any, Tensor]:
    model = model_of(module)
    model.blocks[1].gain = 2.0
    return model, torch.randn(2, 8)


def _dtype(module: ModuleType) -> tuple[Any, Tensor]:
    return model_of(module).double(), torch.randn(2, 8, dtype=torch.float64)


def _training(module: ModuleType) -> tuple[Any, Tensor]:
    return model_of(module).train(), torch.randn(2, 8)


def _constant(module: ModuleType) -> tuple[Any, Tensor]:
    vars(module)["SHIFT"] = 0.25
    return model_of(module), torch.randn(2, 8)


def _function(module: ModuleType) -> tuple[Any, Tensor]:
    vars(module)["squashed"] = torch.sigmoid
    return model_of(module), torch.randn(2, 8)


def _method(module: ModuleType) -> tuple[Any, Tensor]:
    module.Block.forward = lambda self, x: self.linear(x) + 1.0
    return model_of(module), torch.randn(2, 8)


def _of_torch(module: ModuleType) -> tuple[Any, Tensor]:
    vars(module)["torch"] = importlib.import_module("types").SimpleNamespace(tanh=torch.relu)
    return model_of(module), torch.randn(2, 8)


def _hook(module: ModuleType) -> tuple[Any, Tensor]:
    model = model_of(module)
    model.blocks[0].register_forward_hook(lambda module, args, result: result * 2.0)
    return model, torch.randn(2, 8)


def _forward(module: ModuleType) -> tuple[Any, Tensor]:
    model = model_of(module)
    model.blocks[0].linear.forward = lambda x: x * 4.0
    return model, torch.randn(2, 8)


def _property(module: ModuleType) -> tuple[Any, Tensor]:
    class Other(module.Block):  # type: ignore[misc, name-defined]
        gain = property(lambda self: 4.0, lambda self, value: None)

    model = model_of(module)
    model.blocks[0] = Other(8).eval().requires_grad_(False)
    return model, torch.randn(2, 8)


def _tied(module: ModuleType) -> tuple[Any, Tensor]:
    model = model_of(module)
    model.blocks[1] = model.blocks[0]
    return model, torch.randn(2, 8)


def _foreign(module: ModuleType) -> tuple[Any, Tensor]:
    model = model_of(module)
    foreign_tensors.wrap(model, "blocks.1.linear.weight")
    return model, torch.randn(2, 8)


def _foreign_input(module: ModuleType) -> tuple[Any, Tensor]:
    return model_of(module), foreign_tensors.Scaled.of(torch.randn(2, 8))


#: A weight that is gone, one that is tied, another dtype, an attribute, a global, a hook, and a tensor that is foreign.
QUICK = {_one_weight, _tied, _dtype, _attribute, _function, _hook, _foreign_input}
CHANGES = [
    *(_wider, _one_weight, _attribute, _dtype, _training, _constant, _function, _method),
    *(_of_torch, _hook, _forward, _property, _tied, _foreign, _foreign_input),
]


@pytest.mark.parametrize(
    "change",
    mostly_slow(CHANGES, quick=QUICK),
    ids=lambda change: change.__name__.strip("_"),
)
@torch.no_grad()
def test_what_changed_is_traced_again(second: ModuleType, change: Callable[[ModuleType], tuple[Any, Tensor]]) -> None:
    assert not kept(*change(second))


@torch.no_grad()
def test_a_longer_input_takes_the_trace_of_changing_sizes(second: ModuleType) -> None:
    assert kept(model_of(second), torch.randn(7, 8))
    assert not kept(model_of(second), torch.randn(3, 4, 8))


@torch.enable_grad()
def test_gradients_are_another_state_of_the_process(second: ModuleType) -> None:
    assert not kept(model_of(second), torch.randn(2, 8))


@torch.no_grad()
def test_a_changed_source_is_another_trace(second: ModuleType, folder: Path) -> None:
    """What the test below shows in a process of its own."""
    assert kept(model_of(second), torch.randn(2, 8))
    path = folder / "traced_model.py"
    path.write_text(MODULE.replace("torch.tanh(x)", "torch.sigmoid(x)"))
    try:
        assert not kept(model_of(forgotten()), torch.randn(2, 8))
    finally:
        path.write_text(MODULE)


@pytest.mark.slow
@torch.no_grad()
def test_a_changed_source_is_traced_again(folder: Path, first: tuple[Path, Any], tmp_path: Path) -> None:
    cache, traced = first
    path = folder / "traced_model.py"
    path.write_text(MODULE.replace("torch.tanh(x)", "torch.sigmoid(x)"))
    try:
        found = run(folder, shutil.copytree(cache, tmp_path / "cache"))
    finally:
        path.write_text(MODULE)
    assert [each[0] for each in found] == [0.0, 0.0]
    assert found[0][1] != traced[0][1]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "gone"])
@torch.no_grad()
def test_a_damaged_trace_is_a_call_that_is_traced(
    damage: str, second: ModuleType, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shutil.copytree(here, tmp_path / "cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    for path in cache.glob("lightint/*/*.trace"):
        content = path.read_bytes()
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        path.write_bytes({"cut": content[:100], "changed": flipped, "empty": b"", "gone": content}[damage])
        if damage == "gone":
            (path.parent / "record.json").unlink(missing_ok=True)
    assert not kept(model_of(second), torch.randn(2, 8))


@pytest.mark.parametrize("length", [2, 7])
@torch.no_grad()
def test_a_call_that_fails_is_answered_by_the_graph_traced_anew(
    length: int, second: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = model_of(second), torch.randn(length, 8)
    compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "traces": True})
    compiled(x)
    (graph,) = lightint_compile.compiled.CompiledGraph.of(compiled)
    assert graph.driver is not None

    def broken(*args: Any) -> Any:
        raise RuntimeError("for the test")

    monkeypatch.setattr(graph.driver, "_forward", broken)
    for _ in range(5):
        torch.testing.assert_close(compiled(x), model(x))
    assert graph.section.measurements["kept trace"]
    assert "a call failed" in str(lightint_compile.report(compiled).sections[0].remarks)


@torch.no_grad()
def test_the_report_says_why_a_trace_is_not_kept(second: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, factor = model_of(second), torch.tensor(2.0)
    compiled = torch.compile(
        lambda x: model(x) * factor, backend="lightint", options={"preset": "exact", "traces": True}
    )
    compiled(torch.randn(2, 8))
    (section,) = lightint_compile.report(compiled).sections
    (remark,) = [remark for remark in section.remarks if remark.rule == "trace"]
    assert "variables of the one that it was made in" in remark.message


@torch.no_grad()
def test_traces_travel_with_the_programs_of_a_folder(
    second: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, folder = torch.randn(2, 8), tmp_path / "programs"
    with lightint_compile.keep_artifacts(folder):
        assert not kept(model_of(second), x)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert not kept(model_of(forgotten()), x)
    shutil.rmtree(tmp_path / "elsewhere")
    assert not kept(model_of(forgotten()), x, artifacts=folder, traces=False)
    assert kept(model_of(forgotten()), x, artifacts=folder)


@torch.no_grad()
def test_what_is_replaced_in_torch_itself_is_noticed(second: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda self, x: x @ self.weight.t() * 2.0)
        assert not kept(model_of(second), x)
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, result: result)
    try:
        assert not kept(model_of(forgotten()), x)
    finally:
        hook.remove()
    assert kept(model_of(forgotten()), x)


@torch.no_grad()
def test_a_function_that_reads_the_environment_is_traced_in_every_process(
    second: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not kept(second.Reading(), torch.randn(2, 8))
    monkeypatch.setenv("TRACED_SCALE", "3")
    assert not kept(forgotten().Reading(), torch.randn(2, 8))


@torch.no_grad()
def test_another_backend_has_none_of_it(second: ModuleType) -> None:
    model, x = model_of(second), torch.randn(2, 8)
    assert kept(model, x)
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x))
