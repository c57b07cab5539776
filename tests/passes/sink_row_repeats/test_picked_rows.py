"""Per-token timesteps whose rows are few by how they are made: joined, written, masked or picked by an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.fx as fx
from differential import feeds_of, largest_difference, rewritten, run, trace
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile.passes.analysis.axes.factors import same
from lightint_compile.passes.analysis.row_repeats.analysis import Sunk, analyse
from lightint_compile.passes.analysis.row_repeats.picks import Allowed, every, none
from lightint_compile.passes.ir.flops import program_flops
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import RemarkKind

PASS, BATCH, TOKENS, WIDTH = "sink-row-repeats", 2, 64, 16
aten = torch.ops.aten


def written(timestep: Tensor, tokens: Tensor) -> Tensor:
    rows = timestep.new_zeros(len(timestep), tokens.shape[1])
    rows[:, 16:] = timestep[:, None]
    return rows


def written_between(timestep: Tensor, tokens: Tensor) -> Tensor:
    rows = torch.ones(len(timestep), tokens.shape[1], dtype=timestep.dtype)
    rows[:, 16:-8] = timestep[:, None]
    return rows


def joined(timestep: Tensor, tokens: Tensor) -> Tensor:
    rest = timestep[:, None].expand(-1, tokens.shape[1] - 16)
    return torch.cat([timestep.new_zeros(len(timestep), 16), rest], 1)


def joined_and_flattened(timestep: Tensor, tokens: Tensor) -> Tensor:
    return joined(timestep, tokens).flatten().unflatten(0, (len(timestep), tokens.shape[1]))


def padded(timestep: Tensor, tokens: Tensor) -> Tensor:
    """Two frames with times of their own, and padding with the time of the last token."""
    frames = torch.stack([timestep, timestep / 2], 1).repeat_interleave(24, 1)
    rest = tokens.shape[1] - 48
    return torch.cat([frames, frames.new_ones(len(frames), rest) * timestep[:, None]], 1)


def padded_in_front(timestep: Tensor, tokens: Tensor) -> Tensor:
    """Clean context in front of tokens that share a time."""
    return F.pad(timestep[:, None].expand(-1, TOKENS - 16), (16, 0))


def padded_twice(timestep: Tensor, tokens: Tensor) -> Tensor:
    """A clean and a noisy part of one time, memory in front, and padding of another value to a length."""
    clip = torch.cat([torch.zeros(len(timestep), 4, 4), torch.full((len(timestep), 6, 4), 0.7)], 1).flatten(1)
    return F.pad(F.pad(clip * timestep[:, None], (8, 0)), (1, TOKENS - 49), value=0.5)


def first_frame(timestep: Tensor, tokens: Tensor) -> Tensor:
    return torch.where(torch.arange(tokens.shape[1]) < 16, 0.0, timestep[:, None])


def multiplied(timestep: Tensor, tokens: Tensor) -> Tensor:
    return (torch.arange(tokens.shape[1]) % 3 > 0).to(timestep.dtype) * timestep[:, None]


def by_frame(timestep: Tensor, tokens: Tensor) -> Tensor:
    frame = torch.arange(tokens.shape[1]) // 16
    return torch.stack([timestep, timestep / 2, timestep / 3, timestep * 0, timestep + 1, timestep - 1], 1)[:, frame]


SPELLINGS: dict[Callable[[Tensor, Tensor], Tensor], int] = {
    written: 2,
    written_between: 3,
    joined: 2,
    joined_and_flattened: 2,
    padded: 3,
    padded_in_front: 2,
    padded_twice: 5,
    first_frame: 2,
    multiplied: 2,
    by_frame: 6,
}


class Modulated(nn.Module):
    """Blocks with scale and shift from an embedding of every token's time."""

    def __init__(self, times: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.times, self.dtype = times, dtype
        self.embed = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 6 * WIDTH)).to(dtype)
        self.tables = nn.ParameterList([torch.randn(1, 6, WIDTH).to(dtype) for _ in range(2)])

    def forward(self, timestep: Tensor, tokens: Tensor) -> Tensor:
        angles = self.times(timestep, tokens)[..., None] * torch.arange(1, 5, dtype=timestep.dtype)
        rows = self.embed(torch.cat([angles.cos(), angles.sin()], -1).to(self.dtype)).unflatten(2, (6, WIDTH))
        for table in self.tables:
            shift, scale, *_ = (table + rows).chunk(6, 2)
            tokens = F.layer_norm(tokens, (WIDTH,)) * (1 + scale.squeeze(2)) + shift.squeeze(2)
        return tokens


