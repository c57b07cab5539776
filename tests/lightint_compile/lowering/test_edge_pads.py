"""Padding that repeats the edges, as a gather: equal to the last bit, in the memory order of the padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.fx as fx
from hypothesis import given, settings
from hypothesis import strategies as st
from region_graphs import one_node, region, strides, targets
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile import capture
from lightint_compile.lowering import region as lowering
from lightint_compile.lowering.cuda_forms import spelled
from lightint_compile.lowering.region_sizes import fresh_inputs

aten = torch.ops.aten

LAYOUTS = {4: (torch.contiguous_format, torch.channels_last), 5: (torch.contiguous_format, torch.channels_last_3d)}


def padded(x: Tensor, *pads: Any) -> fx.GraphModule:
    """A graph of one padding of ``x``."""
    return one_node(aten.pad.default, lambda nodes: (nodes[0], *pads), x)


@st.composite
def paddings(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    """A tensor, and by how much each of its last one, two or three axes is padded; less than nothing crops."""
    axes = draw(st.integers(1, 3))
    dims = axes + draw(st.integers(1, 2))
    shape = draw(st.lists(st.integers(3, 6), min_size=dims, max_size=dims))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    x = x.to(memory_format=draw(st.sampled_from(LAYOUTS.get(dims, (torch.contiguous_format,)))))
    return x, draw(st.lists(st.integers(-1, 3), min_size=2 * axes, max_size=2 * axes))


@settings(max_examples=120)
@given(paddings())
def test_a_gather_is_the_padding(drawn: tuple[Tensor, list[int]]) -> None:
    x, pads = drawn
    before = padded(x, pads, "replicate")
    after = spelled(before).graph_module
    assert (aten._unsafe_index.Tensor in targets(after)) is any(pads)
    (expected,), (got,) = before(x), after(x)
    (recorded,) = (node.meta["val"] for node in before.graph.find_nodes(op="call_function", target=aten.pad.default))
    assert torch.equal(got, expected) and strides(got) == strides(recorded)


@pytest.mark.parametrize(
    "pads",
    [
        ([1, 1, 1, 1], "reflect"),
        ([1, 1, 1, 1], "circular"),
        ([1, 1, 1, 1], "constant", 0.0),
        ([1, 1, 1, 1],),
        ([0, 0, 0, 0], "replicate"),
    ],
)
def test_other_padding_stays(pads: tuple[Any, ...]) -> None:
    assert aten.pad.default in targets(spelled(padded(torch.randn(1, 3, 5, 5), *pads)).graph_module)


def test_the_operators_of_each_rank_are_known() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    cases = [(x[0, 0], aten.replication_pad1d, 2), (x[0], aten.replication_pad2d, 4), (x, aten.replication_pad3d, 6)]
    for each, operator, sides in cases:
        before = one_node(operator.default, lambda nodes, sides=sides: (nodes[0], list(range(1, sides + 1))), each)
        after = spelled(before).graph_module
        assert operator.default not in targets(after)
        assert torch.equal(after(each)[0], before(each)[0])


class CausalConv(nn.Module):
    """Norm, activation, kept frames in front, edges repeated, a convolution: a step of a causal video decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 6, 3)

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        x = F.silu(F.normalize(x, dim=1))
        seen = torch.cat([F.pad(each, (1, 1, 1, 1, 0, 0), mode="replicate") for each in (earlier, x)], 2)
        return self.conv(seen.contiguous(memory_format=torch.channels_last_3d))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_convolution_of_any_number_of_frames_and_any_width_is_compiled_as_it_is(
    dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    module = CausalConv().to(dtype).eval()

    def inputs(frames: int, width: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(1, 4, frames, 5, width, dtype=dtype).to(memory_format=torch.channels_last_3d)
        return x, torch.randn(1, 4, 2, 5, width, dtype=dtype)

    with torch.no_grad():
        program = capture.trace(module, inputs(4, 6), dynamic={"x": (2, 4), "earlier": 4})
        after = spelled(program.graph_module).graph_module
        assert aten.pad.default not in targets(after)
        values = [node.meta["val"] for node in after.graph.find_nodes(op="placeholder")]
        variant = lowering.inductor_compiler({})(after, fresh_inputs(values))
        for frames, width in ((4, 6), (7, 9)):
            x, earlier = inputs(frames, width)
            (got,) = variant((frames, width, x, earlier, *module.conv.parameters()))
            exact = copy.deepcopy(module).double()(x.double(), earlier.double())
            assert (got.double() - exact).norm() < tolerance * exact.norm()


def test_a_view_behind_it_still_holds() -> None:
    def flattened(x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="replicate").view(2, -1)

    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).contiguous()
    after = spelled(region(flattened, x)).graph_module
    assert torch.equal(after(x), flattened(x))


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_on_a_gpu_a_decoders_step_is_what_it_is_in_float64(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    module = CausalConv().to("cuda", torch.bfloat16).eval()
    x, earlier = torch.randn(1, 4, 7, 9, 10, device="cuda"), torch.randn(1, 4, 2, 9, 10, device="cuda")
    given_here = [each.bfloat16().to(memory_format=memory_format) for each in (x, earlier)]
    with torch.no_grad():
        got = torch.compile(module, backend="lightint", options={"preset": "exact"})(*given_here)
        exact = copy.deepcopy(module).double()(*(each.double() for each in given_here))
    assert (got.double() - exact).norm() < 1e-2 * exact.norm()
