"""Regions compiled in another process are those that this process compiles, under all settings that it can be given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx as fx
from region_graphs import region
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor.lowering import lowerings
from torch._inductor.standalone_compile import CompiledArtifact
from torch._inductor.utils import fresh_cache
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from lightint_compile import torch_switches
from lightint_compile.lowering.region import Leaf, Variant, inductor_compiler
from lightint_compile.lowering.region_sizes import fresh_inputs
from lightint_compile.lowering.workers.parcels import StaysHereError, parcel_of, unpacked
from lightint_compile.lowering.workers.pool import NotCompiledError, Worker, WorkerLostError
from lightint_compile.lowering.workers.rules import Rules
from lightint_compile.lowering.workers.sharing import _Job, _jobs, _loaded
from lightint_compile.lowering.workers.switches import OnlyHereError, Switches
from lightint_compile.torch_compat import cache_dir

aten = torch.ops.aten


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker(1, -1)
    made.wait_until_ready()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests of this process have told Inductor: test_worker_rules.py is about that."""
    monkeypatch.setattr(Rules, "now", lambda: Rules(*[frozenset()] * 4))


@pytest.fixture(autouse=True)
def caches() -> Iterator[None]:
    with fresh_cache():
        yield


def product(x, y):  # type: ignore[no-untyped-def] # make_fx takes types into the graph
    return (torch.mm(x, y),)


def plain() -> fx.GraphModule:
    return region(product, torch.randn(4, 8), torch.randn(8, 8))


def halves() -> fx.GraphModule:
    return region(product, torch.randn(4, 8, dtype=torch.bfloat16), torch.randn(8, 8, dtype=torch.bfloat16))


def fused() -> fx.GraphModule:
    return region(lambda x: (torch.softmax(x * 2 + 1, -1), x.sum()), torch.randn(4, 8))


def tables() -> fx.GraphModule:
    """No input at all."""
    return region(lambda: (torch.arange(8).view(2, 4),))


def dynamic() -> fx.GraphModule:
    """Tokens of a symbolic number, of which there are three times as many and eight more."""
    mode, graph = FakeTensorMode(shape_env=ShapeEnv()), fx.Graph()
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    tokens = mode.from_tensor(torch.randn(6, 8), symbolic_context=context)
    with mode:
        more = torch.empty(3 * tokens.shape[0] + 8, 8)
        weight = torch.empty(8, 8)
    nodes = []
    for name, value in {"more": more, "weight": weight}.items():
        nodes.append(graph.placeholder(name))
        nodes[-1].meta["val"] = value
    call = graph.call_function(aten.mm.default, tuple(nodes))
    with mode:
        call.meta["val"] = torch.mm(more, weight)
    graph.output((call,))
    return fx.GraphModule(torch.nn.Module(), graph)


REGIONS = {each.__name__: each for each in (plain, halves, fused, tables, dynamic)}


def compiled(graph_module: fx.GraphModule, config: dict[str, Any] | None = None) -> Variant:
    """A region compiled here."""
    return Leaf("region", lambda: graph_module, inductor_compiler(config or {})).compile()


def job(graph_module: fx.GraphModule, config: dict[str, Any] | None = None) -> _Job:
    (made,) = _jobs({"region": graph_module}, config or {})
    return made


def by_worker(worker: Worker, graph_module: fx.GraphModule, config: dict[str, Any] | None = None) -> Variant:
    made = job(graph_module, config)
    variant = _loaded(made, worker.compile(made.content))
    assert variant is not None
    return variant


