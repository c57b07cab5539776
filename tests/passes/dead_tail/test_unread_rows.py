"""dead-tail: rows that nothing reads are not computed, and those that are keep their values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.fx as fx
from differential import feeds_of, largest_difference, rewritten, run, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile.passes.dead_tail.layout import Layout
from lightint_compile.passes.ir.flops import program_flops
from lightint_compile.passes.ir.remarks import RemarkKind

PASS = "dead-tail"
aten = torch.ops.aten


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Block(nn.Module):
    """Attention over the first `length` rows, by all of them, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, tokens: Tensor, length: int) -> Tensor:
        query, key, value = self.qkv(self.norm(tokens)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key[:, :, :length], value[:, :, :length])
        tokens = tokens + self.out(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(tokens)


class Padded(nn.Module):
    """Frames of 3 tokens, padded to 20 tokens before the blocks; the prediction of the last `new` frames is read."""

    def __init__(self, depth: int, new: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(depth)])
        self.new = new

    def forward(self, latents: Tensor) -> Tensor:
        length = latents.shape[1]
        tokens = torch.cat([latents, latents.new_zeros(latents.shape[0], 20 - length, 8)], dim=1)
        for block in self.blocks:
            tokens = block(tokens, length)
        return tokens[:, :length].unflatten(1, (-1, 3))[:, -self.new :]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("new", [5, 2])
def test_padding_is_not_computed_nor_what_is_dropped_at_the_end(batch: int, new: int) -> None:
    module, latents = Padded(3, new).double(), {"latents": draw(batch, 15, 8)}
    program = trace(module, latents)
    copy, result = rewritten(program, PASS)
    after, before = run(copy, feeds_of(module, latents)), run(program, feeds_of(module, latents))
    assert largest_difference(after, before) < 1e-14
    assert [laid_out(out) for out in after] == [laid_out(out) for out in before]
    rows = [node.meta["val"].shape[1] for node in copy.calls(aten.linear.default)]
    # Of the last block the rows that are read, but for keys and values; 15 of 20 rows elsewhere.
    assert rows == [15] * 4 * 2 + [15] + [3 * new] * 3
    saved = sum((r.flops_before or 0) - (r.flops_after or 0) for r in result.remarks)
    assert saved == program_flops(program)["total"] - program_flops(copy)["total"] > 0
    assert {r.rule for r in result.remarks} == {"unread-rows"}
    assert all(r.kind is RemarkKind.APPLIED for r in result.remarks)
    again = rewritten(copy, PASS)[1]
    assert not again.modified and again.remarks == ()


def linear(x: Tensor, features: int = 6) -> Tensor:
    """A product with a weight that is made in the graph."""
    weight = torch.linspace(0.0, 40.0, features * x.shape[-1], dtype=torch.float64).sin()
    return F.linear(x, weight.reshape(features, x.shape[-1]))


def turned(x: Tensor, count: int) -> Tensor:
    """The first rows changed, the rest behind them as it was: positions of what is no padding."""
    return torch.cat([x[:count].sin(), x[count:]])


