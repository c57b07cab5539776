"""The sm_90 kernel against the float64 specification: shapes, layouts, ragged tiles, lists, poison, replay."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

from lightint_compile.kernels import reference
from lightint_compile.kernels.skipped import Means, joined
from lightint_compile.kernels.spans import Spans, split_spans
from lightint_compile.kernels.tiles import Layout, key_token_map, parents

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def hopper():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a device of compute capability 9.0")
    module = importlib.import_module("lightint_compile.kernels.hopper")
    if obstacle := module.supported(torch.empty(1, 1, 1, 128, device="cuda", dtype=torch.bfloat16), (4, 8, 4)):
        pytest.skip(obstacle)
    return module


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention site with random tensors and lists."""

    frames: tuple[int, int] = (5, 4)
    height: int = 13
    width: int = 11
    prefix: int = 150
    tile: tuple[int, int, int] = (4, 8, 4)
    head_dim: int = 128
    batch: int = 1
    heads: int = 2
    key_heads: int = 2
    dtype: torch.dtype = torch.bfloat16
    token_major: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.frames, self.height, self.width, self.tile, self.prefix)

    def tokens(self, count: int, heads: int) -> torch.Tensor:
        shape = (self.batch, count, heads, self.head_dim) if self.token_major else (
            self.batch, heads, count, self.head_dim)  # fmt: skip
        tensor = torch.randn(shape, device="cuda", dtype=torch.float32).to(self.dtype)
        return tensor.transpose(1, 2) if self.token_major else tensor

    def tensors(self) -> tuple[torch.Tensor, Spans, Spans]:
        torch.manual_seed(0)
        layout = self.layout
        counts = (layout.prefix, layout.context_tokens, layout.current_tokens)
        keys, values = (Spans(*(self.tokens(n, self.key_heads) for n in counts)) for _ in range(2))
        return 2 * self.tokens(layout.current_tokens, self.heads), keys, values

    def lists(self, counts: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Random ascending lists; counts cycle through 0, 1, 2, an odd number and all unless given."""
        rows = (self.batch, self.heads, self.layout.query_tiles)
        blocks = self.layout.key_blocks
        if counts is None:
            choices = torch.tensor([0, 1, 2, min(5, blocks), blocks], dtype=torch.int32)
            counts = choices[torch.arange(torch.Size(rows).numel()) % 5].view(rows)
        shuffled = torch.rand(*rows, blocks).argsort(-1)
        places = torch.where(torch.arange(blocks) < counts[..., None], shuffled, blocks)
        index = places.sort(-1).values.clamp(max=blocks - 1)
        return index.to("cuda", torch.int32), counts.to("cuda", torch.int32)


def expected(query, keys, values, index, count, layout, scale) -> torch.Tensor:
    double = [Spans(*(s.double() for s in spans)) for spans in (keys, values)]
    return reference.attend(query.double(), *double, index, count, layout, scale)


def same_dtype(query, keys, values, index, count, layout, scale, means=None) -> torch.Tensor:
    """Dense torch attention of the same dtype under the expanded mask; its error is the yardstick."""
    mask = reference.token_weights(index, count, layout) > 0
    groups = query.shape[1] // keys.current.shape[1]
    stand_ins = [[], []] if means is None else [[means.key], [means.value]]
    key, value = (
        torch.cat([*spans, *more], 2).repeat_interleave(groups, 1)
        for spans, more in zip((keys, values), stand_ins, strict=True)
    )
    if means is not None:
        offsets = reference.by_query(means.offsets, layout)
        mask = torch.cat([torch.zeros_like(mask, dtype=offsets.dtype).masked_fill(~mask, float("-inf")), offsets], -1)
        mask = mask.to(query.dtype)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale).nan_to_num()


def assert_as_good_as_torch(out, ref, yardstick) -> None:
    assert out.isfinite().all()
    rounding = torch.finfo(out.dtype).eps / 2 * ref.abs().max()
    assert (out.double() - ref).abs().max() <= 2 * (yardstick.double() - ref).abs().max() + rounding
    assert (out.double() - ref).norm() <= 2 * (yardstick.double() - ref).norm() + 1e-5 * ref.norm()


CASES = {
    "ragged": Case(),
    "token_major": Case(token_major=True),
    "half": Case(dtype=torch.float16),
    "grouped_heads": Case(heads=4, key_heads=2),
    "batch": Case(batch=2, token_major=True, heads=4, key_heads=2),
    "batch_head_major": Case(batch=2),
    "no_prefix": Case(prefix=0),
    "prefix_of_whole_blocks": Case(prefix=256),
    "no_context": Case(frames=(0, 7)),
    "whole_tiles": Case(frames=(8, 4), height=16, width=8, prefix=128),
    "tile_448": Case(tile=(4, 4, 8)),
    "tile_288": Case(tile=(2, 8, 8), frames=(3, 5)),
    "tile_882": Case(tile=(8, 8, 2)),
    "smaller_than_a_tile": Case(frames=(1, 2), height=3, width=3, prefix=5),
    "dim_64": Case(head_dim=64),
    "dim_64_token_major": Case(head_dim=64, token_major=True, batch=2),
    "dim_96": Case(head_dim=96, token_major=True, batch=2),
    "one_head": Case(heads=1, key_heads=1, batch=2, token_major=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_specification(hopper, case):
    query, keys, values = case.tensors()
    index, count = case.lists()
    arguments = (index, count, case.layout, case.head_dim**-0.5)
    ref = expected(query, keys, values, *arguments)
    out = hopper.attend(query, keys, values, *arguments)
    assert_as_good_as_torch(out, ref, same_dtype(query, keys, values, *arguments))
    assert case.heads == 1 or out.stride() == query.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("growth", [1.0, 8.0, 60.0], ids=["little", "much", "beyond_the_limit"])
def test_scores_that_outgrow_the_first_block(hopper, growth, dtype):
    """Rows whose later scores exceed the first block's by up to hundreds of powers of two, and rows that do not."""
    case = Case(dtype=dtype, heads=3, key_heads=3)
    query, keys, values = case.tensors()
    query[:, :, ::3] /= 50
    grown = Spans(keys.prefix, keys.context * growth, keys.current * (1 + growth / 4))
    index, count = case.lists(torch.full((1, 3, case.layout.query_tiles), 5, dtype=torch.int32))
    arguments = (index, count, case.layout, case.head_dim**-0.5)
    ref = expected(query, grown, values, *arguments)
    out = hopper.attend(query, grown, values, *arguments)
    assert_as_good_as_torch(out, ref, same_dtype(query, grown, values, *arguments))


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_means_of_skipped_blocks_join_the_softmax(hopper, case, parts):
    query, keys, values = case.tensors()
    rows = (case.batch, case.heads, case.layout.query_tiles)
    counts = torch.randint(1, min(3, case.layout.key_blocks) + 1, rows, dtype=torch.int32)
    arguments = (*case.lists(counts), case.layout, case.head_dim**-0.5)
    means = means_of(keys, values, *arguments[:3], parts)
    wide = Means(means.key.double(), means.value.double(), means.offsets.double())
    double = [Spans(*(s.double() for s in spans)) for spans in (keys, values)]
    ref = reference.attend(query.double(), *double, *arguments, wide)
    out = hopper.attend(query, keys, values, *arguments, means)
    assert_as_good_as_torch(out, ref, same_dtype(query, keys, values, *arguments, means))
    assert (out.double() - ref).norm() < 6e-3 * ref.norm()
    if case.layout.key_blocks > 3:
        assert (ref - expected(query, keys, values, *arguments)).norm() > 0.05 * ref.norm()


def means_of(keys, values, index, count, layout, parts) -> Means:
    """Means of the parts of all blocks, those of listed blocks left out by their offsets."""
    finer = layout.finer(parts)
    grids = [(1, layout.context_grid)] * bool(layout.frames[0]) + [(2, layout.current_grid)]
    pools = (reference.pool_spans([(spans[i], grid) for i, grid in grids], finer.tile) for spans in (keys, values))
    key, value = (joined(pool, keys.current.dtype) for pool in pools)
    listed = reference.multiplicity(index, count, layout)[..., parents(layout, finer).to(index.device)] > 0
    tokens = key_token_map(finer)[1].sum(-1).to(key.device, torch.float32).log()
    return Means(key, value, torch.where(listed, float("-inf"), tokens).contiguous())


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales_that_are_not_positive(hopper, scale):
    case = Case()
    query, keys, values = case.tensors()
    arguments = (*case.lists(), case.layout, scale)
    ref = expected(query, keys, values, *arguments)
    assert (hopper.attend(query, keys, values, *arguments).double() - ref).norm() / ref.norm() < 6e-3


def test_everything_kept_is_dense_attention(hopper):
    case = Case(heads=3, key_heads=3)
    query, keys, values = case.tensors()
    index, count = case.lists(torch.full((1, 3, case.layout.query_tiles), case.layout.key_blocks, dtype=torch.int32))
    dense = torch.nn.functional.scaled_dot_product_attention
    key, value = torch.cat(list(keys), 2), torch.cat(list(values), 2)
    ref = dense(query.double(), key.double(), value.double())
    assert_as_good_as_torch(
        hopper.attend(query, keys, values, index, count, case.layout, case.head_dim**-0.5), ref,
        dense(query, key, value),
    )  # fmt: skip


def test_empty_rows_without_prefix_are_zero(hopper):
    case = Case(prefix=0)
    query, keys, values = case.tensors()
    index, count = case.lists(torch.zeros(1, 2, case.layout.query_tiles, dtype=torch.int32))
    out = hopper.attend(query, keys, values, index, count, case.layout, 1.0)
    assert (out == 0).all()


def test_a_block_listed_twice_weighs_twice(hopper):
    case = Case(prefix=70)
    query, keys, values = case.tensors()
    index, count = case.lists(torch.full((1, 2, case.layout.query_tiles), 4, dtype=torch.int32))
    index[..., 3] = index[..., 0]
    arguments = (index, count, case.layout, case.head_dim**-0.5)
    ref = expected(query, keys, values, *arguments)
    assert (hopper.attend(query, keys, values, *arguments).double() - ref).norm() / ref.norm() < 6e-3


def test_one_tensor_cut_in_views_equals_segments(hopper):
    case = Case(token_major=True)
    query, keys, values = case.tensors()
    index, count = case.lists()
    whole = [split_spans([torch.cat(list(spans), 2)], case.layout) for spans in (keys, values)]
    cut = hopper.attend(query, *whole, index, count, case.layout, 0.1)
    assert torch.equal(cut, hopper.attend(query, keys, values, index, count, case.layout, 0.1))


def test_packed_projection_and_broadcast_prefix(hopper):
    case = Case(batch=2, token_major=True, frames=(0, 4))
    query, keys, values = case.tensors()
    index, count = case.lists()
    prefix = [spans.prefix[:1].expand(2, -1, -1, -1) for spans in (keys, values)]
    packed = torch.cat([t.transpose(1, 2) for t in (query, keys.current, values.current)], 2)
    q, k, v = (t.transpose(1, 2) for t in packed.split(2, 2))
    arguments = (index, count, case.layout, 0.1)
    plain = [Spans(p.contiguous(), s.context, s.current) for p, s in zip(prefix, (keys, values), strict=True)]
    views = [Spans(p, s.context, t) for p, s, t in zip(prefix, (keys, values), (k, v), strict=True)]
    assert torch.equal(hopper.attend(q, *views, *arguments), hopper.attend(query, *plain, *arguments))


def test_memory_around_the_tensors_is_never_read(hopper):
    """Rows before and behind each segment and blocks that nobody lists are NaN; padded slots would read them."""
    case = Case()
    query, keys, values = case.tensors()
    index, count = case.lists(torch.full((1, 2, case.layout.query_tiles), 3, dtype=torch.int32))
    arguments = (index, count, case.layout, case.head_dim**-0.5)
    ref = expected(query, keys, values, *arguments)

    def surrounded(tokens: torch.Tensor) -> torch.Tensor:
        guard = torch.full((1, 2, tokens.shape[2] + 600, 128), float("nan"), device="cuda", dtype=tokens.dtype)
        guard[:, :, 300 : 300 + tokens.shape[2]] = tokens
        return guard[:, :, 300 : 300 + tokens.shape[2]]

    used = (reference.token_weights(index, count, case.layout) > 0).any(2)[..., None]
    poisoned = [
        split_spans([torch.cat(list(spans), 2).masked_fill(~used, float("nan"))], case.layout)
        for spans in (keys, values)
    ]
    guarded = [Spans(*(surrounded(s) for s in spans)) for spans in poisoned]
    out = hopper.attend(surrounded(query), *guarded, *arguments)
    assert_as_good_as_torch(out, ref, same_dtype(query, keys, values, *arguments))


def test_repeats_are_bitwise_equal(hopper):
    case = Case(frames=(8, 8), height=20, width=20, heads=8, key_heads=8)
    query, keys, values = case.tensors()
    index, count = case.lists()
    first = hopper.attend(query, keys, values, index, count, case.layout, 0.1)
    for _ in range(50):
        assert torch.equal(first, hopper.attend(query, keys, values, index, count, case.layout, 0.1))


def test_a_captured_graph_follows_changed_lists_and_counts(hopper):
    case = Case()
    query, keys, values = case.tensors()
    index, count = case.lists()
    hopper.attend(query, keys, values, index, count, case.layout, 0.1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = hopper.attend(query, keys, values, index, count, case.layout, 0.1)
    for kept in (0, 1, case.layout.key_blocks):
        fresh = case.lists(torch.full((1, 2, case.layout.query_tiles), kept, dtype=torch.int32))
        index.copy_(fresh[0])
        count.copy_(fresh[1])
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, hopper.attend(query, keys, values, *fresh, case.layout, 0.1))


def test_offsets_beyond_32_bits(hopper):
    case = Case(frames=(4, 4))
    query, keys, values = case.tensors()
    index, count = case.lists()
    ordinary = hopper.attend(query, keys, values, index, count, case.layout, 0.1)
    far = torch.empty(2**31 + 2**20, device="cuda", dtype=torch.bfloat16)
    shape = keys.current.shape
    spread = far.as_strided(shape, (far.numel(), 2**31, 128, 1))
    spread.copy_(keys.current)
    distant = Spans(keys.prefix, keys.context, spread)
    assert torch.equal(ordinary, hopper.attend(query, distant, values, index, count, case.layout, 0.1))
