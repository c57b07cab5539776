"""dead-tail: what nobody reads goes, is reported by block, and nothing else changes."""

from __future__ import annotations

import torch
import worldplay_tiny
import zoo
from differential import feeds_of, largest_difference, rewritten, run, trace
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile.passes.ir.flops import program_flops
from lightint_compile.passes.ir.remarks import RemarkKind

PASS = "dead-tail"
aten = torch.ops.aten


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8, dtype=torch.float64) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        keys = []
        for block in self.blocks:
            keys.append(x)
            query = block(x)
            x = F.scaled_dot_product_attention(query, x, x)
        return torch.cat(keys, -1)


def test_the_last_block_goes_with_a_remark() -> None:
    module, x = Tail(), torch.randn(1, 2, 4, 8, dtype=torch.float64)
    program = trace(module, {"x": x})
    assert len(list(program.calls(aten.linear.default))) == 3  # capture keeps what nobody reads
    copy, result = rewritten(program, PASS)
    assert len(list(copy.calls(aten.linear.default))) == 2
    assert len(list(copy.calls(aten.scaled_dot_product_attention.default))) == 2
    assert largest_difference(run(copy, feeds_of(module, {"x": x})), run(program, feeds_of(module, {"x": x}))) == 0.0
    saved = sum(r.flops_before or 0 for r in result.remarks)
    assert saved == program_flops(program)["total"] - program_flops(copy)["total"] > 0
    (linear,) = [r for r in result.remarks if "linear" in r.message]
    assert linear.kind is RemarkKind.APPLIED and linear.module_path == "blocks.2"
    again = rewritten(copy, PASS)[1]
    assert not again.modified and again.remarks == ()


def test_random_numbers_keep_their_order() -> None:
    def call(x: Tensor) -> Tensor:
        F.dropout(x.sin(), 0.5, True)
        return torch.rand_like(x) + x

    copy, _ = rewritten(trace(call, {"x": torch.randn(3)}), PASS)
    assert len(list(copy.calls(aten.dropout.default))) == 1


def test_a_program_without_a_dead_end_is_left_alone() -> None:
    result = rewritten(zoo.program("wan22_ti2v"), PASS)[1]
    assert not [r for r in result.remarks if r.flops_before]


def test_worldplay_prefill_ends_at_the_last_keys_and_values() -> None:
    program = worldplay_tiny.program()
    copy, result = rewritten(program, PASS)
    last = f"transformer.double_blocks.{worldplay_tiny.CONFIG.depth - 1}"
    (block,) = [r for r in result.remarks if r.module_path == last]
    assert block.args["scaled_dot_product_attention"] >= 1
    assert (
        block.args["linear"] == 9
    )  # query, two projections and an MLP of the vision half; query, projection, MLP of text
    feeds = feeds_of(worldplay_tiny.module(), worldplay_tiny.inputs(12))
    assert largest_difference(run(copy, feeds), run(program, feeds)) == 0.0
