"""Writes to inputs stay writes in the normal form, in the same order, and no value is as large as a buffer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.errors import CaptureError
from lightint_compile.passes.ir.input_writes import WRITE_WINDOW, InputWrites, written_buffers
from lightint_compile.passes.ir.memory_sharing import alias_source, is_write
from lightint_compile.passes.ir.program import Program

aten = torch.ops.aten


def window(c: Tensor, x: Tensor) -> Tensor:
    c[:, 2:4] = x
    return c[:, :4] * 2


def attended(c: Tensor, x: Tensor) -> Tensor:
    c[:, 2:4] = x
    query = x.to(c.dtype)
    return F.scaled_dot_product_attention(query, c[:, :4], c[:, :4])


def one_place(c: Tensor, x: Tensor) -> Tensor:
    c[0, 5] = x[0, 0]
    c[-1] = x[0, 1]
    return c.sum() + x


def nested(c: Tensor, x: Tensor) -> Tensor:
    c[:, 1:7][:, 2:4, :2].copy_(x[..., :2])
    c[0, 1:3] += x[0]
    return c * 1


def of_another_dtype_and_broadcast(c: Tensor, x: Tensor) -> Tensor:
    c[:, 2:4] = x[:, :1].double()
    c[:, 4:6] = 3
    return c + 1


def rolled(c: Tensor, x: Tensor) -> Tensor:
    c[:, 1:5] = c[:, 3:7].clone()
    c[:, 5:7] = x
    return c[:, :7].mean(1)


def seen_through_a_view_of_before(c: Tensor, x: Tensor) -> Tensor:
    view, value = c[:, :4], c[:, :4] + 1
    c[:, 2:4] = x
    return view.sum(1) + value.sum(1)


def all_of_it(c: Tensor, x: Tensor) -> Tensor:
    old = c * 2
    c.copy_(old + 1)
    c.fill_(x.sum())
    y = c + old
    c.zero_()
    return y


def counted(c: Tensor, x: Tensor) -> Tensor:
    c.add_(1).mul_(x.mean())
    c -= x.sum()
    c.clamp_(-1, 1)
    return c.masked_fill_(c > 0.5, 2) * 3


def indexed(c: Tensor, x: Tensor) -> Tensor:
    c.index_put_((torch.tensor([0]), torch.tensor([3])), x[:, 0])
    c.index_copy_(1, torch.tensor([5, 1]), x)
    c[:, torch.tensor([6, 2])] = x
    return c - 1


PLACES = [window, attended, one_place, nested, of_another_dtype_and_broadcast, rolled, seen_through_a_view_of_before]
WRITTEN: list[Callable[[Tensor, Tensor], Tensor]] = [*PLACES, all_of_it, counted, indexed]


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, 8, 3), torch.randn(1, 2, 3)


def run(program: Program, arguments: dict[str, Tensor]) -> Tensor:
    result: Tensor = program.graph_module(*(arguments[entry.path] for entry in program.inputs))[0]
    return result


@pytest.mark.parametrize("function", WRITTEN, ids=lambda function: function.__name__)
@torch.no_grad()
def test_results_buffers_and_their_versions_are_eagers(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    (c, x), (mine, _) = inputs(), inputs()
    program = capture.trace(function, (c.clone(), x))
    where, version = mine.data_ptr(), mine._version
    for _ in range(2):
        assert torch.equal(run(program, {"c": mine, "x": x}), function(c, x))
        assert torch.equal(mine, c)
    assert mine.data_ptr() == where and mine._version - version == c._version


@pytest.mark.parametrize("function", PLACES, ids=lambda function: function.__name__)
@torch.no_grad()
def test_no_value_is_a_new_buffer_but_what_is_returned(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = capture.trace(function, inputs())
    writes = [node for node in program.graph.nodes if is_write(node)]
    assert writes and all(node.target is WRITE_WINDOW for node in writes)
    returned = program.graph.output_node().all_input_nodes
    made = [node for node in program.calls() if alias_source(node) is None and node not in returned]
    assert all(node.meta["val"].numel() < 24 for node in made)


@torch.no_grad()
def test_values_behind_a_write_have_the_buffers_own_layout() -> None:
    c, x = torch.randn(1, 3, 8).transpose(1, 2), torch.randn(1, 2, 3)
    program = capture.trace(window, (c, x))
    (read,) = program.calls(aten.slice.Tensor)
    assert read.meta["val"].stride() == c[:, :4].stride()


@torch.no_grad()
def test_lengths_of_windows_may_be_symbols() -> None:
    def follows(c: Tensor, x: Tensor) -> Tensor:
        c[:, 1 : 1 + x.shape[1]] = x
        return c[:, : 1 + x.shape[1]] * 2

    c, x = inputs()
    program = capture.trace(follows, (c, x), dynamic={"x": 1})
    (buffer,) = written_buffers(program.graph)
    assert buffer.name == "c"
    for length in (2, 5):
        x, mine, theirs = torch.randn(1, length, 3), c.clone(), c.clone()
        arguments = {"c": mine, "x": x}
        given = [arguments.get(entry.path, length) for entry in program.inputs]
        assert torch.equal(program.graph_module(*given)[0], follows(theirs, x))
        assert torch.equal(mine, theirs)


def shared(c: Tensor, other: Tensor, x: Tensor) -> Tensor:
    c[:, 2:4] = x
    return other + 1


def strided(c: Tensor, x: Tensor) -> Tensor:
    c[:, ::4] = x
    return c + 1


def another_shape(c: Tensor, x: Tensor) -> Tensor:
    c.view(-1)[:6] = x.reshape(-1)
    return c + 1


def of_another_dtype(c: Tensor, x: Tensor) -> Tensor:
    c.view(torch.int32 if c.dtype == torch.float32 else torch.int64).fill_(7)
    c[:, 1:] = c[:, :-1].clone()
    return c + 1


def test_what_cannot_be_kept_in_place_is_refused() -> None:
    c, x = inputs()
    for function, arguments, why in (
        (shared, (c, c[:, 1:3], x), "shares memory with another input"),
        (strided, (c, x), "no write to a window"),
        (another_shape, (c, x), "no write to a window"),
        (of_another_dtype, (c, x), "no write to a window"),
    ):
        with pytest.raises(CaptureError, match="the graph writes to its inputs") as caught:
            capture.trace(function, arguments)
        assert why in caught.value.why


def test_an_exported_program_that_writes_is_refused() -> None:
    class Writes(nn.Module):
        def forward(self, c: Tensor, x: Tensor) -> Tensor:
            return window(c, x)

    with pytest.raises(CaptureError, match="writes to its inputs"):
        capture.from_exported(torch.export.export(Writes(), inputs()))


def test_a_call_may_be_made_again_where_nothing_overwritten_is_read() -> None:
    def moved(c: Tensor, x: Tensor) -> Tensor:
        c[:, :2] = c[:, 4:6]
        c[:, 4:6] = x
        return c + 1

    def adds(c: Tensor, x: Tensor) -> Tensor:
        return c.add_(1) * x.sum()

    for function, repeatable in ((window, True), (rolled, False), (moved, False), (adds, False)):
        assert InputWrites.of(capture.trace(function, inputs()).graph) == InputWrites((0,), repeatable)


@pytest.mark.parametrize(("most", "is_number"), [(100, True), (4, False)])
@torch.no_grad()
def test_a_window_longer_than_its_buffer_begins_at_its_front(most: int, is_number: bool) -> None:
    def follows(c: Tensor, x: Tensor, past: Tensor, gone: Tensor) -> Tensor:
        start = past.shape[0] - gone.shape[0]
        end = start + x.shape[1]
        c[:, start:end] = x
        return c[:, max(0, end - most) : end] * 2

    c, x = inputs()
    program = capture.trace(follows, (c, x, torch.zeros(5), torch.zeros(2)), dynamic={"past": 0, "gone": 0})
    assert (not list(program.calls(torch.sym_max))) == is_number
    (read,) = program.calls(aten.slice.Tensor)
    assert (read.args[2] == 0) == is_number
