"""Programs that keep a value and write over it: compiled, they give what eager does, with copies where needed only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.exc import InductorError

import lightint_compile
from lightint_compile import as_captured, capture
from lightint_compile.lowering import lower
from lightint_compile.options import LightintOptions
from lightint_compile.overwritten_reads import ReadsFirst, copies_made, settings
from lightint_compile.testing.overwriting import drawn, inputs
from lightint_compile.torch_compat import keeps_copies_apart

aten = torch.ops.aten
COPIES = (aten.clone.default, torch.ops.lightint.materialised.default)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def up(c: Tensor, y: Tensor) -> Tensor:
    c[1:] = c[:-1].clone()
    return c.sum()


def along_rows(c: Tensor, y: Tensor) -> Tensor:
    c[:, 1:] = c[:, :-1].clone()
    return c.sum()


def rolls_behind_its_sink(c: Tensor, y: Tensor) -> Tensor:
    c[2:-4] = c[6:].clone()
    c[-4:] = y[:4]
    return c.sum(1)


def makes_room(c: Tensor, y: Tensor) -> Tensor:
    c[6:] = c[2:-4].clone()
    c[2:6] = y[:4]
    return c.sum(1)


def transposed(c: Tensor, y: Tensor) -> Tensor:
    c.copy_(c.t().clone())
    return c.sum()


def flipped(c: Tensor, y: Tensor) -> Tensor:
    c.copy_(c.flip(0))
    y.copy_(y.flip(1).clone())
    return c + y


def swapped(c: Tensor, y: Tensor) -> Tensor:
    t = c.clone()
    c.copy_(y)
    y.copy_(t)
    return c + 1


def swapped_through_memory(c: Tensor, y: Tensor) -> Tensor:
    t = torch.empty_like(c)
    t.copy_(c)
    c.view(-1).copy_(y.view(-1))
    y.copy_(t.to(t.dtype, copy=True))
    return c + 1


def halves_swapped(c: Tensor, y: Tensor) -> Tensor:
    t = c[:8].clone()
    c[:8] = y[8:]
    y[8:] = t
    return c + y


def put(c: Tensor, y: Tensor) -> Tensor:
    c[torch.tensor([1, 2, 3])] = c[0:3].clone()
    return c.sum()


def index_added(c: Tensor, y: Tensor) -> Tensor:
    c.index_add_(0, torch.arange(1, 16), c[:-1].clone())
    return c.sum(0)


def scattered(c: Tensor, y: Tensor) -> Tensor:
    places = torch.arange(1, 16)[:, None].expand(15, 16)
    c.scatter_(0, places, c[:-1].clone())
    return c.sum()


def added_behind(c: Tensor, y: Tensor) -> Tensor:
    c[1:].add_(c[:-1].clone())
    return c.sum()


def pushed(c: Tensor, y: Tensor) -> Tensor:
    first = c[0].clone()
    c[:-1] = c[1:].clone()
    c[-1] = y[0]
    y[0] = first
    return c.sum()


def into_a_temporary(c: Tensor, y: Tensor) -> Tensor:
    h = c @ y
    h[torch.arange(1, 16)] = h[:-1].clone()
    return h


def views_what_was_computed(c: Tensor, y: Tensor) -> Tensor:
    t = c[:15].flip(0)
    c[1:, 1:] = t[:, :-1]
    return c.sum()


def puts_what_was_computed(c: Tensor, y: Tensor) -> Tensor:
    h = c @ y
    h[torch.arange(16)] = h.flip(0)
    return h


def windows(c: Tensor, first: int) -> Tensor:
    """Rows of ``c`` by strides, from a place on."""
    return c.as_strided((15, 14), (16, 1), first)


def computed_by_strides(c: Tensor, y: Tensor) -> Tensor:
    windows(c, 2).mul_(2)
    windows(c, 2).copy_(windows(c, 1) * 2)
    return c + y


def added_by_strides(c: Tensor, y: Tensor) -> Tensor:
    windows(c, 2).copy_(y[1:, 2:])
    windows(c, 2).add_(windows(c, 1).clone())
    return c + y


def computed_by_strides_of_the_start(c: Tensor, y: Tensor) -> Tensor:
    windows(c, 0).mul_(2)
    windows(c, 2).copy_(windows(c, 1) + y[1:, 2:])
    return c.sum()


def writes_to_what_it_kept(c: Tensor, y: Tensor) -> Tensor:
    u, v = c.clone(), y.clone()
    c.add_(1)
    u[0] = 5
    y[1:3].add_(1)
    v.diagonal().copy_(c[0])
    return u + v


def puts_into_what_it_kept(c: Tensor, y: Tensor) -> Tensor:
    u = c.clone()
    c[1:3] = y[:2]
    u[torch.tensor([0, 4])] = y[2:4]
    return u


PROGRAMS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    up,
    along_rows,
    rolls_behind_its_sink,
    makes_room,
    transposed,
    flipped,
    swapped,
    swapped_through_memory,
    halves_swapped,
    put,
    index_added,
    scattered,
    added_behind,
    pushed,
    into_a_temporary,
    views_what_was_computed,
    puts_what_was_computed,
    writes_to_what_it_kept,
    puts_into_what_it_kept,
)
BY_STRIDES = (computed_by_strides, added_by_strides, computed_by_strides_of_the_start)
QUICK = {
    up,
    rolls_behind_its_sink,
    transposed,
    flipped,
    swapped,
    swapped_through_memory,
    put,
    added_behind,
    into_a_temporary,
    computed_by_strides,
    puts_into_what_it_kept,
}
"""One of each kind: windows, whole values turned and exchanged, puts, sums, temporaries, strides, copies."""
needs_copies_apart = pytest.mark.skipif(
    not keeps_copies_apart(), reason="this Inductor writes to strided windows too early, whatever was copied"
)


def agree(run: Callable[..., Any], compiled: Callable[..., Any], made: list[Tensor], calls: int = 2) -> None:
    """Results and inputs are eager's in every call; between two calls the caller writes to the inputs."""
    mine = [each.clone() for each in made]
    for _ in range(calls):
        expected, got = run(*made), compiled(*mine)
        torch.testing.assert_close((got, mine), (expected, made))
        for each in (*made, *mine):
            each.neg_().add_(1)


