"""The operators as graphs see them: schemas, fakes, symbolic sizes, errors before any launch."""

import pytest
import torch
from attention_cases import SITES, Site, random_lists

from lightint_compile import kernels
from lightint_compile.errors import InputError, OptionError
from lightint_compile.kernels import checks, ops

OPS = getattr(torch.ops, ops.NAMESPACE)
PUBLISHED_SCHEMAS = {
    "sparse_attention": "lightint::sparse_attention(Tensor query, Tensor key, Tensor value, SymInt[] query_grid, "
    "SymInt[] key_grid, SymInt prefix, int[] tile, float density, float? coverage, int protect_frames, "
    "int neighbours, float? scale, float? context_density=None, int skipped_means=0, int? min_tokens=None) -> Tensor",
    "sparse_attention_segments": "lightint::sparse_attention_segments(Tensor query, Tensor[] keys, Tensor[] values, "
    "SymInt[] query_grid, SymInt[] key_grid, SymInt prefix, int[] tile, float density, float? coverage, "
    "int protect_frames, int neighbours, float? scale, float? context_density=None, int skipped_means=0, "
    "int? min_tokens=None) -> Tensor",
    "sparse_attention_prepared": "lightint::sparse_attention_prepared(Tensor query, Tensor[] keys, Tensor[] values, "
    "Tensor context_pool, SymInt[] query_grid, SymInt[] key_grid, SymInt prefix, int[] tile, float density, "
    "float? coverage, int protect_frames, int neighbours, float? scale, float? context_density=None, "
    "int skipped_means=0, Tensor? context_key_means=None, Tensor? context_value_means=None, "
    "int? min_tokens=None) -> Tensor",
}


def arguments(site, operator, dtype=torch.float32):
    query, key, value = site.tensors(dtype)
    where = (site.query_grid, site.key_grid, site.prefix, site.tile)
    policy, more = (0.5, 0.9, 1, 1), (0.25, 2)
    cut = [max(site.prefix, 1), site.layout.key_tokens - max(site.prefix, 1)]
    parts = list(key.split(cut, 2)), list(value.split(cut, 2))
    if operator == "sparse_attention_prepared":
        keys, values, *pools = context_segments(site, key, value)
        return (query, keys, values, pools[0], *where, *policy, None, *more, *pools[1:], 0)
    lists = random_lists(site, "mixed")
    visual = key[:, :, site.prefix :]
    pools = [
        kernels.pool_tiles(query, grid=site.query_grid, tile=site.tile),
        [kernels.pool_tiles(visual, grid=site.key_grid, tile=site.tile)],
    ]
    return {
        "sparse_attention": (query, key, value, *where, *policy, None, *more, 0),
        "sparse_attention_segments": (query, *parts, *where, *policy, None, *more, 0),
        "pool_tiles": (query, site.query_grid, site.tile),
        "select_blocks": (*pools, site.query_grid, site.key_grid, site.tile, *policy, None, 0.25),
        "block_sparse_attention": (query, key, value, *lists, *where, None),
        "block_sparse_attention_segments": (query, *parts, *lists, *where, None),
    }[operator]


def context_segments(site, key, value):
    """Keys and values cut into text, context and current frames, the pooled context keys, and both by halves."""
    layout = site.layout
    cut = [n for n in (layout.prefix, layout.context_tokens, layout.current_tokens) if n]
    keys, values = list(key.split(cut, 2)), list(value.split(cut, 2))
    half = kernels.part_tile(site.tile, 2)
    pools = (
        kernels.prepare_context(part[-2], grid=layout.context_grid, tile=tile)
        for part, tile in ((keys, site.tile), (keys, half), (values, half))
    )
    return keys, values, *pools


@pytest.mark.parametrize("operator", PUBLISHED_SCHEMAS)
def test_schema_is_what_graphs_and_archives_hold(operator):
    assert str(getattr(OPS, operator).default._schema) == PUBLISHED_SCHEMAS[operator]


@pytest.mark.parametrize(
    "operator",
    [
        "sparse_attention",
        "sparse_attention_segments",
        "sparse_attention_prepared",
        "pool_tiles",
        "select_blocks",
        "block_sparse_attention",
        "block_sparse_attention_segments",
    ],
)
def test_opcheck(operator):
    frames = 4 if operator == "sparse_attention_prepared" else 2
    site = Site((2, 4, 6), (frames, 4, 6), (2, 4, 4), prefix=3, heads=4, key_heads=2, head_dim=16)
    with kernels.using("gather"):
        torch.library.opcheck(getattr(OPS, operator).default, arguments(site, operator))


def test_prepared_attention_takes_its_defaults():
    site = Site((2, 4, 6), (4, 4, 6), (2, 4, 4), prefix=3)
    given = arguments(site, "sparse_attention_prepared")
    query, keys, values, pool, *settings = given[:12]
    with kernels.using("gather"):
        attend = OPS.sparse_attention_prepared.default
        left_out = attend(query, keys, values, pool, *settings, None)
        torch.testing.assert_close(left_out, attend(query, keys, values, pool, *settings, None, None, 0))
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = torch.utils._pytree.tree_map(mode.from_tensor, (query, keys, values, pool))
            assert attend(*fakes, *settings, None).stride() == left_out.stride()


