"""FLOPs and bytes of nodes: against torch's own counter, against the published table, with symbolic sizes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from differential import trace, trace_function
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightint_compile import capture
from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs
from lightint_compile.passes.ir.flops import bytes_of, flops_expression, flops_of, kind_of, program_flops
from lightint_compile.passes.ir.remarks import module_path_of

CASES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "linear": (lambda x, w: F.linear(x, w), ((2, 3, 8), (16, 8))),
    "linear with bias": (lambda x, w, b: F.linear(x, w, b), ((2, 3, 8), (16, 8), (16,))),
    "matmul": (lambda x, y: x @ y, ((2, 1, 3, 8), (5, 8, 4))),
    "vector": (lambda x, y: x @ y, ((3, 8), (8,))),
    "mm": (torch.mm, ((3, 8), (8, 5))),
    "bmm": (torch.bmm, ((2, 3, 8), (2, 8, 5))),
    "addmm": (torch.addmm, ((3, 5), (3, 8), (8, 5))),
    "einsum": (lambda x, y: torch.einsum("bnij,bhngj->bhngi", x, y), ((2, 3, 4, 4), (2, 5, 3, 6, 4))),
    "conv1d": (lambda x, w: F.conv1d(x, w, groups=2), ((2, 4, 10), (6, 2, 3))),
    "conv2d": (lambda x, w: F.conv2d(x, w, stride=2), ((1, 4, 9, 9), (8, 4, 3, 3))),
    "conv3d": (lambda x, w: F.conv3d(x, w, padding=1), ((1, 4, 4, 6, 6), (8, 4, 3, 3, 3))),
    "attention": (F.scaled_dot_product_attention, ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8))),
}


#: What torch's counter does not know: a product with a vector, and attention on the CPU.
UNKNOWN_TO_TORCH = {"vector": 2 * 3 * 8, "attention": 2 * 2 * 3 * 5 * 7 * (8 + 8)}


@pytest.mark.parametrize("name", CASES)
def test_against_torchs_counter(name: str) -> None:
    call, shapes = CASES[name]
    inputs = [torch.randn(shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter:
        call(*inputs)
    wrapped = (lambda a, b: call(a, b)) if len(inputs) == 2 else (lambda a, b, c: call(a, b, c))
    program = trace_function(wrapped, dict(zip("abc", inputs, strict=False)))
    assert program_flops(program)["total"] == (counter.get_total_flops() or UNKNOWN_TO_TORCH[name])


def test_symbolic_sizes_count_at_their_hint_and_print_as_expressions() -> None:
    program = trace(lambda x, w: F.linear(x, w), {"x": torch.randn(6, 8), "w": torch.randn(4, 8)}, dynamic={"x": 0})
    (linear,) = program.calls(torch.ops.aten.linear.default)
    assert flops_of(linear) == 2 * 6 * 8 * 4
    (symbol,) = flops_expression(linear).free_symbols
    assert flops_expression(linear).subs(symbol, 10) == 2 * 10 * 8 * 4


def test_bytes_of_a_node_and_of_a_view() -> None:
    program = trace_function(lambda x: x.t() + 1, {"x": torch.randn(6, 8)})
    add, view = (next(program.calls(t)) for t in (torch.ops.aten.add.Tensor, torch.ops.aten.t.default))
    assert (bytes_of(add), bytes_of(view), kind_of(add)) == (2 * 6 * 8 * 4, 0, None)


def test_the_published_table_of_the_8b_model() -> None:
    """480p with 20 context frames and 850 text tokens, scaled up from two blocks on the meta device, in 1e12 FLOPs."""
    config = dataclasses.replace(WorldPlayConfig.hy_8b_480p(), depth=2, steps=1)
    with torch.device("meta"):
        module = WorldPlayChunk(config).to(torch.bfloat16).eval()
    arguments, _ = example_inputs(config, 40, device="meta", dtype=torch.bfloat16, text_tokens=119)
    with torch.no_grad():
        program = capture.trace(module, arguments)
    found: Counter[tuple[str, int]] = Counter()
    for node in program.calls(torch.ops.aten.linear.default, torch.ops.aten.scaled_dot_product_attention.default):
        path, tokens = module_path_of(node), int(node.args[0].meta["val"].shape[-2])
        if "double_blocks" in path and "txt" not in path:
            found["modulation" if "img_mod" in path else str(kind_of(node)), tokens] += flops_of(node)
    prefill, step = 20 * 1560, 4 * 1560
    table = {
        ("linear", prefill): 183.7,
        ("modulation", prefill): 84.8,
        ("attention", prefill): 884.7,
        ("linear", step): 36.7,
        ("modulation", step): 17.0,
        ("attention", step): 211.4,
    }
    for key, published in table.items():
        assert found[key] / 1e12 * 54 / config.depth == pytest.approx(published, rel=0.01), key