def square(size: int = 16, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(torch.randint(-8, 9, (size, size)) / 4).to(dtype) for _ in range(2)]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(each, marks=[needs_copies_apart] * (each in BY_STRIDES) + [pytest.mark.slow] * (each not in QUICK))
        for each in (*PROGRAMS, *BY_STRIDES)
    ],
    ids=lambda program: program.__name__,
)
def test_a_value_that_is_written_over_is_read_first(program: Callable[..., Tensor]) -> None:
    compiled = torch.compile(program, backend="lightint")
    with torch.no_grad():
        agree(program, compiled, square())
    (section,) = lightint_compile.report(compiled).sections
    assert section.untouched


FIRST: dict[str, Callable[[Tensor, Tensor], object]] = {
    "scaled": lambda target, y: target.mul_(2),
    "given": lambda target, y: target.copy_(y[1:, 2:]),
}
SECOND: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "computed": lambda target, read, y: target.copy_(read * 2),
    "added": lambda target, read, y: target.add_(read.clone()),
    "mixed": lambda target, read, y: target.copy_(torch.where(y[1:, 2:] > 0, read, target)),
    "turned": lambda target, read, y: target.copy_(read.flip(0) + y[1:, 2:]),
}
FAST = (("scaled", "turned"),)


@needs_copies_apart
@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(first, second, marks=[pytest.mark.slow] if (first, second) not in FAST else [])
        for first in FIRST
        for second in SECOND
    ],
)
def test_windows_by_strides_at_every_distance(first: str, second: str) -> None:
    def all_of_them(*given: Tensor) -> None:
        for c, (begin, target, read) in zip(given[1:], places, strict=True):
            FIRST[first](windows(c, begin), given[0])
            SECOND[second](windows(c, target), windows(c, read), given[0])

    places = [(begin, target, read) for begin in (0, 2) for target in (1, 2) for read in (0, 1, 2)]
    made = [each for _ in range(7) for each in square()][: 1 + len(places)]
    with torch.no_grad():
        agree(all_of_them, torch.compile(all_of_them, backend="lightint"), made)