@pytest.mark.parametrize("implementation", ["dense", "reference", "gather"])
@pytest.mark.parametrize("layout", ["contiguous", "tokens-first", "sliced", "expanded"])
def test_memory_order_follows_the_query_and_the_fake_agrees(implementation, layout):
    site = SITES["ragged"]
    query, key, value = site.tensors(torch.float32)
    if layout == "tokens-first":
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "sliced":
        query = torch.cat([query, query], -1).transpose(1, 2).contiguous().transpose(1, 2)[..., : site.head_dim]
    elif layout == "expanded":
        query = query[:, :1].expand(query.shape)
    with kernels.using(implementation):
        real = kernels.sparse_attention(query, key, value, **site.grids)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(part) for part in (query, key, value)]
        fake = kernels.sparse_attention(*fakes, **site.grids)
    assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)
    dense_order = real if layout == "contiguous" else real.transpose(1, 2)
    assert dense_order.is_contiguous()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_serves_every_context_length(backend):
    site = SITES["ragged"]

    def attend(query, key, value):
        frames = key.shape[2] // 35
        return kernels.sparse_attention(
            query, key, value, query_grid=site.query_grid, key_grid=(frames, 5, 7), tile=site.tile
        )

    torch._dynamo.reset()
    compiled = torch.compile(attend, backend=backend, dynamic=True, fullgraph=True)
    query, key, value = site.tensors(torch.float32)
    for frames in (5, 6, 8):
        parts = key[:, :, : frames * 35], value[:, :, : frames * 35]
        stance = "default" if frames == 5 else "fail_on_recompile"
        with kernels.using("gather"), torch.compiler.set_stance(stance):
            torch.testing.assert_close(compiled(query, *parts), attend(query, *parts))


def test_symbolic_lists_have_the_width_of_real_ones():
    site = SITES["ragged"]
    query, key, _ = site.tensors(torch.float32)

    def lists(query, context):
        frames = context.shape[2] // 35
        pool = kernels.pool_tiles(query, grid=site.query_grid, tile=site.tile)
        context_pool = kernels.prepare_context(context, grid=(frames, 5, 7), tile=site.tile)
        grids = {"query_grid": site.query_grid, "key_grid": (frames + 3, 5, 7), "tile": site.tile}
        return kernels.select_blocks(pool, [context_pool, pool[:, :2]], protect_frames=2, **grids)

    torch._dynamo.reset()
    compiled = torch.compile(lists, backend="aot_eager", dynamic=True, fullgraph=True)
    for frames in (2, 5):
        context = key[:, :, : frames * 35]
        for ours, expected in zip(compiled(query, context), lists(query, context), strict=True):
            assert torch.equal(ours, expected)


GOOD = {"query_grid": (3, 5, 7), "key_grid": (8, 5, 7), "prefix": 5, "tile": (2, 4, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_grid": (4, 5, 7)}, "query length is not that of its grid"),
        ({"prefix": 4}, "key length is not that of its grid"),
        ({"key_grid": (8, 7, 5)}, "last frames of the key grid"),
        ({"query_grid": (9, 5, 7)}, "last frames of the key grid"),
        ({"key_grid": (8, 35)}, "three positive extents"),
        ({"tile": (2, 0, 4)}, "tile does not fit"),
        ({"tile": (64, 64, 64)}, "tile does not fit"),
        ({"density": 0.0}, "kept fraction"),
        ({"density": 1.5}, "kept fraction"),
        ({"coverage": -0.1}, "kept fraction"),
        ({"context_density": 0.0}, "kept fraction"),
        ({"neighbours": -1}, "not negative"),
    ],
)
def test_arguments_that_do_not_fit_are_one_clear_error(change, message):
    query, key, value = SITES["ragged"].tensors(torch.float32)
    with pytest.raises(InputError, match=message):
        kernels.sparse_attention(query, key, value, **{**GOOD, **change})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "batch, heads, tokens, head_dim"),
        (lambda q, k, v: (q.int(), k.int(), v.int()), "unsupported dtype"),
        (lambda q, k, v: (q, k.half(), v), "share dtype and device"),
        (lambda q, k, v: (q, k.to("meta"), v.to("meta")), "share dtype and device"),
        (lambda q, k, v: (q, k, v[:, :, 1:]), "differ in shape"),
        (lambda q, k, v: (q[..., :32], k, v), "share batch and head_dim"),
        (lambda q, k, v: (q[:, :3], k, v), "no multiple of key heads"),
    ],
)
def test_tensors_that_do_not_fit_are_one_clear_error(spoil, message):
    with pytest.raises(InputError, match=message):
        kernels.sparse_attention(*spoil(*SITES["ragged"].tensors(torch.float32)), **GOOD)


def test_lists_that_do_not_fit_are_errors(monkeypatch):
    site = SITES["ragged"]
    tensors = site.tensors(torch.float32)
    index, count = random_lists(site, "two")
    for bad in ((index.long(), count), (index[:, :1], count), (index.transpose(0, 1).contiguous(), count)):
        with pytest.raises(InputError):
            kernels.block_sparse_attention(*tensors, *bad, **site.grids)
    monkeypatch.setattr(checks, "check_index_range", True)
    kernels.block_sparse_attention(*tensors, index, count, **site.grids)
    with pytest.raises(InputError, match="listed block is out of range"):
        kernels.block_sparse_attention(*tensors, index + 1000, count, **site.grids)
    with pytest.raises(InputError, match="count is out of range"):
        kernels.block_sparse_attention(*tensors, index, count + 1000, **site.grids)


def test_gradients_are_refused_not_wrong():
    site = SITES["one-tile"]
    query, key, value = site.tensors(torch.float32)
    result = kernels.sparse_attention(query.requires_grad_(), key, value, **site.grids)
    with pytest.raises(InputError, match="no gradient"):
        result.sum().backward()


def test_unknown_implementation_is_an_error_with_a_hint():
    with pytest.raises(OptionError, match="portable"), kernels.using("portabel"):
        pass
