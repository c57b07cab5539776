"""hoist-invariants: what is merged and what must not be, the text memo, and a whole denoising loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import worldplay_tiny
from differential import feeds_of, largest_difference, rewritten, run, trace, trace_function
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile.passes.ir.flops import flops_of, program_flops
from lightint_compile.passes.ir.program import InputKind, Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind

PASS = "hoist-invariants"
aten = torch.ops.aten


def fixed(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def hoisted(call: Any, arguments: dict[str, Any]) -> tuple[Program, list[Remark]]:
    program = trace_function(call, arguments)
    copy, result = rewritten(program, PASS)
    assert largest_difference(run(copy, arguments), run(program, arguments)) == 0.0
    assert not rewritten(copy, PASS)[1].modified
    return copy, list(result.remarks)


def count(program: Program, target: Any) -> int:
    return len(list(program.calls(target)))


def test_equal_computations_become_one_before_their_first_reader() -> None:
    def call(x: Tensor, w: Tensor) -> Tensor:
        total = x
        for _ in range(4):
            total = total * F.linear(w.sin(), w).cos().sum()
        return total

    program, remarks = hoisted(call, {"x": fixed(3, 3), "w": fixed(4, 4)})
    assert [count(program, t) for t in (aten.sin.default, aten.linear.default, aten.mul.Tensor)] == [1, 1, 4]
    (remark,) = [r for r in remarks if r.rule == "common-value"]
    assert remark.args == {"copies": 4, "operations": 4}
    assert (remark.flops_before, remark.flops_after) == (4 * 128, 128)


DIFFERENT: dict[str, tuple[Callable[[Tensor], Any], Any, int]] = {
    "random": (lambda x: F.dropout(x, 0.5, True) + F.dropout(x, 0.5, True), aten.dropout.default, 2),
    "noise": (lambda x: torch.rand_like(x) * torch.rand_like(x) * x, aten.rand_like.default, 2),
    "constants of other types": (lambda x: x + 1 + (x + 1.0) + (x + True), aten.add.Tensor, 5),
    "signed zeros": (lambda x: torch.atan2(x * 0.0, x) + torch.atan2(x * -0.0, x), aten.mul.Tensor, 2),
    "dtypes": (lambda x: x.float() + x.half(), None, 0),
    "operands": (lambda x: (x.sin() + x.cos()) * (x.cos() + x.sin()), aten.add.Tensor, 2),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_not_equal_stays(name: str) -> None:
    call, target, expected = DIFFERENT[name]
    program = trace_function(call, {"x": fixed(3, 3)})
    before = len(program.graph.nodes)
    copy, _ = rewritten(program, PASS)
    if target is None:
        assert len(copy.graph.nodes) == before
    else:
        assert count(copy, target) == expected


def test_outputs_keep_memory_of_their_own() -> None:
    def call(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, w), F.linear(x, w).t(), F.linear(x, w).sum()

    program, remarks = hoisted(call, {"x": fixed(2, 4), "w": fixed(3, 4)})
    assert count(program, aten.linear.default) == 2
    first, second, _ = run(program, {"x": fixed(2, 4), "w": fixed(3, 4)})
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    missed = [r for r in remarks if r.kind is RemarkKind.MISSED]
    assert "share memory" in missed[0].message and missed[0].flops_before == 48


def test_attention_without_dropout_is_pure() -> None:
    program, _ = hoisted(
        lambda q, k: F.scaled_dot_product_attention(q, k, k) + F.scaled_dot_product_attention(q, k, k),
        {"q": fixed(1, 2, 4, 8), "k": fixed(1, 2, 5, 8)},
    )
    assert count(program, aten.scaled_dot_product_attention.default) == 1


class Prompted(nn.Module):
    """Text goes through two linears; the second block of the first is shared with the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(fixed(6))
        self.embed, self.key, self.query = (nn.Linear(8, 8, dtype=torch.float64) for _ in range(3))

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        text = self.embed(F.dropout(encoder_hidden_states, 0.0, False) * self.table.sum())
        key = self.key(text)
        noisy = self.key(F.dropout(text, 0.5, True))
        seen = self.query(hidden_states) @ key.transpose(-1, -2)
        return seen @ noisy, self.embed(self.key(text * 2))


