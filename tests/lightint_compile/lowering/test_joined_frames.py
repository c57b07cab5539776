"""Padding by edges, joining and storing with channels last are one copy: which are, and equal to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_graphs import region, strides, targets
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile import capture
from lightint_compile.integrations.video_decoder.parts import CausalConv
from lightint_compile.integrations.video_decoder.tape import Tape
from lightint_compile.lowering import region as lowering
from lightint_compile.lowering.cuda_forms import spelled
from lightint_compile.lowering.region_sizes import fresh_inputs

OURS = torch.ops.lightint.joined_frames.default
LAST = torch.channels_last_3d
EDGES = (1, 1, 1, 1, 0, 0)


def frames(count: int, size: tuple[int, int] = (4, 5), dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return torch.randn(1, 8, count, *size, generator=draw).to(dtype).to(memory_format=LAST)


def one_copy(function: Callable[..., Tensor], *parts: Tensor) -> bool:
    """Whether a function joins its parts in one copy, with the same result and memory order."""
    before = region(function, *parts)
    after = spelled(before).graph_module
    expected, got = before(*parts), after(*parts)
    assert torch.equal(got, expected) and strides(got) == strides(expected)
    return OURS in targets(after)


def pad(part: Tensor, pads: tuple[int, ...] = EDGES, mode: str = "replicate") -> Tensor:
    return F.pad(part, pads, mode=mode)


def stored(*parts: Tensor, axis: int = 2) -> Tensor:
    return torch.cat(parts, axis).clone(memory_format=LAST)


def test_frames_and_those_before_them() -> None:
    assert one_copy(lambda a, b: stored(pad(a), pad(b)), frames(2), frames(3))
    assert one_copy(lambda a, b: stored(pad(a), pad(b), axis=-3), frames(2), frames(3))
    assert one_copy(lambda a: stored(pad(a)), frames(3))
    assert one_copy(lambda a, b: stored(a, pad(b)), frames(2, (6, 7)), frames(3))
    assert one_copy(lambda a, b: stored(a.contiguous(), pad(b)), frames(2, (6, 7)), frames(9))
    assert one_copy(lambda a: stored(pad(a[:, :, :1].expand(-1, -1, 2, -1, -1)), pad(a)), frames(3))
    assert one_copy(lambda a, b: stored(pad(a, (2, 0, 1, 1, 0, 3)), pad(b, (1, 1, 0, 2, 0, 0))), frames(2), frames(3))
    assert one_copy(
        lambda a, b: stored(pad(a), pad(b)), frames(2, dtype=torch.bfloat16), frames(3, dtype=torch.bfloat16)
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: stored(a, b),
        lambda a, b: stored(pad(a, mode="constant"), pad(b, mode="constant")),
        lambda a, b: stored(pad(a, mode="reflect"), pad(b, mode="reflect")),
        lambda a, b: torch.cat([pad(a), pad(b)], 2).clone(memory_format=torch.contiguous_format),
        lambda a, b: stored(pad(a), pad(b[:, :, :2]), axis=1),
        lambda a, b: stored(pad(a, (-1, 1, 1, 1, 0, 0)), pad(b, (-1, 1, 1, 1, 0, 0))),
        lambda a, b: stored(pad(a.double()), pad(b.double())),
        lambda a, b: stored(pad(a.double()), pad(b)),
        lambda a, b: stored(pad(a), a.new_empty(0), pad(b)),
        lambda a, b: stored(pad(a.contiguous()), pad(b.contiguous())),
    ],
    ids=[
        "no edge",
        "zeros",
        "reflected",
        "another memory order",
        "channels",
        "cropped",
        "float64",
        "two dtypes",
        "a part without axes",
        "channels apart",
    ],
)
def test_one_edit_away_it_stays(function: Callable[..., Tensor]) -> None:
    assert not one_copy(function, frames(2), frames(3))


def test_what_others_read_stays() -> None:
    def padded_twice(a: Tensor, b: Tensor) -> Tensor:
        wide = pad(b)
        return stored(pad(a), wide) + wide[:, :, :1].clone(memory_format=LAST)

    def joined_twice(a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([pad(a), pad(b)], 2)
        return both.clone(memory_format=LAST) + both[:, :, :1]

    assert not one_copy(padded_twice, frames(2), frames(3))
    assert not one_copy(joined_twice, frames(2), frames(3))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.booleans(),
)
def test_any_parts_and_pads(counts: list[int], pads: list[int], last: bool) -> None:
    parts = [frames(count) if last else frames(count).contiguous() for count in counts]
    found = one_copy(lambda *each: stored(*(pad(part, tuple(pads)) for part in each)), *parts)
    assert found is (last and any(pads))


class Step(nn.Module):
    """A step of a causal decoder as a streaming decoder has it: norm, activation, convolution."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.tape = Tape()
        self.conv = CausalConv(nn.Conv3d(8, 8, 3), (1, 1), "replicate", "kept", self.tape).to(dtype)
        self.conv.memory_format = LAST

    def forward(self, x: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution, and what is kept for the next chunk."""
        self.tape.start({"kept": earlier})
        made = self.conv(F.silu(F.normalize(x, dim=1)))
        return made, self.tape.finish()["kept"]


def exact(module: Step, x: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = copy.deepcopy(module).double()(x.double(), earlier.double())
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_step_of_any_number_of_frames_is_compiled(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    module = Step(dtype)
    with torch.no_grad():
        program = capture.trace(module, (frames(4, dtype=dtype), frames(2, dtype=dtype)), dynamic={"x": (2,)})
        assert OURS in targets(spelled(program.graph_module).graph_module)
        after = spelled(program.graph_module).graph_module
        values = [node.meta["val"] for node in after.graph.find_nodes(op="placeholder")]
        variant = lowering.inductor_compiler({})(after, fresh_inputs(values))
        for count in (4, 7):
            x, earlier = frames(count, dtype=dtype), frames(2, dtype=dtype)
            given_here = (count, x, *module.parameters(), earlier)
            for got, wanted in zip(variant(given_here), exact(module, x, earlier), strict=True):
                assert (got.double() - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.gpu
def test_on_a_gpu_a_step_is_what_it_is_in_float64() -> None:
    torch.manual_seed(0)
    module = Step(torch.bfloat16).cuda()
    x, earlier = (frames(count, (40, 50), torch.bfloat16).cuda() for count in (4, 2))
    with torch.no_grad():
        program = capture.trace(module, (x, earlier))
        given_here = (x, *module.parameters(), earlier)
        variant = lowering.inductor_compiler({})(program.graph_module, fresh_inputs(given_here))
        with torch.profiler.profile() as seen:
            found = variant(given_here)
        assert "edge_rows_kernel" in {each.key for each in seen.key_averages()}
        for got, wanted in zip(found, exact(module, x, earlier), strict=True):
            assert (got.double() - wanted).norm() < 1e-2 * wanted.norm()
