"""A graph with tensors that have operations of their own is handed on as it is: no program of ours can take them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from foreign_tensors import (
    Caching,
    Closed,
    Named,
    Repeating,
    Scaled,
    Scaling,
    Stacked,
    plain_double,
    reference,
    unwrapped,
    wrap,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import lightint_compile
from lightint_compile.capture import foreign_tensors
from lightint_compile.capture.foreign_tensors import is_foreign, is_inside_an_operation
from lightint_compile.errors import ExportError, LightintError
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.torch_compat import NEWEST, TORCH

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_dynamo")


class Case(NamedTuple):
    """A model, what of it is wrapped, a call's inputs, and what the report calls the first wrapper."""

    make: Callable[[], nn.Module]
    wrapped: tuple[str, ...]
    inputs: Callable[[], tuple[Any, ...]]
    called: str


def rows() -> tuple[Any, ...]:
    return (torch.randn(2, 8),)


CASES = {
    "gain": Case(Repeating, ("gain",), rows, "the parameter gain is"),
    "linear": Case(Repeating, ("linear.weight",), rows, "the parameter linear.weight is"),
    "buffer": Case(Repeating, ("offset",), rows, "the buffer offset is"),
    "input": Case(Repeating, (), lambda: (Scaled.of(torch.randn(2, 8)),), "the input x is"),
    "dictionary": Case(Scaling, (), lambda: (torch.randn(2, 8), {"scale": Scaled.of(torch.rand(8))}), "the input"),
    "block": Case(Stacked, ("blocks.1.linear.weight",), rows, "the parameter blocks.1.linear.weight is"),
    "blocks": Case(Stacked, tuple(f"blocks.{i}.gain" for i in range(3)), rows, "the parameter blocks.0.gain is"),
    "cache": Case(
        Caching,
        ("q.weight", "k.weight", "v.weight", "o.weight"),
        lambda: (torch.randn(1, 4, 8), torch.zeros(1, 2, 12, 8)),
        "weight is a foreign_tensors.Scaled (3 more are no plain tensors)",
    ),
}


def model_of(make: Callable[[], nn.Module], wrapped: tuple[str, ...] = ()) -> nn.Module:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    for path in wrapped:
        wrap(model, path)
    return model


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="lightint", options={"preset": "exact", "delegate": "eager", **options})