@pytest.mark.parametrize(
    ("program", "dtype"),
    [
        (along_rows, torch.bfloat16),
        (swapped, torch.int64),
        pytest.param(along_rows, torch.int64, marks=pytest.mark.slow),
        pytest.param(swapped, torch.bfloat16, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_in_other_dtypes(program: Callable[..., Tensor], dtype: torch.dtype) -> None:
    with torch.no_grad():
        agree(program, torch.compile(program, backend="lightint"), square(dtype=dtype))


@pytest.mark.parametrize(
    "program",
    [pytest.param(up, marks=pytest.mark.slow), swapped, pushed],
    ids=lambda program: program.__name__,
)
def test_with_symbolic_sizes(program: Callable[..., Tensor]) -> None:
    compiled = torch.compile(program, backend="lightint", dynamic=True)
    with torch.no_grad():
        for size in (16, 40):
            agree(program, compiled, square(size))
    assert len(lightint_compile.report(compiled).sections) == 1


def test_preset_off_and_what_recovers_are_right_too() -> None:
    with torch.no_grad():
        agree(swapped, torch.compile(swapped, backend="lightint", options={"preset": "off"}), square())
        torch._dynamo.reset()
        agree(swapped, torch.compile(swapped, backend="inductor", options=settings()), square())


class Keeps(nn.Module):
    """Two caches of a module that change places, and one that makes room."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("now", torch.randn(8, 16))
        self.register_buffer("before", torch.randn(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        old = self.now.clone()
        self.now[1:] = old[:-1]
        self.now[0] = x
        self.before.copy_(old)
        return self.now.sum(0) + self.before.sum(0)


def test_buffers_of_a_module() -> None:
    model = Keeps().eval()
    mine = Keeps().eval()
    mine.load_state_dict(model.state_dict())
    compiled = torch.compile(mine, backend="lightint")
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(16)
            torch.testing.assert_close(compiled(x), model(x))
            torch.testing.assert_close(dict(mine.named_buffers()), dict(model.named_buffers()))


def keeps_for_later(c: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    t = c.clone()
    c.copy_(y)
    return (weight * t).sum()


def computes_for_later(c: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    t = c.sin()
    c.copy_(y)
    return (weight * t).sum()


def takes_what_it_wrote(c: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    c[1:] = c[:-1].clone()
    return (weight * weight * c).sum()


def swaps_and_trains(c: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    t = c.clone()
    c.copy_(y)
    y.copy_(t)
    return (weight * weight * c).sum()


@pytest.mark.parametrize(
    "program",
    [
        keeps_for_later,
        pytest.param(computes_for_later, marks=pytest.mark.slow),
        takes_what_it_wrote,
        pytest.param(swaps_and_trains, marks=pytest.mark.slow),
    ],
)
def test_gradients_see_what_the_forward_pass_saw_and_leave_inputs_alone(program: Callable[..., Tensor]) -> None:
    made = square()
    mine = [each.clone() for each in made]
    compiled = torch.compile(program, backend="lightint")
    for _ in range(2):
        weights = [torch.randn(16, 16).requires_grad_()]
        weights.append(weights[0].detach().clone().requires_grad_())
        program(*made, weights[0]).backward()
        compiled(*mine, weights[1]).backward()
        torch.testing.assert_close((mine, weights[1].grad), (made, weights[0].grad))


def copies(program: Callable[..., Any], *made: Any) -> tuple[int, str]:
    """How many copies a program gets, and the remark on them."""
    before = copies_made()
    compiled = torch.compile(program, backend="lightint", options={"preset": "off"})
    with torch.no_grad():
        compiled(*made)
    sections = lightint_compile.report(compiled).sections
    remarks = [remark for section in sections for remark in section.remarks if remark.rule == "reads-first"]
    return copies_made() - before, "".join(remark.message for remark in remarks)


def test_the_report_says_how_many_copies_are_made_after_a_warm_start_too() -> None:
    expected = "a value is copied before the graph writes over it, where Inductor would read it afterwards"
    assert copies(swapped, *square()) == (1, expected)
    torch._dynamo.reset()
    assert copies(swapped, *square()) == (1, expected)  # Inductor has the program on disk
    torch._dynamo.reset()
    assert copies(both_up, *square())[0] == 2


def both_up(c: Tensor, y: Tensor) -> None:
    up(c, y)
    up(y, c)


def onto_itself(c: Tensor, y: Tensor) -> None:
    c[1:] = c[1:].clone()


def to_another_place(c: Tensor, y: Tensor) -> None:
    c[:8] = c[8:].clone()


def computed_first(c: Tensor, y: Tensor) -> None:
    c[:, 1:] = c[:, :-1] * 2


def one_way(c: Tensor, y: Tensor) -> None:
    c.copy_(y)


def written_window(c: Tensor, y: Tensor) -> None:
    c[:4] = y[:4]


def kept_and_not_written(c: Tensor, y: Tensor) -> Tensor:
    t = c.clone()
    t[1:] = c[:-1]
    return t * 2 + y


def given_back(c: Tensor, y: Tensor) -> Tensor:
    c[1:] = y[:-1]
    return c


def strides_computed_in_place(c: Tensor, y: Tensor) -> None:
    windows(c, 2).mul_(2)
    windows(c, 2).copy_(windows(c, 2) * 2 + y[1:, 2:])


def put_from_another(c: Tensor, y: Tensor) -> None:
    c[torch.tensor([1, 2, 3])] = y[0:3].clone()


@pytest.mark.parametrize(
    "program",
    [
        onto_itself,
        to_another_place,
        computed_first,
        strides_computed_in_place,
        pytest.param(one_way, marks=pytest.mark.slow),
        pytest.param(written_window, marks=pytest.mark.slow),
        kept_and_not_written,
        given_back,
        pytest.param(put_from_another, marks=pytest.mark.slow),
    ],
    ids=lambda program: program.__name__,
)
def test_what_needs_no_copy_gets_none(program: Callable[..., Any]) -> None:
    assert copies(program, *square()) == (0, "")
    torch._dynamo.reset()
    with torch.no_grad():
        agree(program, torch.compile(program, backend="lightint", options={"preset": "off"}), square())


def test_a_region_with_a_temporary_that_is_written_over() -> None:
    program = capture.trace(into_a_temporary, tuple(square()))
    lowered = lower(program, LightintOptions(), {})
    made = square()
    with torch.no_grad():
        got = pytree.tree_leaves(lowered.driver(*made))[0]
        torch.testing.assert_close(got, into_a_temporary(*made))


class Doubles(CustomGraphPass):
    """A pass of the user's, which sees the graph first."""

    seen = 0

    def __call__(self, graph: torch.fx.Graph) -> None:
        Doubles.seen += 1
        assert not [node for node in graph.nodes if node.target in COPIES]

    def uuid(self) -> bytes:
        return b"doubles"


def test_a_configured_pass_runs_in_front() -> None:
    for configured in (Doubles(), lambda graph: Doubles.__call__(Doubles(), graph)):
        torch._dynamo.reset()
        before = Doubles.seen
        with torch.no_grad(), inductor_config.patch({"post_grad_custom_post_pass": configured}):
            agree(swapped, torch.compile(swapped, backend="lightint"), square(), calls=1)
        assert Doubles.seen == before + 1


def test_without_the_pass_inductor_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once this fails for all supported versions of torch, the pass can go."""
    monkeypatch.setattr(as_captured, "settings", dict)
    with torch.no_grad(), pytest.raises(AssertionError):
        agree(swapped, torch.compile(swapped, backend="lightint"), square())


def graph_of(*views: tuple[Any, ...], scatter: tuple[Any, ...]) -> int:
    """Copies that the pass makes where views of an input are scattered into it."""
    graph = torch.fx.Graph()
    base = graph.placeholder("base")
    base.meta["val"] = torch.empty(12, 16)
    value = base
    for target, *args in views:
        value = graph.call_function(target, (value, *args))
        value.meta["val"] = target(*torch.fx.node.map_arg(value.args, lambda node: node.meta["val"]))
    target, *args = scatter
    whole = graph.call_function(target, (base, value, *args))
    graph.call_function(aten.copy_.default, (base, whole))
    graph.output(())
    ReadsFirst()(graph)
    return len([node for node in graph.nodes if node.target in COPIES])


SLICE, SELECT, SCATTER = aten.slice.Tensor, aten.select.int, aten.slice_scatter.default


@pytest.mark.parametrize(
    ("views", "scatter", "expected"),
    [
        ([(SLICE, 0, 0, 4)], (SCATTER, 0, 4, 8), 0),
        ([(SLICE, 0, 0, 5)], (SCATTER, 0, 4, 9), 1),
        ([(SLICE, 0, -4)], (SCATTER, 0, 0, 4), 0),
        ([(SLICE, 0, 2, 10), (SLICE, 0, 0, 4)], (SCATTER, 0, 6, 10), 0),
        ([(SLICE, 0, 2, 10), (SLICE, 0, 1, 5)], (SCATTER, 0, 6, 10), 1),
        ([(SLICE, 0, 0, 12, 2)], (SCATTER, 0, 6, 12), 1),
        ([(SELECT, 0, 3)], (aten.select_scatter.default, 0, 4), 0),
        ([(SELECT, 0, 3)], (aten.select_scatter.default, 0, -8), 0),
        ([(SLICE, 0, 0, 4), (SELECT, 0, 3)], (aten.select_scatter.default, 0, 4), 0),
        ([(SLICE, 1, 0, 12), (SELECT, 1, 3)], (aten.select_scatter.default, 1, 4), 0),
        ([(aten.as_strided.default, [4, 16], [16, 1], 0)], (SCATTER, 0, 6, 10), 1),
        ([(SLICE, 0, 0, 4), (aten.flip.default, [0])], (SCATTER, 0, 2, 6), 0),
        ([(SLICE, 0, 0, 4), (aten.permute.default, [0, 1])], (SCATTER, 0, 2, 6), 1),
        ([(aten._unsafe_view.default, [12, 16]), (SLICE, 0, 0, 4)], (SCATTER, 0, 2, 6), 1),
    ],
)
def test_windows_that_meet(views: list[Any], scatter: tuple[Any, ...], expected: int) -> None:
    assert graph_of(*views, scatter=scatter) == expected


def draw_agrees(seed: int) -> None:
    program = drawn(seed)
    compiled = torch.compile(lambda *args: program(*args), backend="lightint", dynamic=bool(seed % 2) or None)
    made = inputs(seed)
    mine = [each.clone() for each in made]
    with torch.no_grad():
        try:
            compiled(*inputs(seed))
        except InductorError:
            with pytest.raises(InductorError):  # Inductor cannot compile the program by itself either
                torch.compile(lambda *args: program(*args), dynamic=bool(seed % 2) or None)(*inputs(seed))
            return
        for _ in range(2):
            torch.testing.assert_close((compiled(*mine), mine), (program(*made), made), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "seed",
    [
        0,
        pytest.param(1, marks=pytest.mark.slow),
        2,
        pytest.param(
            136, marks=pytest.mark.skipif(not keeps_copies_apart(), reason="a put that is fused with its copy")
        ),
    ],
)
def test_drawn_programs(seed: int) -> None:
    draw_agrees(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 200))
def test_more_drawn_programs(seed: int) -> None:
    draw_agrees(seed)