def inputs(tokens: int = TOKENS, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(tokens)
    return {
        "timestep": torch.rand(BATCH, generator=make, dtype=torch.float64),
        "tokens": torch.randn(BATCH, tokens, WIDTH, generator=make, dtype=torch.float64).to(dtype),
    }


def linear_rows(program: Program) -> set[int]:
    return {node.meta["val"].shape[1] for node in program.calls(aten.linear.default)}


@pytest.mark.parametrize("times", SPELLINGS, ids=lambda each: each.__name__)
def test_few_rows_by_construction_are_computed_once_each(times: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = Modulated(times)
    program = trace(module, inputs())
    copy, result = rewritten(program, PASS)
    assert linear_rows(copy) == {SPELLINGS[times]}
    before, after = (program_flops(each)["total"] for each in (program, copy))
    assert after * TOKENS == before * SPELLINGS[times]
    applied = [r for r in result.remarks if r.rule == "linear"]
    assert {(r.args["rows_before"], r.args["rows_after"]) for r in applied} == {("64", str(SPELLINGS[times]))}
    feeds = feeds_of(module, inputs())
    assert largest_difference(run(copy, feeds), run(program, feeds)) <= 1e-14
    assert not rewritten(copy, PASS)[1].modified


@pytest.mark.parametrize("times", [written, joined_and_flattened, padded, multiplied], ids=lambda each: each.__name__)
def test_any_number_of_tokens(times: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = Modulated(times)
    program = trace(module, inputs(), dynamic={"tokens": 1})
    copy, result = rewritten(program, PASS)
    assert result.modified and linear_rows(copy) == {SPELLINGS[times]}
    for tokens in (60, 64, 200):
        feeds = feeds_of(module, inputs(tokens)) | {e.path: tokens for e in program.inputs if "size" in e.path}
        assert largest_difference(run(copy, feeds), run(program, feeds)) <= 1e-14


def test_in_half_precision_rows_are_those_of_every_token() -> None:
    module = Modulated(joined, torch.bfloat16)
    program = trace(module, inputs(dtype=torch.bfloat16))
    copy, result = rewritten(program, PASS)
    feeds = feeds_of(module, inputs(dtype=torch.bfloat16))
    assert result.modified and largest_difference(run(copy, feeds), run(program, feeds)) <= 2**-8


def test_all_blocks_share_one_index() -> None:
    copy, _ = rewritten(trace(Modulated(joined), inputs()), PASS)
    gathers = list(copy.calls(aten.index.Tensor))
    assert len(gathers) == 4 and len({node.args[1][1] for node in gathers}) == 1


def two_axes(timestep: Tensor, tokens: Tensor) -> Tensor:
    """Every element of the batch has a mask of its own."""
    return torch.where(tokens[..., 0] > 0, 0.0, timestep[:, None])


def all_differ(timestep: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([timestep[:, None].expand(-1, 16), tokens[:, 16:, 0]], 1)


def most_of_a_table(timestep: Tensor, tokens: Tensor) -> Tensor:
    return (timestep[:, None] * torch.arange(32)).index_select(1, torch.arange(tokens.shape[1]) // 2)


def cut_out(timestep: Tensor, tokens: Tensor) -> Tensor:
    longer = torch.cat([timestep.new_zeros(len(timestep), 32), timestep[:, None].expand(-1, tokens.shape[1])], 1)
    return longer[:, 16:-16]


def along_tokens(timestep: Tensor, tokens: Tensor) -> Tensor:
    return joined(timestep, tokens).cumsum(1)


def mirrored(timestep: Tensor, tokens: Tensor) -> Tensor:
    return F.pad(joined(timestep, tokens)[:, 8:-8], (8, 8), mode="reflect")


def padding_cut_off(timestep: Tensor, tokens: Tensor) -> Tensor:
    longer = torch.cat([timestep.new_zeros(len(timestep), 32), timestep[:, None].expand(-1, tokens.shape[1])], 1)
    return F.pad(longer, (-16, -16))


def padding_of_rows_that_differ(timestep: Tensor, tokens: Tensor) -> Tensor:
    return F.pad(tokens[:, :16, 0] * timestep[:, None], (0, TOKENS - 16))


NOT_FEW = [two_axes, all_differ, most_of_a_table, cut_out, along_tokens]
NOT_CONSTANT = [mirrored, padding_cut_off, padding_of_rows_that_differ]


@pytest.mark.parametrize("times", [*NOT_FEW, *NOT_CONSTANT])
def test_rows_that_are_not_few_stay(times: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = trace(Modulated(times), inputs())
    copy, _ = rewritten(program, PASS)
    assert linear_rows(copy) == {TOKENS}
    assert program_flops(copy)["total"] == program_flops(program)["total"]


@pytest.mark.parametrize(("times", "reason"), [(cut_out, "selects along"), (along_tokens, "runs along")])
def test_what_ends_the_few_rows_is_named(times: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    remarks = rewritten(trace(Modulated(times), inputs()), PASS)[1].remarks
    (missed,) = [r for r in remarks if r.kind is RemarkKind.MISSED]
    assert reason in missed.message and missed.hint and missed.flops_before


def test_elementwise_work_alone_does_not_pay_for_an_index() -> None:
    class Call(nn.Module):
        def forward(self, timestep: Tensor, tokens: Tensor) -> Tensor:
            return tokens * joined(timestep, tokens)[..., None].sin()

    assert not rewritten(trace(Call(), inputs()), PASS)[1].modified


def test_numbers_counted_from_the_end_pick_the_same_rows() -> None:
    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

        def forward(self, frames: Tensor, number: Tensor, tokens: Tensor) -> Tensor:
            return tokens * self.linear(frames[:, number])

    module = Call()
    arguments: dict[str, Any] = {
        "frames": torch.randn(BATCH, 3, WIDTH, dtype=torch.float64),
        "number": torch.randint(-3, 3, (TOKENS,)),
        "tokens": inputs()["tokens"],
    }
    program = trace(module, arguments)
    copy, _ = rewritten(program, PASS)
    assert linear_rows(copy) == {3}
    feeds = feeds_of(module, arguments)
    assert largest_difference(run(copy, feeds), run(program, feeds)) <= 1e-14


class Overwritten(nn.Module):
    """What is picked from, or the numbers, are the caller's and written to before the rows are read."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.linear, self.which = nn.Linear(WIDTH, WIDTH, dtype=torch.float64), which

    def forward(self, frames: Tensor, number: Tensor, tokens: Tensor) -> Tensor:
        rows = frames[:, number]
        if self.which == "frames":
            frames.copy_(tokens[:, :3])
        else:
            number.copy_(number.flip(0))
        return tokens * self.linear(rows)


@pytest.mark.parametrize("which", ["frames", "number"])
def test_what_the_call_writes_to_is_read_where_it_was(which: str) -> None:
    module = Overwritten(which)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="lightint", options={"delegate": "eager", "strict": True, "passes": PASS})
    for _ in range(2):
        given = [torch.randn(BATCH, 3, WIDTH, dtype=torch.float64), torch.randint(0, 3, (TOKENS,)), inputs()["tokens"]]
        again = [each.clone() for each in given]
        with torch.no_grad():
            assert torch.allclose(compiled(*given), module(*again), rtol=1e-13, atol=1e-13)
        assert all(map(torch.equal, given, again))


def test_a_range_of_another_dtype_is_cast_by_the_write() -> None:
    class Call(Modulated):
        def forward(self, timestep: Tensor, tokens: Tensor) -> Tensor:
            rows = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
            rows = torch.slice_scatter(rows, timestep[:, None].expand(-1, TOKENS - 16) * 10, 1, 16)
            return super().forward(rows.double(), tokens)

    module = Call(lambda timestep, tokens: timestep)
    program = trace(module, inputs())
    copy, _ = rewritten(program, PASS)
    feeds = feeds_of(module, inputs())
    assert largest_difference(run(copy, feeds), run(program, feeds)) <= 1e-14


@pytest.mark.parametrize("picks", [none, every], ids=["none", "every"])
@pytest.mark.parametrize("times", SPELLINGS, ids=lambda each: each.__name__)
def test_an_analysis_like_another_is_the_one_from_nothing(
    times: Callable[[Tensor, Tensor], Tensor], picks: Allowed
) -> None:
    graph = trace(Modulated(times), inputs()).graph
    like = analyse(graph, picks=every)
    repeated = {node: tuple(map(same, sizes_of(node))) for node in graph.find_nodes(op="placeholder")}
    for given in ({}, repeated):
        again, anew = analyse(graph, given, picks, like), analyse(graph, given, picks)
        assert again.blocked == anew.blocked
        assert [*map(_comparable, again.sunk.items())] == [*map(_comparable, anew.sunk.items())]


def _comparable(item: tuple[fx.Node, Sunk]) -> tuple[fx.Node, Sunk]:
    """Functions that make a tensor are not equal, whatever they do."""
    return item[0], item[1]._replace(plan=replace(item[1].plan, made=None))
