"""Export to ONNX: attention is one node, regions are functions, stock onnxruntime runs what was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from quick_variants import mostly_slow
from torch import Tensor, nn
from toy_world import ToyWorld, there_and_back

import lightint_compile
from lightint_compile.errors import DeviceError, ExportError
from lightint_compile.exporting import onnx_model
from lightint_compile.exporting.writing import Exported

try:
    import netron
except ImportError:
    netron = None
onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, dim=-1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Blocks(nn.Module):
    """Blocks with attention written by hand, a branch on data, and results of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Any]:
        for block in self.blocks:
            x = block(x)
        larger = torch.cond(shift > 0, lambda y, s: y * 2 + s, lambda y, s: y - s, (x, shift))
        return {"out": larger, "tokens": x.shape[1], "none": None}


def operators(path: Path) -> Counter[str]:
    """How often each operator stands in a model, functions and branches included, each function once."""
    model, found = onnx.load(path), Counter[str]()
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        found[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
        waiting += [each for attribute in node.attribute for each in attribute.g.node]
    return found


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Blocks, Exported]:
    module, path = Blocks().eval().requires_grad_(False), tmp_path_factory.mktemp("blocks") / "m.onnx"
    x, shift = torch.randn(1, 6, 16), torch.tensor(1.0)
    return module, lightint_compile.export(
        module, (x,), path, kwargs={"shift": shift}, dynamic={"x": 1}, checks=[((x,), {"shift": -shift})]
    )


def test_blocks_are_one_function_and_their_attention_one_node(blocks: tuple[Blocks, Exported]) -> None:
    module, written = blocks
    path = written.path
    assert written.difference < 1e-4 and [check.name for check in written.checks] == [
        "example",
        "check 1",
        "4 more of every size",
    ]
    model = onnx.load(path)
    assert {each.domain: each.version for each in model.opset_import}[""] == onnx_model.OPSET
    found = operators(path)
    assert found["Attention"] == 1 and found["lightint.regions::block_0"] == 3 and found["If"] == 1
    assert {entry.key for entry in model.metadata_props} >= {"lightint.report", "lightint.inputs"}

    session = onnxruntime.InferenceSession(path)
    assert [each.name for each in session.get_inputs()] == ["x", "shift"]
    assert [each.name for each in session.get_outputs()] == ["out", "tokens"]
    longer = torch.randn(1, 11, 16)
    for sign in (1.0, -1.0):
        out, tokens = session.run(None, {"x": longer.numpy(), "shift": np.array(sign, np.float32)})
        torch.testing.assert_close(torch.from_numpy(out), module(longer, shift=torch.tensor(sign))["out"])
        assert tokens == 11


class Formed(nn.Module):
    """Results in a form: of an input, a value computed from it, and a view of that."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form, self.linear = form, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return self.form(x, self.linear(x))


FORMED: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str]]] = {
    "twice": (lambda x, y: (y, y), ["0", "1"]),
    "an input": (lambda x, y: (x, y, x), ["0", "1", "2"]),
    "an input alone": (lambda x, y: {"x": x, "sample": y}, ["x_", "sample"]),
    "two names": (lambda x, y: {"sample": y, "x0": y}, ["sample", "x0"]),
    "a view": (lambda x, y: {"parts": [y, y.view(8, 2)]}, ["parts.0", "parts.1"]),
    "none": (lambda x, y: (None, y, None, y), ["1", "3"]),
}


#: The others have a twin among the forms of test_onnx_results.py.
QUICK = {"twice", "an input"}


@pytest.mark.parametrize("name", mostly_slow(FORMED, quick=QUICK))
def test_every_result_is_an_output_of_its_own_name(name: str, tmp_path: Path) -> None:
    form, names = FORMED[name]
    module, x = Formed(form).eval(), torch.randn(2, 8)
    lightint_compile.export(module, (x,), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [each.name for each in session.get_outputs()] == names
    wanted = [each for each in pytree.tree_leaves(module(x)) if each is not None]
    for name, value in zip(names, wanted, strict=True):
        (found,) = session.run([name], {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), value)


def test_the_checker_and_shape_inference_take_the_model(blocks: tuple[Blocks, Exported]) -> None:
    model = onnx.load(blocks[1].path)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    (out, tokens) = (each.type.tensor_type for each in inferred.graph.output)
    assert [each.dim_value or each.dim_param for each in out.shape.dim][::2] == [1, 16] and not tokens.shape.dim


UNSHUT = "{const own = window.eval; Object.defineProperty(window, 'eval', {get: () => own, set() {}})}"
"""Netron takes ``eval`` away, by which a page is looked at."""


def test_netron_reads_the_model_and_draws_its_regions(blocks: tuple[Blocks, Exported]) -> None:
    if netron is None:
        pytest.skip("netron is not installed")
    with browser.browser() as running:
        host, port = netron.start(str(blocks[1].path), browse=False)
        try:
            address = f"http://{host}:{port}"
            context = running.new_context()
            context.add_cookies([{"name": "consent", "value": "1", "url": address}])
            context.add_init_script(UNSHUT)
            context.route(lambda url: not url.startswith(address), lambda route: route.abort())
            page = context.new_page()
            page.goto(address)
            page.locator("#canvas .node").first.wait_for(timeout=30_000)
            labels = page.locator("#canvas .node text").all_text_contents()
        finally:
            netron.stop((host, port))
    assert labels.count("block_0") == 3 and {"x", "shift", "out"} <= set(labels)


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x)


class Inverts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).abs()


@pytest.mark.parametrize(
    ("module", "x", "said"),
    [
        (nn.Identity(), torch.zeros(2, dtype=torch.complex64), "a dtype has no ONNX form"),
        (Inverts(), torch.eye(3), "the program has no ONNX form"),
    ],
)
def test_what_has_no_form_is_one_error_and_no_file(module: nn.Module, x: Tensor, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        lightint_compile.export(module, (x,), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match="not installed") as caught:
        lightint_compile.export(nn.Identity(), (torch.zeros(2),), tmp_path / "m.onnx")
    assert "lightint[onnx]" in caught.value.fix and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_large_weights_lie_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "INLINE", 1000)
    path = tmp_path / "m.onnx"
    written = lightint_compile.export(nn.Linear(64, 64).eval(), (torch.randn(2, 64),), path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 16_000 < (tmp_path / "m.onnx.data").stat().st_size
    assert written.difference < 1e-5


@pytest.mark.slow
def test_decisions_are_inputs_and_sparse_attention_is_a_node_with_a_body(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path = ToyWorld().eval().requires_grad_(False), tmp_path / "m.onnx"
    args = (torch.randn(1, 4, 4, 4, 6), torch.randn(1, 4, 24, 4, 6), there_and_back(56)[:, :28].contiguous())
    options = {"preset": "all", "min_tokens": 0}
    written = lightint_compile.export(module, args, path, options=options, dynamic={"history": 2, "extrinsics": 1})
    assert list(written.inputs) == ["context_frames", "reuse_step_1", "largest_drift", "reuse_step_2"]
    assert list(written.outputs) == ["reused_step_1", "reused_step_2"]
    assert "every step reused" in [check.name for check in written.checks] and written.difference < 1e-4
    assert written.decide == tmp_path / "m.decide.onnx" and written.decide.exists()
    found = operators(path)
    assert found["If"] == 2 and found["ai.lightint::SparseAttention"] >= 1
    functions = {(each.domain, each.name) for each in onnx.load(path).functions}
    assert ("ai.lightint", "SparseAttention") in functions