def marks(program: Program) -> set[Any]:
    return {node for node in program.graph.nodes if node.meta.get("memo")}


def assert_closed(program: Program) -> None:
    """Every producer of a marked node is marked, or a text input, a parameter or a buffer."""
    text = {"encoder_hidden_states", "text", "glyphs", "vision"}
    for node in marks(program):
        assert node.meta["memo"] == "text"
        for producer in node.all_input_nodes:
            if producer.op == "placeholder":
                entry = program.input_of(producer)
                assert entry.kind in (InputKind.PARAMETER, InputKind.BUFFER) or entry.path.split(".")[0] in text
            else:
                assert producer.meta.get("memo") == "text"


def test_what_depends_on_text_alone_is_marked() -> None:
    module, arguments = Prompted(), {"hidden_states": fixed(1, 5, 8), "encoder_hidden_states": fixed(1, 6, 8)}
    program = trace(module, arguments)
    program.roles = {"encoder_hidden_states": "text"}
    copy, result = rewritten(program, PASS)
    assert_closed(copy)
    marked = marks(copy)
    assert sum(node.target is aten.linear.default for node in marked) == 3  # embed, key, key of text * 2
    outputs = copy.graph.output_node().args[0]
    assert not marked & set(outputs)  # type: ignore[arg-type]
    (remark,) = [r for r in result.remarks if r.rule == "memo"]
    assert remark.args["inputs"] == ["encoder_hidden_states"] and remark.flops_after == 0
    assert remark.flops_before == sum(map(flops_of, marked))
    assert not rewritten(copy, PASS)[1].modified
    assert not marks(rewritten(program, f"{PASS}{{memo=false}}")[0])


def test_roles_that_the_user_states_win() -> None:
    module, arguments = Prompted(), {"hidden_states": fixed(1, 5, 8), "encoder_hidden_states": fixed(1, 6, 8)}
    program = trace(module, arguments)
    program.roles = {"hidden_states": "text", "encoder_hidden_states": "latent"}
    copy, result = rewritten(program, PASS)
    (remark,) = [r for r in result.remarks if r.rule == "memo"]
    assert remark.args["inputs"] == ["hidden_states"]
    assert sum(node.target is aten.linear.default for node in marks(copy)) == 1


def test_worldplay_computes_invariants_once_and_keeps_its_text() -> None:
    program = worldplay_tiny.program()
    copy, result = rewritten(program, PASS)
    assert_closed(copy)
    depth, passes = worldplay_tiny.CONFIG.depth, worldplay_tiny.CONFIG.steps + 1
    assert count(program, aten.repeat.default) == 2 * depth * passes
    assert count(copy, aten.repeat.default) == 2 * depth  # text keys and values, once a block
    assert count(copy, aten.cos.default) < count(program, aten.cos.default)
    attention = [n for n in marks(copy) if n.target is aten.scaled_dot_product_attention.default]
    assert (
        len(attention) == 2 + depth - 1 + 1
    )  # two refiner blocks, the text half of each block but the last, unread one
    merged = [r for r in result.remarks if r.rule == "common-value"]
    assert any(r.args["copies"] == worldplay_tiny.CONFIG.steps * depth for r in merged)  # camera matrices
    assert any("double_blocks.*" in r.module_path for r in merged)
    assert program_flops(copy)["total"] < program_flops(program)["total"]
    feeds = feeds_of(worldplay_tiny.module(), worldplay_tiny.inputs(24))
    assert largest_difference(run(copy, feeds), run(program, feeds)) == 0.0


def test_the_memo_survives_sinking() -> None:
    copy, _ = rewritten(worldplay_tiny.program(), f"{PASS},sink-row-repeats,dead-tail")
    assert_closed(copy)
    assert len(marks(copy)) > 50