def assert_same(one: Variant, other: Variant, graph_module: fx.GraphModule) -> None:
    arguments = arguments_of(graph_module)
    assert (one.guard, one.bindings, one.extra, one.floats) == (other.guard, other.bindings, other.extra, other.floats)
    for mine, theirs in zip(one(arguments), other(arguments), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


def arguments_of(graph_module: fx.GraphModule) -> list[Tensor]:
    torch.manual_seed(0)
    values = [node.meta["val"] for node in graph_module.graph.find_nodes(op="placeholder")]
    return [torch.randn([int(size) for size in value.shape]).to(value.dtype) for value in values]


@pytest.mark.parametrize("name", REGIONS)
def test_what_a_worker_compiles_is_what_this_process_does(name: str, worker: Worker) -> None:
    graph_module = REGIONS[name]()
    with fresh_cache():
        theirs = by_worker(worker, graph_module)
    assert_same(compiled(graph_module), theirs, graph_module)


def test_what_a_worker_compiled_is_kept_on_disk_as_any_other(worker: Worker, tmp_path: Path) -> None:
    graph_module = plain()
    variant = by_worker(worker, graph_module)
    assert variant.save is not None
    variant.save(str(tmp_path / "region.bin"))
    loaded = CompiledArtifact.load(path=str(tmp_path / "region.bin"), format="binary")
    arguments = arguments_of(graph_module)
    assert torch.equal(loaded(*arguments)[0], variant(arguments)[0])


def deterministic() -> Callable[[], None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    return lambda: torch.use_deterministic_algorithms(False)


def precision() -> Callable[[], None]:
    torch.set_float32_matmul_precision("high")
    return lambda: torch.set_float32_matmul_precision("highest")


def default_dtype() -> Callable[[], None]:
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(torch.float32)


def threads() -> Callable[[], None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    return lambda: torch.set_num_threads(before)


def no_flash() -> Callable[[], None]:
    torch.backends.cuda.enable_flash_sdp(False)
    return lambda: torch.backends.cuda.enable_flash_sdp(True)


def reductions() -> Callable[[], None]:
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True)


SETTINGS = {each.__name__: each for each in (deterministic, precision, default_dtype, threads, no_flash, reductions)}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_reach_a_worker(name: str, worker: Worker) -> None:
    before = torch_switches.of_kernels()
    put_back = SETTINGS[name]()
    try:
        assert torch_switches.of_kernels() != before
        assert_same(compiled(plain()), by_worker(worker, plain()), plain())
    finally:
        put_back()
    assert_same(compiled(plain()), by_worker(worker, plain()), plain())


@pytest.mark.parametrize(
    "patch",
    [
        lambda: inductor_config.patch(epilogue_fusion=False),
        lambda: functorch_config.patch(treat_parameters_as_free_to_save=False),
        lambda: torch.inference_mode(),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.enable_grad(),
    ],
)
def test_configurations_and_modes_reach_a_worker(patch: Callable[[], Any], worker: Worker) -> None:
    graph_module = plain()
    with patch():
        assert_same(compiled(graph_module), by_worker(worker, graph_module), graph_module)


def test_settings_of_a_region_reach_a_worker(worker: Worker) -> None:
    """What is read with a setting that no Inductor has is an error in the worker."""
    assert_same(compiled(plain()), by_worker(worker, plain(), {"realize_acc_reads_threshold": 16}), plain())
    with pytest.raises(NotCompiledError, match="no_such_setting"):
        by_worker(worker, plain(), {"no_such_setting": 1})


def test_the_caches_of_the_moment_are_used(worker: Worker) -> None:
    for _ in range(2):
        with fresh_cache():
            by_worker(worker, plain())
            assert list(Path(cache_dir()).glob("aotautograd/*"))


def test_what_a_worker_cannot_be_given_is_an_answer(worker: Worker) -> None:
    other = dataclasses.replace(Switches.now(), kernels="something else")
    made = job(plain())
    with pytest.raises(WorkerLostError, match="something else"):
        worker.compile(parcel_of(made.region, made.inputs, {}, other).packed())
    other = dataclasses.replace(Switches.now(), configurations={"torch._inductor.config": {"epilogue_fusion": 7}})
    with pytest.raises(WorkerLostError, match=r"torch\._inductor\.config"):
        worker.compile(parcel_of(made.region, made.inputs, {}, other).packed())
    with pytest.raises(NotCompiledError, match="Traceback"):
        worker.compile(b"no parcel")
    by_worker(worker, plain())


@torch.library.custom_op("lightint_tests_of_parcels::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def held() -> fx.GraphModule:
    """A tensor of its own."""
    graph_module = plain()
    graph_module.table = torch.ones(4, 8)
    with graph_module.graph.inserting_before(graph_module.graph.output_node()):
        table = graph_module.graph.get_attr("table")
    graph_module.graph.output_node().args = ((table,),)
    return graph_module


@pytest.mark.parametrize(
    "made",
    [
        lambda: region(lambda x: (torch.ops.lightint_tests_of_parcels.twice(x),), torch.randn(4)),
        held,
    ],
    ids=["an operator of the user's", "a constant"],
)
def test_what_other_processes_do_not_have_stays_here(made: Callable[[], fx.GraphModule]) -> None:
    graph_module = made()
    inputs = fresh_inputs([node.meta["val"] for node in graph_module.graph.find_nodes(op="placeholder")])
    with pytest.raises(StaysHereError):
        parcel_of(graph_module, inputs, {}, Switches.now())
    assert _jobs({"region": graph_module, "other": plain()}, {})[0].name == "other"


def _changed(graph: fx.Graph) -> None:
    """A pass of the user's."""


@pytest.mark.parametrize(
    "patch",
    [lambda: inductor_config.patch(post_grad_custom_pre_pass=_changed), lambda: torch.device("meta")],
    ids=["a pass", "a default device"],
)
def test_settings_that_are_objects_stay_here(patch: Callable[[], Any]) -> None:
    with patch():
        with pytest.raises(OnlyHereError):
            Switches.now()
        assert _jobs({"region": plain()}, {}) == []


def test_a_rule_of_the_users_for_an_operator_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lowerings, aten.mm.default, lambda *_: None)
    with pytest.raises(OnlyHereError, match=r"aten\.mm"):
        Switches.now()


def test_a_parcel_says_the_same_graph() -> None:
    made = job(dynamic(), {"epilogue_fusion": False})
    parcel = unpacked(made.content)
    again, _, symbols = parcel.graph()
    assert parcel.config == {"epilogue_fusion": False}
    values = [node.meta["val"] for node in again.graph.find_nodes(op="placeholder")]
    assert [str(size) for size in values[1].shape] == [f"3*{symbols[0]} + 8", "8"]
    assert [node.target for node in again.graph.nodes if node.op == "call_function"] == [aten.mm.default]
