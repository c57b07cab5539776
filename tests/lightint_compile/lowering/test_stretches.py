"""Which calls of a root graph are recorded together, what stands in front of them, and what ends them."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensorMode

from lightint_compile.lowering import stretches
from lightint_compile.lowering.driver import driver_source
from lightint_compile.lowering.stretches import FEWEST, with_stretches
from lightint_compile.passes.ir.decision_points import DecisionPoint, KeepPoint, RecallPoint, StepPoint

aten = torch.ops.aten

KEEP = KeepPoint(0, 1, 1, 4)
RECALL = RecallPoint(0, (1, None, 8), 4, "float32", "cuda")


class Root:
    """A root graph under construction, whose tensors are all [4, 8] unless told otherwise."""

    def __init__(self) -> None:
        self.graph, self.regions, self.points = fx.Graph(), {}, {}
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(self, device: str = "cuda", shape: tuple[int, ...] = (4, 8)) -> torch.Tensor:
        with self.mode:
            return torch.empty(shape, device=device)

    def input(self, name: str, device: str = "cuda", shape: tuple[int, ...] = (4, 8)) -> fx.Node:
        return self.valued(self.graph.placeholder(name), self.fake(device, shape))

    def valued(self, node: fx.Node, value: Any) -> fx.Node:
        node.meta["val"] = value
        return node

    def region(self, name: str, *args: fx.Node, count: int = FEWEST, inner: Any = None) -> fx.Node:
        """A call of a region of so many operations; its one result."""
        body = fx.Graph()
        given = [self.valued(body.placeholder(f"x{at}"), arg.meta["val"]) for at, arg in enumerate(args)]
        value = given[0]
        for _ in range(count):
            value = self.valued(body.call_function(inner or aten.relu.default, (value,)), self.fake())
        body.output((value,))
        self.regions.setdefault(name, fx.GraphModule({}, body))
        called = self.valued(self.graph.call_module(name, args), (self.fake(),))
        return self.call(operator.getitem, called, 0)

    def point(self, name: str, spec: Any, *args: Any, value: Any = None) -> fx.Node:
        self.points[name] = spec
        return self.valued(self.graph.call_module(name, args), value)

    def call(self, target: Any, *args: Any, value: Any = None, **named: Any) -> fx.Node:
        node = self.graph.call_function(target, args, named)
        return self.valued(node, self.fake() if value is None else value)

    def found(self, *results: fx.Node) -> tuple[list[str], stretches.Found]:
        """The calls of the new root in order, and all of it."""
        self.graph.output(tuple(results))
        owner = torch.nn.Module()
        for name, region in self.regions.items():
            setattr(owner, name, region)
        for name, spec in self.points.items():
            setattr(owner, name, DecisionPoint(spec))
        root = fx.GraphModule(owner, self.graph)
        before = str(root.graph)
        found = with_stretches(root, self.regions, self.points, "stretch")
        assert str(root.graph) == before, "the root that reports show is left as it is"
        calls = [node for node in found.root.graph.nodes if node.op in ("call_module", "call_function")]
        return [str(node.target) if node.op == "call_module" else node.name for node in calls], found


def test_a_decision_stands_between_two_stretches() -> None:
    root = Root()
    x, record = root.input("x"), root.valued(root.graph.placeholder("record"), None)
    first = root.region("block_0", x)
    reused = root.point("reuse_step_1", StepPoint(1), record, first, value=True)
    second = root.region("block_0", first)
    calls, found = root.found(second, reused)
    assert [name for name in calls if not name.startswith("getitem")] == ["stretch_0", "reuse_step_1", "stretch_1"]
    assert "self.block_0(x)" in driver_source(found.stretches["stretch_0"])


def test_few_operations_stay_as_they_are() -> None:
    root = Root()
    x = root.input("x")
    calls, found = root.found(root.region("block_0", root.region("block_0", x, count=FEWEST // 2 - 1)))
    assert calls == ["block_0", "getitem", "block_0", "getitem_1"] and not found.stretches


def test_views_and_elements_are_no_operations() -> None:
    root = Root()
    value = root.input("x")
    for _ in range(FEWEST):
        value = root.call(aten.transpose.int, value, 0, 1)
    value = root.region("block_0", value, count=FEWEST - 1)
    assert not root.found(value)[1].stretches


@pytest.mark.parametrize(
    ("inner", "device"),
    [
        (aten.rand_like.default, "cuda"),
        (aten.nonzero.default, "cuda"),
        (aten.relu.default, "cpu"),
        (aten.dropout.default, "cuda"),
    ],
)
def test_what_cannot_be_recorded_ends_a_stretch(inner: Any, device: str) -> None:
    root = Root()
    x, y = root.input("x"), root.input("y", device)
    first = root.region("block_0", x)
    other = root.region(
        "odd", y if device == "cpu" else first, inner=inner if inner is not aten.dropout.default else None
    )
    if inner is aten.dropout.default:
        other = root.call(inner, other, 0.5, True)
    second = root.region("block_0", first)
    calls, found = root.found(second, other)
    assert "odd" in calls or inner is aten.dropout.default
    assert set(found.stretches) == {"stretch_0", "stretch_1"}


def test_a_number_of_the_host_is_made_inside_and_one_that_moves_is_not_recorded() -> None:
    root = Root()
    x = root.input("x")
    number = root.call(aten.full.default, [], 0.5, device="cpu", value=root.fake("cpu", ()))
    scaled = root.call(aten.mul.Tensor, root.region("block_0", x), number)
    _, found = root.found(scaled)
    (text,) = map(driver_source, found.stretches.values())
    assert "aten.full.default([], 0.5" in text and "def forward(self, x)" in text

    root = Root()
    x = root.input("x")
    number = root.call(aten.full.default, [], 0.5, device="cpu", value=root.fake("cpu", ()))
    moved = root.call(aten._to_copy.default, number, device="cuda", value=root.fake("cuda", ()))
    first = root.region("block_0", x)
    calls, found = root.found(root.call(aten.mul.Tensor, first, moved))
    assert moved.name in calls and len(found.stretches) == 1


def test_a_number_of_the_host_that_comes_from_elsewhere_is_not_baked_in() -> None:
    root = Root()
    x, sigma = root.input("x"), root.input("sigma", "cpu", ())
    first = root.region("block_0", x)
    scaled = root.call(aten.mul.Tensor, first, sigma)
    calls, found = root.found(root.region("block_0", scaled))
    assert scaled.name in calls and set(found.stretches) == {"stretch_0", "stretch_1"}


def test_kept_values_are_looked_up_in_front_and_handed_over_behind() -> None:
    root = Root()
    x, record = root.input("x"), root.valued(root.graph.placeholder("record"), None)
    first = root.region("block_0", x)
    kept = root.point("recall_0", RECALL, record, value=root.fake())
    root.point("keep_0", KEEP, record, first)
    second = root.region("block_1", first, kept)
    calls, found = root.found(second)
    assert [name for name in calls if not name.startswith("getitem")] == ["recall_0", "stretch_0", "keep_0"]
    assert set(found.stretches) == {"stretch_0"}


def test_what_is_on_its_way_arrives_in_the_stretch() -> None:
    import torch.distributed._functional_collectives

    ops = torch.ops._c10d_functional
    root = Root()
    x, record = root.input("x"), root.valued(root.graph.placeholder("record"), None)
    first = root.region("block_0", x)
    sent = root.call(ops.all_to_all_single.default, first, [2, 2], [2, 2], "0")
    asked = root.point("reuse_step_1", StepPoint(1), record, first, value=True)
    arrived = root.call(ops.wait_tensor.default, sent)
    calls, found = root.found(root.region("block_0", arrived), asked)
    inside = driver_source(found.stretches["stretch_0"])
    assert ".all_to_all_single.default(" in inside and ".wait_tensor.default(" in inside
    assert calls.count(arrived.name) == 1 and ".wait_tensor.default(" not in driver_source(found.stretches["stretch_1"])


def test_what_was_sent_elsewhere_is_waited_for_in_front() -> None:
    import torch.distributed._functional_collectives

    ops = torch.ops._c10d_functional
    root = Root()
    x, record = root.input("x"), root.valued(root.graph.placeholder("record"), None)
    sent = root.call(ops.all_to_all_single.default, x, [2, 2], [2, 2], "0")
    asked = root.point("reuse_step_1", StepPoint(1), record, x, value=True)
    first = root.region("block_0", x)
    arrived = root.call(ops.wait_tensor.default, sent)
    calls, found = root.found(root.region("block_0", root.call(aten.add.Tensor, first, arrived)), asked)
    assert arrived.name in calls and ".wait_tensor.default(" not in driver_source(found.stretches["stretch_0"])


def test_buffers_that_are_written_are_told() -> None:
    root = Root()
    x, cache, other = root.input("x"), root.input("cache"), root.input("other")
    first = root.region("block_0", x, other)
    window = root.call(aten.slice.Tensor, cache, 0, 0, 2)
    written = root.call(aten.copy_.default, window, first)
    _, found = root.found(root.region("block_1", written))
    (text,) = map(driver_source, found.stretches.values())
    inputs = text.partition("forward(self, ")[2].partition(")")[0].split(", ")
    assert [inputs[at] for at in found.written["stretch_0"]] == [window.name]


def test_regions_that_hand_on_what_they_are_given_are_not_recorded() -> None:
    root = Root()
    x = root.input("x")
    body = fx.Graph()
    given = root.valued(body.placeholder("x"), root.fake())
    body.output((root.valued(body.call_function(aten.transpose.int, (given, 0, 1)), root.fake()),))
    root.regions["odd"] = fx.GraphModule({}, body)
    called = root.valued(root.graph.call_module("odd", (x,)), (root.fake(),))
    shown = root.call(operator.getitem, called, 0)
    calls, _ = root.found(root.region("block_0", shown))
    assert calls[0] == "odd"


def test_two_devices_are_two_stretches() -> None:
    root = Root()
    x, y = root.input("x"), root.input("y", "cuda:1")
    first, second = root.region("block_0", x), y
    for _ in range(FEWEST):
        second = root.call(aten.relu.default, second, value=root.fake("cuda:1"))
    _, found = root.found(first, second)
    assert len(found.stretches) == 2


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no word for such operators")
def test_operators_whose_author_forbids_it_are_not_recorded() -> None:
    library = torch.library.Library("lightint_test_unsafe", "DEF")
    library.define("asks(Tensor x) -> Tensor", tags=(torch.Tag.cudagraph_unsafe,))
    root = Root()
    first = root.region("block_0", root.input("x"))
    asked = root.call(torch.ops.lightint_test_unsafe.asks.default, first)
    calls, found = root.found(root.region("block_0", asked))
    assert asked.name in calls and len(found.stretches) == 2


def test_places_of_a_mask_are_looked_for_on_the_host() -> None:
    root = Root()
    x, mask = root.input("x"), root.valued(root.graph.placeholder("mask"), root.fake().bool())
    first = root.region("block_0", x)
    put = root.call(aten.index_put.default, first, [mask], x)
    calls, found = root.found(root.region("block_0", put))
    assert put.name in calls and len(found.stretches) == 2


def test_a_write_to_what_is_to_be_kept_as_it_was_ends_the_stretch() -> None:
    root = Root()
    x, cache, record = root.input("x"), root.input("cache"), root.valued(root.graph.placeholder("record"), None)
    first = root.region("block_0", x)
    shown = root.call(aten.slice.Tensor, cache, 0, 0, 2)
    root.point("keep_0", KEEP, record, shown)
    written = root.call(aten.copy_.default, cache, first)
    calls, _ = root.found(root.region("block_0", written))
    assert [name for name in calls if not name.startswith(("getitem", "slice"))][:2] == ["stretch_0", "keep_0"]


def test_a_region_on_two_devices_is_not_recorded() -> None:
    root = Root()
    x, other = root.input("x"), root.input("y", "cuda:1")
    body = fx.Graph()
    given = [root.valued(body.placeholder(name), node.meta["val"]) for name, node in (("a", x), ("b", other))]
    root.valued(body.call_function(aten.relu.default, (given[1],)), root.fake("cuda:1"))
    value = given[0]
    for _ in range(FEWEST):
        value = root.valued(body.call_function(aten.relu.default, (value,)), root.fake())
    body.output((value,))
    root.regions["odd"] = fx.GraphModule({}, body)
    called = root.valued(root.graph.call_module("odd", (x, other)), (root.fake(),))
    calls, found = root.found(root.call(operator.getitem, called, 0))
    assert calls[0] == "odd" and not found.stretches