def laid_out(x: Tensor) -> list[int]:
    """Strides, but of axes with one value, where they mean nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]


NARROWED: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], int]] = {
    "slice": (lambda x: linear(x)[2:5], (8, 4), 3),
    "every other row": (lambda x: linear(x)[1:7:2], (8, 4), 5),
    "slice of a slice": (lambda x: linear(x)[1:][2:4], (8, 4), 2),
    "from the end": (lambda x: linear(x)[-3:], (8, 4), 3),
    "two readers": (lambda x: linear(x)[:2] + linear(x)[3:5].tanh(), (8, 4), 2),
    "pointwise and norm": (lambda x: F.layer_norm(linear(x).tanh() * 2 + 1, (6,))[:3], (8, 4), 3),
    "joined with others": (lambda x: torch.cat([x, linear(x, 4), x.cos()])[6:14], (8, 4), 6),
    "joined with what is read": (lambda x: torch.cat([x, linear(x, 4)])[6:10], (8, 4), 2),
    "padding": (lambda x: F.pad(linear(x), (0, 0, 3, 4))[1:7], (8, 4), 4),
    "padding cut off": (lambda x: linear(F.pad(x, (0, 0, 0, 9)))[:8], (8, 4), 8),
    "expanded rows": (lambda x: (linear(x) + x.new_ones(1, 6).expand(8, 6))[4:], (8, 4), 4),
    "filled rows": (lambda x: (linear(x) * x.new_full((8, 1), 3.0))[4:], (8, 4), 4),
    "stacked": (lambda x: torch.stack([linear(x), linear(x).sin()])[:, 5:], (8, 4), 3),
    "unbound": (lambda x: (lambda a, b: a * b)(*linear(x).unflatten(-1, (2, 3)).unbind(1))[:3], (8, 4), 3),
    "frames of tokens": (lambda x: linear(x).unflatten(0, (4, 2))[1:3], (8, 4), 4),
    "part of a frame": (lambda x: linear(x).unflatten(0, (2, 4)).flatten(0, 1)[3:5], (8, 4), 8),
    "tokens of frames": (lambda x: linear(x).flatten(0, 1)[2:6], (4, 2, 4), 2),
    "rows behind a batch": (lambda x: linear(x).transpose(0, 1).flatten(1)[1:2], (3, 8, 4), 1),
    "matrices": (lambda x: (linear(x, 4) @ x.transpose(0, 1))[:, :3], (8, 4), 8),
    "left rows": (lambda x: (linear(x, 4) @ x.transpose(0, 1))[6:], (8, 4), 2),
    "attention": (lambda x: F.scaled_dot_product_attention(linear(x, 4), x, x)[:, 2:4], (1, 8, 4), 2),
    "softmax of rows": (lambda x: linear(x).softmax(-1)[:2], (8, 4), 2),
    "mean of features": (lambda x: linear(x).mean(-1)[5:], (8, 4), 3),
    "gaps in two axes": (lambda x: linear(x)[:, 1:3, 2:5], (2, 8, 4), 2),
    "gaps in all axes": (lambda x: linear(x)[:, 1:7:2, 0:5:2], (2, 8, 4), 5),
    "turned, with gaps": (lambda x: linear(x)[:, 1:3].permute(2, 0, 1), (2, 8, 4), 2),
    "gaps around frames": (lambda x: linear(x).unflatten(1, (4, 2))[:, 1:3], (2, 8, 4), 4),
    "one axis of two": (lambda x: linear(x)[:, 1:3], (2, 8, 4), 2),
    "a part turned and joined again": (lambda x: turned(linear(x), 5)[:5], (8, 4), 5),
    "and padding with it": (lambda x: turned(turned(linear(x), 5).tanh(), 3)[:4], (8, 4), 4),
}
"""Function, shape of its input, and rows that the first product is left with (along its last axis but one)."""


@pytest.mark.parametrize("name", NARROWED)
def test_every_movement_is_followed(name: str) -> None:
    function, shape, rows = NARROWED[name]
    program = trace(function, {"x": draw(*shape)})
    copy, _ = rewritten(program, PASS)
    before, after = run(program, {"x": draw(*shape)}), run(copy, {"x": draw(*shape)})
    assert largest_difference(after, before) < 1e-14
    first = next(iter(copy.calls(aten.linear.default)))
    assert first.meta["val"].shape[-2 if name != "tokens of frames" else 0] == rows
    assert len(list(copy.calls(aten.linear.default))) == len(list(program.calls(aten.linear.default)))
    assert [out.shape for out in after] == [out.shape for out in before]
    assert [laid_out(out) for out in after] == [laid_out(out) for out in before]


STEPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "product": lambda x, at: linear(x, 4),
    "turned": turned,
    "joined whole": lambda x, at: torch.cat([x[:at], x[at:]]),
    "padded": lambda x, at: F.pad(x, (0, 0, 0, at)),
    "elementwise": lambda x, at: x.tanh() * 2,
    "stacked": lambda x, at: torch.stack([x[:at], x[:at].cos()]).unbind(0)[1],
}


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(1, 6)), min_size=2, max_size=7),
    low=st.integers(0, 3),
    count=st.integers(1, 4),
)
def test_what_is_said_to_be_saved_is_saved(steps: list[tuple[str, int]], low: int, count: int) -> None:
    """No product is computed for the rows that are read and once more for all."""

    def chain(x: Tensor) -> Tensor:
        x = linear(x, 4)
        for name, at in steps:
            x = STEPS[name](x, min(at, len(x) - 1)) if len(x) > 1 else x
        return x[low : low + count] if len(x) > low else x

    program = trace(chain, {"x": draw(8, 4)})
    copy, result = rewritten(program, PASS)
    assert largest_difference(run(copy, {"x": draw(8, 4)}), run(program, {"x": draw(8, 4)})) < 1e-14
    saved = sum((r.flops_before or 0) - (r.flops_after or 0) for r in result.remarks)
    assert saved == program_flops(program)["total"] - program_flops(copy)["total"]
    products = [len(list(each.calls(aten.linear.default))) for each in (program, copy)]
    assert products[1] <= products[0]


@pytest.mark.parametrize("strides", [(2, 1), (1, 1)])
def test_what_overlaps_in_memory_is_laid_out_by_no_padding(strides: tuple[int, int]) -> None:
    node = fx.Graph().placeholder("x")
    node.meta["val"] = torch.empty(16).as_strided((3, 4), strides)
    assert Layout.of(node) is None


WHOLE: dict[str, Callable[..., Tensor]] = {
    "read": lambda x: linear(x),
    "read elsewhere": lambda x: (lambda y: y[:2].sum() + y.sum())(linear(x)),
    "runs along rows": lambda x: linear(x).cumsum(0)[:2],
    "normed over rows": lambda x: linear(x).softmax(0)[:2],
    "turned around": lambda x: linear(x).flip(0)[:2],
    "both ways": lambda x: (lambda y: (y @ y.transpose(0, 1))[:2])(linear(x)),
    "both ends": lambda x: (lambda y: torch.cat([y[:1], y[-1:]]))(linear(x)),
    "joined twice": lambda x: (lambda y: torch.cat([y, y])[4:])(linear(x)),
    "random": lambda x: F.dropout(linear(x), 0.5, True)[:2],
    "by numbers": lambda x: linear(x)[torch.tensor([1, 2])],
    "one row": lambda x: linear(x)[3],
    "of one": lambda x: linear(x).squeeze()[:2],
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_depends_on_all_rows_stays(name: str) -> None:
    program = trace(WHOLE[name], {"x": draw(8, 4)})
    copy, _ = rewritten(program, PASS)
    assert [node.meta["val"].shape[0] for node in copy.calls(aten.linear.default)] == [8] * len(
        list(program.calls(aten.linear.default))
    )


@pytest.mark.parametrize("rows", [8, 3])
def test_values_of_an_attention_stay_as_wide_as_its_keys(rows: int) -> None:
    """Heads that are padded for a kernel: with narrower values that kernel could not be called."""

    def padded(x: Tensor) -> Tensor:
        query, key, value = (F.pad(linear(x + each, 4), (0, 4)) for each in range(3))
        return linear(F.scaled_dot_product_attention(query, key, value)[:, :, :rows, :4], 6)

    program = trace(padded, {"x": draw(1, 2, 8, 4)})
    copy, _ = rewritten(program, PASS)
    assert largest_difference(run(copy, {"x": draw(1, 2, 8, 4)}), run(program, {"x": draw(1, 2, 8, 4)})) < 1e-14
    (call,) = copy.calls(aten.scaled_dot_product_attention.default)
    query, *others = (operand.meta["val"].shape for operand in call.all_input_nodes)
    assert query == (1, 2, rows, 8) and others == [(1, 2, 8, 8)] * 2


@pytest.mark.parametrize(("read", "computed"), [(20, 20), (17, 17), (16, 40)])
def test_products_of_8_bit_keep_as_many_rows_as_they_need_on_every_device(read: int, computed: int) -> None:
    def call(x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        weight = torch.linspace(-90, 90, 24 * 16).reshape(16, 24).to(torch.int8)
        return (torch._int_mm((x / scale).round().to(torch.int8), weight).double() * scale)[:read]

    program = trace(call, {"x": draw(40, 16)})
    copy, _ = rewritten(program, PASS)
    assert [node.meta["val"].shape[0] for node in copy.calls(aten._int_mm.default)] == [computed]
    assert largest_difference(run(copy, {"x": draw(40, 16)}), run(program, {"x": draw(40, 16)})) == 0


def test_what_is_written_in_place_stays() -> None:
    def call(x: Tensor) -> Tensor:
        made = linear(x, 4)
        x.copy_(made)
        return made[:2]

    program = trace(call, {"x": draw(8, 4)})
    copy, _ = rewritten(program, PASS)
    assert [node.meta["val"].shape[0] for node in copy.calls(aten.linear.default)] == [8]


def test_little_is_left_as_it_is() -> None:
    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        return linear(x, 4000), linear(x, 2)[:1]

    assert not rewritten(trace(call, {"x": draw(8, 4)}), PASS)[1].modified


def test_a_symbolic_axis_beside_stays_symbolic() -> None:
    def call(x: Tensor, y: Tensor) -> Tensor:
        return (linear(x)[:, 2:5] + 1)[1:] * linear(y)

    program = trace(call, {"x": draw(7, 8, 4), "y": draw(3, 4)}, dynamic={"x": [0]})
    copy, _ = rewritten(program, PASS)
    assert [node.meta["val"].shape[-2] for node in copy.calls(aten.linear.default)] == [3, 3]
    for length in (4, 9):
        feeds = {"x": draw(length, 8, 4), "y": draw(3, 4)}
        assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-14
