"""Export to .pt2: checked by a fresh process, replaced in one step or not at all, and an error for everything else."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerated_here import accelerated_here
from export_here import run_here

import lightint_compile
from lightint_compile.errors import ExportError, LightintError
from lightint_compile.exporting import format_of
from lightint_compile.exporting.check import relative_difference, worst_difference
from lightint_compile.torch_compat import solves_sizes_in_integers

pytestmark = pytest.mark.usefixtures("undone")

PLAIN = {"passes": "canonicalize-attention"}
NEEDS_ONNX = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed"
)


class Attention(torch.nn.Module):
    """Attention written by hand, with a buffer, nested outputs and a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_qkv = torch.nn.Linear(16, 48)
        self.register_buffer("shift", torch.ones(16))

    def forward(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> dict[str, object]:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        weights = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, dim=-1)
        out = (weights @ v).transpose(1, 2).flatten(2) + self.shift
        return {"out": out if bias is None else out + bias, "frames": x.shape[1], "parts": [out.mean(), None]}


@pytest.fixture
def call() -> tuple[Attention, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, bias = (torch.randn(1, 6, 16, generator=generator) for _ in range(2))
    return Attention().eval(), x, bias


def test_the_rewritten_program_is_written_and_runs_in_a_fresh_process(
    call: tuple[Attention, torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    module, x, bias = call
    path = tmp_path / "deep" / "attention.pt2"
    written = lightint_compile.export(
        module, (x,), path, kwargs={"bias": bias}, options=PLAIN, dynamic={"x": 1, "bias": 1}
    )
    assert written.path == path and written.difference < 1e-4 and written.compared_with == "the module"
    assert "checked in a fresh process" in str(written)
    assert [file.name for file in path.parent.iterdir()] == ["attention.pt2"]

    loaded = lightint_compile.load(path)
    attention = torch.ops.aten.scaled_dot_product_attention.default
    assert [node.target for node in loaded.program.graph.nodes].count(attention) == 1
    assert loaded.report == written.report and loaded.report.rewritten == 1

    longer = torch.randn(1, 9, 16)
    found, expected = loaded(longer, bias=longer), module(longer, bias=longer)
    assert found["frames"] == 9 and found["parts"][1] is None
    torch.testing.assert_close(found["out"], expected["out"])
    torch.testing.assert_close(found["parts"][0], expected["parts"][0])


def test_a_captured_program_can_be_written_too(
    call: tuple[Attention, torch.Tensor, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x, _ = call
    monkeypatch.setattr("lightint_compile.exporting.writing.run_fresh", run_here)
    captured = torch.export.export(module, (x,))
    lightint_compile.export(captured, (x,), tmp_path / "a.pt2", options=PLAIN)
    torch.testing.assert_close(lightint_compile.load(tmp_path / "a.pt2")(x)["out"], module(x)["out"])
    with pytest.raises(ExportError, match="dynamic sizes cannot be added"):
        lightint_compile.export(captured, (x,), tmp_path / "a.pt2", options=PLAIN, dynamic={"x": 1})


def spoilt(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
    """A backend whose results are off by a percent."""
    return lambda *args: tuple(1.01 * value for value in graph.forward(*args))


def whole(module: Attention) -> torch.nn.Module:
    made: torch.nn.Module = torch.compile(module, backend=spoilt)  # type: ignore[assignment]
    return made


def in_place(module: Attention) -> torch.nn.Module:
    module.compile(backend=spoilt)
    return module


def its_part(module: Attention) -> torch.nn.Module:
    module.to_qkv = torch.compile(module.to_qkv, backend=spoilt)  # type: ignore[assignment]
    return module


def accelerated(module: Attention) -> torch.nn.Module:
    return accelerated_here(module, preset="exact", delegate="eager")


@pytest.mark.parametrize("way", [whole, in_place, its_part, accelerated], ids=lambda way: way.__name__)
def test_of_what_is_compiled_already_the_code_before_is_written_and_compared_with(
    way: Callable[[Attention], torch.nn.Module],
    call: tuple[Attention, torch.Tensor, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightint_compile.exporting.writing.run_fresh", run_here)
    module, x, _ = call
    with torch.no_grad():
        eager = module(x)["out"]
        made = way(module)
        written = lightint_compile.export(made, (x,), tmp_path / "attention.pt2", options=PLAIN)
        assert written.difference < 1e-4
        torch.testing.assert_close(lightint_compile.load(written.path)(x)["out"], eager)


def test_a_failed_check_leaves_the_old_file(
    call: tuple[Attention, torch.Tensor, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x, _ = call
    path = tmp_path / "a.pt2"
    path.write_text("precious")
    monkeypatch.setattr("lightint_compile.exporting.writing.run_fresh", lambda *_: [torch.zeros(1, 6, 16)] * 4)
    with pytest.raises(ExportError, match="computes something else"):
        lightint_compile.export(module, (x,), path, options=PLAIN)
    assert path.read_text() == "precious" and [file.name for file in tmp_path.iterdir()] == ["a.pt2"]


@pytest.mark.parametrize("name", ["model.so", "model"])
def test_an_unknown_suffix_says_what_is_known(name: str, tmp_path: Path) -> None:
    for act in (
        lambda: lightint_compile.export(Attention(), (torch.randn(1, 6, 16),), tmp_path / name),
        lambda: lightint_compile.load(tmp_path / name),
    ):
        with pytest.raises(ExportError, match=r"known: \.pt2"):
            act()


def test_formats_go_by_the_longest_suffix_or_by_their_name(tmp_path: Path) -> None:
    assert [format_of(name).name for name in ("m.pt2", "m.aoti.pt2", "m.onnx")] == ["pt2", "aoti", "onnx"]
    assert format_of("m.pt2", "aoti").name == "aoti"
    with pytest.raises(ExportError, match="no export format 'trt'"):
        lightint_compile.export(Attention(), (torch.randn(1, 6, 16),), tmp_path / "m.pt2", format="trt")
    with pytest.raises(ExportError, match="not loaded into PyTorch") as caught:
        lightint_compile.load(tmp_path / "m.onnx")
    assert "onnxruntime" in caught.value.fix


@pytest.mark.parametrize("preset", ["context", "cache", "all", "published"])
def test_a_preset_that_decides_at_run_time_decides_nothing_where_there_is_no_world(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightint_compile.exporting.writing.run_fresh", run_here)
    options = {"preset": preset}
    written = lightint_compile.export(Attention(), (torch.randn(1, 6, 16),), tmp_path / "m.pt2", options=options)
    assert written.inputs == written.outputs == {} and len(written.checks) == 1


@pytest.mark.parametrize("place", ["file/m.pt2", "folder.pt2"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightint_compile.exporting.writing.captured", None)
    (tmp_path / "file").touch()
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ExportError, match="cannot be written there") as caught:
        lightint_compile.export(Attention(), (torch.randn(1, 6, 16),), tmp_path / place)
    assert "folder that can be written" in caught.value.fix
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.pt2"]


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


class Writing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1) * 2


@pytest.mark.parametrize(
    ("module", "extra", "said"),
    [
        (Branching(), {}, "torch.export cannot capture the call"),
        (Writing(), {}, "the program cannot be rewritten"),
        (torch.nn.Linear(2, 2, device="meta"), {}, "there are no weights to write"),
        (torch.nn.Linear(2, 2), {"dynamic": {"y": 0}}, "'y' is not a tensor argument"),
        (torch.relu, {}, "only a module or an exported program"),
    ],
)
def test_what_cannot_be_written_is_an_error(
    module: torch.nn.Module, extra: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(LightintError, match=said):
        lightint_compile.export(module, (torch.randn(2, 2),), tmp_path / "m.pt2", options={"passes": ""}, **extra)
    assert not list(tmp_path.iterdir())


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Writing more than ``size`` bytes into a file fails, as on a full disk."""
    resource = pytest.importorskip("resource", reason="the system sets no limits on files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["m.pt2", pytest.param("m.onnx", marks=[NEEDS_ONNX, pytest.mark.slow])])
def test_on_a_full_disk_there_is_one_error_and_the_old_file(name: str, tmp_path: Path) -> None:
    module, x = torch.nn.Linear(512, 512).eval(), torch.randn(2, 512)
    (tmp_path / name).write_text("precious")
    with room_for(2**19), pytest.raises(ExportError, match=r"(?s)cannot be written.*File too large"):
        lightint_compile.export(module, (x,), tmp_path / name)
    gc.collect()  # a writer of PyTorch's that could not end its archive would end the process now
    assert (tmp_path / name).read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_package_on_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("torch._inductor.package").package_aoti

    def without_room(*args: object) -> object:
        with room_for(2**12):
            return package(*args)

    monkeypatch.setattr("torch._inductor.package.package_aoti", without_room)
    with pytest.raises(ExportError, match=r"(?s)cannot be written.*File too large"):
        lightint_compile.export(torch.nn.Linear(8, 8).eval(), (torch.randn(2, 8),), tmp_path / "m.aoti.pt2")
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_arguments_that_the_disk_has_no_room_for_are_one_error(tmp_path: Path) -> None:
    small, large = torch.randn(2, 8), torch.randn(2**17, 8)
    with room_for(2**19), pytest.raises(ExportError, match="arguments cannot be written for the check"):
        lightint_compile.export(
            torch.nn.Linear(8, 8).eval(), (small,), tmp_path / "m.pt2", dynamic={"input": 0}, checks=[((large,), {})]
        )
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightint_compile.exporting.writing.captured", None)
    tmp_path.chmod(0o500)
    with pytest.raises(ExportError, match=r"(?s)cannot be written there.*PermissionError"):
        lightint_compile.export(Attention(), (torch.randn(1, 6, 16),), tmp_path / "m.pt2")


class Rows(torch.nn.Module):
    """Five tokens of text and frames of 35 tokens; ``forward`` finds out how many frames there are."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[5:].reshape((tokens.shape[0] - 5) // 35, 35).sum(1)


def of_rows() -> torch.export.ExportedProgram:
    size = 35 * torch.export.Dim("frames", min=2, max=64) + 5
    return torch.export.export(Rows(), (torch.randn(250),), dynamic_shapes=({0: size},))


def test_a_size_that_a_package_would_get_wrong_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightint_compile.exporting.aoti.solves_sizes_in_integers", lambda: False)
    with pytest.raises(ExportError, match=r"(?s)dimension 0 of tokens.*35\*.*rounding errors"):
        lightint_compile.export(of_rows(), (torch.randn(250),), tmp_path / "m.aoti.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_older_versions_of_pytorch_get_such_a_size_wrong(tmp_path: Path) -> None:
    """The fault that the error above is for."""
    path = torch._inductor.aoti_compile_and_package(of_rows(), package_path=str(tmp_path / "m.pt2"))
    found = torch._inductor.aoti_load_package(path)(torch.randn(250))
    assert found.shape == ((7,) if solves_sizes_in_integers() else (6,))


@pytest.mark.slow
@pytest.mark.skipif(not solves_sizes_in_integers(), reason="this version of torch refuses the program")
def test_where_it_gets_it_right_the_package_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.aoti.pt2"
    lightint_compile.export(of_rows(), (torch.randn(250),), path)
    for frames in range(2, 65):
        tokens = torch.randn(35 * frames + 5)
        torch.testing.assert_close(lightint_compile.load(path)(tokens), Rows()(tokens))


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no such file"):
        lightint_compile.load(tmp_path / "absent.pt2")
    (tmp_path / "torn.pt2").write_bytes(b"not an archive")
    with pytest.raises(ExportError, match="the archive cannot be read"):
        lightint_compile.load(tmp_path / "torn.pt2")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([torch.ones(2)], "has other outputs"),
        ([torch.ones(3), 1], "another type"),
        ([torch.ones(2).double(), 1], "another type"),
        ([torch.ones(2) * 1.001, 1], "something else"),
        ([torch.full((2,), float("nan")), 1], "something else"),
        ([torch.tensor([1.0, float("inf")]), 1], "something else"),
        ([torch.ones(2), 2], "another value"),
    ],
)
def test_the_comparison_notices_every_kind_of_difference(found: list[object], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        worst_difference(found, (torch.ones(2), 1))


def test_the_comparison_allows_rounding_and_equal_infinities() -> None:
    assert 0 < worst_difference([torch.ones(2) * (1 + 1e-6)], torch.ones(2)) < 1e-5
    endless = torch.tensor([float("inf"), 1.0])
    assert relative_difference(endless, endless.clone()) == 0.0
    assert worst_difference([torch.tensor([1, 2])], torch.tensor([1, 2])) == 0.0