def copies(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those of plain tensors, which a call may write to; wrappers are only read."""
    return pytree.tree_map_only(Tensor, lambda each: each if is_foreign(each) else each.clone(), inputs)


def same(call: Any, model: nn.Module, exact: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A compiled call is eager's, as near to the numbers in double precision, and writes what eager writes."""
    ours, eager = copies(inputs), copies(inputs)
    double = pytree.tree_map_only(Tensor, plain_double, inputs)
    got, expected, wanted = call(*ours), model(*eager), exact(*double)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
    for one, other in zip(pytree.tree_leaves(ours), pytree.tree_leaves(eager), strict=True):
        assert one is other or torch.equal(one, other), "what was written"


def sections(call: Any) -> list[Any]:
    return list(lightint_compile.report(call).sections)


def is_left_alone(call: Any, called: str) -> None:
    """The last graph has one remark that says why, and nothing is told of as a failure."""
    *_, section = sections(call)
    assert called in section.untouched
    (remark,) = [each for each in section.remarks if each.rule == "inductor"]
    assert remark.message == f"Inductor as it is: {section.untouched}"
    assert not any(each.kind is RemarkKind.FAILURE for each in section.remarks)
    assert not any(each.driver for each in lightint_compile.compiled.CompiledGraph.of(call)[-1:])


@pytest.mark.parametrize("options", [{}, {"preset": "all"}, {"strict": True}, {"trace_blocks_once": True}], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_call_is_right_and_the_report_says_why(case: Case, options: dict[str, Any]) -> None:
    model = model_of(case.make, case.wrapped)
    exact, call = reference(model, case.make()), compiled(model, **options)
    for _ in range(3):
        same(call, model, exact, case.inputs())
    is_left_alone(call, case.called)


@pytest.mark.parametrize("name", ["gain", "input", "cache"])
def test_inductor_compiles_the_graph_as_it_is(name: str) -> None:
    case = CASES[name]
    model = model_of(case.make, case.wrapped)
    exact, call = reference(model, case.make()), compiled(model, delegate="inductor")
    for _ in range(3):
        same(call, model, exact, case.inputs())
    assert not any(remark.kind is RemarkKind.FAILURE for each in sections(call) for remark in each.remarks)
    if TORCH == NEWEST:  # Inductor of torch 2.11 fails on such calls, and Dynamo goes on with parts of them
        is_left_alone(call, case.called)


NAMES = [f"blocks.{i}.{name}" for i in range(3) for name in ("linear.weight", "linear.bias", "gain", "offset")]


@settings(max_examples=12, deadline=None)
@given(wrapped=st.sets(st.sampled_from(NAMES), max_size=4), is_given=st.booleans(), blocks=st.booleans())
def test_graphs_are_left_alone_just_where_they_have_such_a_tensor(
    wrapped: set[str], is_given: bool, blocks: bool
) -> None:
    torch._dynamo.reset()
    model = model_of(Stacked, tuple(wrapped))
    call = compiled(model, trace_blocks_once=blocks)
    x = torch.randn(2, 8)
    with torch.no_grad():
        same(call, model, reference(model, Stacked()), (Scaled.of(x) if is_given else x,))
    (section,) = sections(call)
    assert bool(section.untouched) == bool(wrapped or is_given)
    if section.untouched:
        first, _, rest = section.untouched.partition(" is a foreign_tensors.Scaled")
        assert first.split(" ", 2)[2] in {*wrapped, "x"}
        assert int(rest[2:].split(" ")[0] if rest.startswith(" (") else 0) == len(wrapped) + is_given - 1


@pytest.mark.parametrize(
    ("delegate", "path"),
    [("eager", "gain"), ("eager", "linear.weight"), ("eager", "offset"), ("inductor", "linear.weight")],
)
def test_what_is_replaced_between_calls_is_another_graph(delegate: str, path: str) -> None:
    model = model_of(Repeating)
    plain = copy.deepcopy(model)
    call = compiled(model, delegate=delegate)
    for turn in ("plain", "wrapped", "plain", "wrapped"):
        model.load_state_dict(plain.state_dict(), assign=True)
        model.requires_grad_(False)
        if turn == "wrapped":
            wrap(model, path)
        for _ in range(2):
            same(call, model, reference(model, Repeating()), rows())
    assert [bool(section.untouched) for section in sections(call)] == [False, True]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield tmp_path
    torch._dynamo.reset()


def test_no_program_of_plain_tensors_is_taken_from_disk(folder: Path) -> None:
    """The graphs are equal, and so are the keys of their programs: only what the inputs are tells them apart."""
    found = []
    for wrapped in ((), ("gain",), ()):
        torch._dynamo.reset()
        model = model_of(Repeating, wrapped)
        call = compiled(model, delegate="inductor")
        same(call, model, reference(model, Repeating()), rows())
        (section,) = sections(call)
        found.append((bool(section.untouched), section.measurements.get("warm start")))
    assert found == [(False, 0.0), (True, None), (False, 1.0)]


def test_an_error_budget_is_no_other_way_in(folder: Path) -> None:
    case = CASES["cache"]
    model = model_of(case.make, case.wrapped)
    call = compiled(model, preset="all", max_relative_error=0.5)
    same(call, model, reference(model, case.make()), case.inputs())
    is_left_alone(call, case.called)
    with pytest.raises(LightintError):
        lightint_compile.calibrate(call, lambda: call(*case.inputs()))


def test_a_required_pass_and_the_warning_name_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    case = CASES["cache"]
    compiled(model_of(case.make, case.wrapped))(*case.inputs())
    (warning,) = [each.message for each in caplog.records if "not rewritten where its attention is" in each.message]
    assert "foreign_tensors.Scaled" in warning and "keep its weights and inputs plain tensors" in warning
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed, match=r"PassError: the required pass [\s\S]* foreign_tensors\.Scaled"):
        compiled(model_of(case.make, case.wrapped), require=["hoist-invariants"])(*case.inputs())


def test_what_the_graph_makes_itself() -> None:
    def scaled(x: Tensor, q: Tensor, s: Tensor) -> Tensor:
        return torch.tanh(x.repeat_interleave(16, 0)) * Scaled(q, s)

    inputs = torch.randn(2, 8), torch.ones(8, dtype=torch.int8), torch.rand(1)
    call = compiled(scaled)
    for _ in range(2):
        torch.testing.assert_close(call(*inputs), scaled(*inputs))
    is_left_alone(call, "in the graph is a foreign_tensors.Scaled")


@pytest.mark.parametrize("strict", [False, True])
def test_what_such_a_class_computes_is_no_failure(strict: bool) -> None:
    """Nothing can take the wrapper apart: torch runs its operations, and Dynamo compiles what they are made of."""
    model = model_of(Scaling)
    call = compiled(model, strict=strict)
    for _ in range(2):
        same(call, model, reference(model, Scaling()), (torch.randn(2, 8), {"scale": Closed(torch.rand(8))}))
    assert not any(each.kind is RemarkKind.FAILURE for section in sections(call) for each in section.remarks)


class Asking(Closed):
    """Notes whether its operations run."""

    noted: ClassVar[list[bool]] = []

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.noted.append(is_inside_an_operation())
        return unwrapped(func, cls, args, kwargs)


@torch.library.custom_op("foreign_tensors::asked", mutates_args=())
def asked(x: Tensor) -> Tensor:
    assert not is_inside_an_operation(), "kernels of operators are compiled as anything else"
    return x.clone()


def test_inside_is_only_where_such_a_class_computes() -> None:
    assert torch.equal(Asking(torch.ones(2)) + 1, torch.full((2,), 2.0)) and all(Asking.noted) and Asking.noted
    for around in (torch.no_grad(), torch.enable_grad(), torch.inference_mode(), torch.autocast("cpu")):
        with around:
            asked(torch.ones(2, requires_grad=True))
    torch.func.vmap(lambda row: (row, is_inside_an_operation() and pytest.fail())[0])(torch.ones(2))


def test_constants_of_a_graph_and_of_its_branches() -> None:
    held, graph = Scaled.of(torch.rand(8)), fx.Graph()
    graph.output((graph.get_attr("scale"),))
    inner = fx.GraphModule({"scale": held}, graph)
    assert foreign_tensors(inner, []).startswith("scale in the graph is")
    outer = fx.Graph()
    outer.output((outer.get_attr("branch"),))
    assert foreign_tensors(fx.GraphModule({"branch": inner}, outer), []).startswith("scale in the graph is")
    inner.scale = torch.rand(8)
    assert not foreign_tensors(inner, [])


def test_a_jagged_tensor() -> None:
    linear = nn.Linear(8, 8).requires_grad_(False)

    def halves(x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(linear(x.repeat_interleave(16, 0))).sum() * y.cos().values()

    lengths = [torch.rand(2, 8), torch.rand(3, 8)]
    y, call = torch.nested.nested_tensor(lengths, layout=torch.jagged), compiled(halves)
    for _ in range(2):
        x = torch.randn(2, 8)
        torch.testing.assert_close(call(x, y), halves(x, y))
    is_left_alone(call, "NestedTensor")


def test_a_distributed_tensor() -> None:
    distributed = pytest.importorskip("torch.distributed.tensor")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        linear = nn.Linear(8, 8).requires_grad_(False)
        distributed.distribute_module(linear, mesh)

        def shared(x: Tensor) -> Tensor:
            rows = distributed.DTensor.from_local(x.repeat_interleave(16, 0), mesh)
            return torch.tanh(linear(rows)).to_local()

        call = compiled(shared)
        for _ in range(2):
            x = torch.randn(2, 8)
            torch.testing.assert_close(call(x), shared(x))
        is_left_alone(call, "DTensor")
    finally:
        torch.distributed.destroy_process_group()


def _lazy() -> nn.Module:
    model = Repeating()
    model.linear = nn.LazyLinear(8)
    model(torch.randn(2, 8))
    return model


def _buffer() -> nn.Module:
    model = Repeating()
    model.offset = nn.Buffer(torch.rand(8))
    return model


def _named() -> nn.Module:
    model = Repeating()
    model.offset = torch.rand(8).as_subclass(Named)
    return model


@pytest.mark.parametrize("make", [Repeating, _lazy, _buffer, _named])
def test_plain_tensors_of_any_class_are_rewritten(make: Callable[[], nn.Module]) -> None:
    model = model_of(make)
    call = compiled(model)
    for _ in range(2):
        (x,) = rows()
        torch.testing.assert_close(call(x), model(x))
    (section,) = sections(call)
    assert not section.untouched and section.pipeline
    assert not lightint_compile.explain(model, *rows()).sections[0].untouched


def test_a_model_without_memory_is_explained() -> None:
    model = model_of(Repeating).to("meta")
    (section,) = lightint_compile.explain(model, torch.randn(2, 8, device="meta")).sections
    assert not section.untouched


def test_which_tensors_are_foreign() -> None:
    plain = torch.rand(4, 8)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(plain)
    for each in (plain, nn.Parameter(plain), nn.Buffer(plain), plain.as_subclass(Named), plain.to_sparse(), fake, 1):
        assert not is_foreign(each)
    assert not is_foreign(nn.UninitializedParameter())
    torch.func.vmap(lambda row: (row, is_foreign(row) and pytest.fail())[0])(plain)
    for each in (Scaled.of(plain), nn.Parameter(Scaled.of(plain), requires_grad=False), Closed(plain)):
        assert is_foreign(each)


@pytest.mark.parametrize("name", ["gain", "linear", "buffer", "input", "dictionary", "block", "cache"])
def test_explain_says_the_same_reason(name: str) -> None:
    case = CASES[name]
    model = model_of(case.make, case.wrapped)
    call, inputs = compiled(model), case.inputs()
    (explained,) = lightint_compile.explain(model, *inputs, options={"preset": "exact", "strict": True}).sections
    call(*inputs)
    assert explained.untouched == sections(call)[-1].untouched


class Breaking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Repeating(), Repeating()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        torch._dynamo.graph_break()
        return self.second(y[:2])


def test_only_the_graph_that_has_one_is_left_alone() -> None:
    model = model_of(Breaking, ("second.gain",))
    call = compiled(model)
    same(call, model, reference(model, Breaking()), rows())
    found, explained = sections(call), lightint_compile.explain(model, *rows(), options={"preset": "exact"}).sections
    for each in (found, explained):
        assert [bool(section.untouched) for section in each] == [False, True]
        assert "second.gain" in each[1].untouched


def test_accelerate_says_it_as_well() -> None:
    model = model_of(Repeating, ("gain",))
    inputs = rows()
    expected = model(*inputs)
    with lightint_compile.accelerate(model, preset="exact", delegate="eager") as handle:
        torch.testing.assert_close(model(*inputs), expected)
        (section,) = handle.report().sections
    assert section.untouched.startswith("the parameter gain is a foreign_tensors.Scaled")


@pytest.mark.parametrize("suffix", [pytest.param(".pt2", marks=pytest.mark.slow), ".onnx"])
def test_an_export_is_right_or_says_what_is_in_its_way(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    model, path = model_of(Repeating, ("linear.weight",)), tmp_path / f"model{suffix}"
    with pytest.raises(ExportError, match=r"linear\.weight is a Scaled, whose class says what operations on it do"):
        lightint_compile.export(model, rows(), path)
    assert not path.exists()
    if suffix == ".pt2":
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
        assert lightint_compile.export(model, rows(), path).difference < 1e-5
