"""Both doors lead to the normal form: functional, pre-dispatch, tagged inputs, true fake values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.errors import CaptureError, InputError
from lightint_compile.passes.ir.program import InputKind, Program

aten = torch.ops.aten


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.register_buffer("bias", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        out = torch.empty_like(x)
        out[..., ::2] = F.scaled_dot_product_attention(q, k, v)[..., ::2]
        out[..., 1::2] = v[..., 1::2]
        return x + F.dropout(out, 0.1, self.training) + self.bias


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(8), Block(8)])

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        for _ in range(2):
            for block in self.blocks:
                x = block(x)
        return {"out": x * scale}


def _run(program: Program, module: nn.Module, **tensors: Tensor) -> Tensor:
    state = dict(module.named_parameters()) | dict(module.named_buffers()) | tensors
    return program.graph_module(*(state[entry.path] for entry in program.inputs))[0]


@pytest.fixture(scope="module")
def stack() -> Stack:
    torch.manual_seed(0)
    return Stack().eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["dynamo", "export"])
def program(request: pytest.FixtureRequest, stack: Stack) -> Program:
    example = torch.randn(2, 6, 8)
    if request.param == "dynamo":
        return capture.trace(stack, (example,))
    return capture.from_exported(torch.export.export(stack, (example,), strict=False))


def test_both_doors_give_the_same_numbers(program: Program, stack: Stack) -> None:
    x = torch.randn(2, 6, 8)
    torch.testing.assert_close(_run(program, stack, x=x), stack(x)["out"], rtol=0, atol=0)


def test_the_form_is_functional_and_keeps_attention_whole(program: Program) -> None:
    targets = [node.target for node in program.calls()]
    assert targets.count(aten.scaled_dot_product_attention.default) == 4
    assert targets.count(aten.linear.default) == 4
    assert targets.count(aten.layer_norm.default) == 4
    assert aten.dropout.default not in targets
    overloads = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    assert not any(target._schema.is_mutable for target in overloads)


def test_every_node_has_a_true_fake_value(program: Program) -> None:
    from lightint_compile.passes.ir.verify import verify

    verify(program, program.snapshot(), unchanged=())


def test_inputs_are_tagged_and_named_as_the_user_writes_them(program: Program, stack: Stack) -> None:
    kinds = {entry.path: entry.kind for entry in program.inputs}
    assert kinds["blocks.1.qkv.weight"] is InputKind.PARAMETER
    assert kinds["blocks.0.bias"] is InputKind.BUFFER
    assert kinds["x"] is InputKind.TENSOR
    assert set(kinds) == {"x", *dict(stack.named_parameters()), *dict(stack.named_buffers())}


def test_module_paths_tell_calls_of_one_module_apart(program: Program) -> None:
    attentions = program.calls(aten.scaled_dot_product_attention.default)
    paths = [list(node.meta["nn_module_stack"].values())[-1][0] for node in attentions]
    assert paths == ["blocks.0", "blocks.1", "blocks.0@1", "blocks.1@1"]


def test_a_size_marked_dynamic_stays_symbolic(stack: Stack) -> None:
    program = capture.trace(stack, (torch.randn(2, 6, 8),), dynamic={"x": 1})
    symbols = [entry for entry in program.inputs if entry.kind is InputKind.SYMBOL]
    assert len(symbols) == 1
    assert isinstance(program.graph.output_node().args[0][0].meta["val"].shape[1], torch.SymInt)


def test_nothing_is_allocated_on_the_meta_device() -> None:
    with torch.device("meta"):
        huge = nn.Linear(1 << 17, 1 << 17)
        program = capture.trace(huge, (torch.empty(4, 1 << 17),))
    assert [node.target for node in program.calls()] == [aten.linear.default]


def _autocast_inside(x: Tensor, w: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(x, w)
    return torch.softmax(y, -1)


def _for_ambient(x: Tensor, w: Tensor) -> Tensor:
    y = F.layer_norm(F.linear(x, w), (8,))
    return torch.cat([torch.softmax(y @ y.mT, -1), x[:, :2]], 1)


@pytest.mark.parametrize("ambient", [False, True])
def test_autocast_becomes_casts(ambient: bool) -> None:
    function = _for_ambient if ambient else _autocast_inside
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=ambient):
        program = capture.trace(function, (x, w))
        expected = function(x, w)
    got = program.graph_module(x, w)[0]
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_graph_that_writes_to_a_strided_part_of_its_input_is_refused() -> None:
    def write(x: Tensor) -> Tensor:
        x[::2].add_(1)
        return x * 2

    with pytest.raises(CaptureError, match="writes to its inputs"):
        capture.trace(write, (torch.randn(3),))


def test_a_graph_break_is_one_clear_error() -> None:
    def breaks(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(CaptureError, match="does not capture as one graph"):
        capture.trace(breaks, (torch.randn(3),))


def test_a_dynamic_name_that_is_no_tensor_is_named(stack: Stack) -> None:
    with pytest.raises(InputError, match="'y' is not a tensor argument"):
        capture.trace(stack, (torch.randn(2, 6, 8),), dynamic={"y": 0})


def _numbers_set(x: Tensor) -> Tensor:
    """As camera matrices are lifted: numbers are written into places of a new tensor."""
    out = torch.zeros((*x.shape[:-2], 4, 4), dtype=x.dtype)
    out[..., :3, :3], out[..., 3, 3], out[..., 0, 3] = x, 1.0, 1 / 3
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_numbers_that_are_written_are_no_tensors_of_the_host(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 3, 3) * 9).to(dtype)
    program = capture.trace(_numbers_set, (x,))
    fills = [node for node in program.graph.nodes if "fill" in str(node.target)]
    assert len(fills) == 2 and all(isinstance(node.args[1], (int, float)) for node in fills)
    assert not program.graph.find_nodes(op="get_attr")
    (found,) = torch.utils._pytree.tree_leaves(program.graph_module(x))
    torch.testing.assert_close(found, _numbers_set(x), rtol=0, atol=0)


def test_a_tensor_of_the_callers_that_is_written_stays_one() -> None:
    """It may hold another number in the next call."""
    held = torch.tensor(2.0)

    def function(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[0] = held
        return out

    program = capture.trace(function, (torch.randn(3),))
    assert not [node for node in program.graph.nodes if node.target is torch.ops.aten.fill.Scalar]
