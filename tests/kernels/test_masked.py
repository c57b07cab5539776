"""Sparse attention under masks of keys that are data: what they mean, whatever they hold; no host reads them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention_cases import SITES, Site

from lightint_compile import kernels
from lightint_compile.errors import InputError
from lightint_compile.kernels import ops, planning

POLICY = {"density": 0.3, "neighbours": 0, "skipped_means": 2}
NAMES = ("ragged", "prefill")
REAL = Site((4, 30, 52), (8, 30, 52), (4, 8, 4), prefix=200, heads=2, key_heads=1, head_dim=128, batch=2)


def masks_of(site, device="cpu"):
    """Masks that leave text out and no frames, by name."""
    keys, prefix = site.layout.key_tokens, site.prefix
    masks = {name: torch.ones(site.batch, keys, dtype=torch.bool, device=device) for name in ("none", "tail", "holes")}
    masks["tail"][0, prefix // 2 : prefix] = False
    masks["holes"][-1, :prefix:2] = False
    masks["no text"] = masks["none"].clone()
    masks["no text"][:, :prefix] = False
    masks["of text"] = masks["holes"][:, :prefix]
    masks["numbers"] = torch.where(masks["holes"], 0.0, -torch.inf)
    masks["numbers"][0, :prefix] += torch.linspace(-2, 2, prefix, device=device)
    return masks


def cut_frames(site, device="cpu"):
    """A mask that leaves frames out in the last element of the batch."""
    mask = masks_of(site, device)["tail"]
    mask[-1, site.prefix + 1 :: 3] = False
    return mask


def weighted(site, query, key, value, mask):
    """The specification of one element of a batch without bias: text that the mask leaves out is not there at all."""
    keep = torch.ones(site.layout.key_tokens, dtype=torch.bool)
    keep[: site.prefix] = mask[: site.prefix]
    left = replace(site, batch=1, prefix=int(keep[: site.prefix].sum()))
    with kernels.using("reference"):
        return kernels.sparse_attention(query, key[:, :, keep], value[:, :, keep], **POLICY, **left.grids)


@pytest.mark.parametrize("implementation", ["reference", "gather"])
@pytest.mark.parametrize("kind", ["none", "tail", "holes", "no text", "of text"])
@pytest.mark.parametrize("name", NAMES)
def test_text_that_a_mask_leaves_out_is_not_there(name, kind, implementation):
    site = replace(SITES[name], batch=2)
    query, key, value = site.tensors(torch.float64)
    mask = masks_of(site)[kind]
    with kernels.using(implementation):
        ours = kernels.sparse_attention_masked(query, [key], [value], mask, **POLICY, **site.grids)
    for row in range(2):
        alone = [part[row : row + 1] for part in (query, key, value)]
        torch.testing.assert_close(ours[row : row + 1], weighted(site, *alone, mask[row]))


@pytest.mark.parametrize("implementation", ["reference", "gather"])
def test_numbers_are_added_to_the_logits_of_text(implementation):
    site = replace(SITES["ragged"], batch=2)
    query, key, value = site.tensors(torch.float64)
    mask = masks_of(site)["numbers"].double()
    with kernels.using(implementation):
        ours = kernels.sparse_attention_masked(
            query, [key], [value], mask, **(POLICY | {"density": 0.99, "neighbours": 50}), **site.grids
        )
    expected = F.scaled_dot_product_attention(query, key, value, mask[:, None, None], enable_gqa=True)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("implementation", ["reference", "gather"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mask_of_frames_makes_its_element_of_the_batch_dense_and_no_other(dtype, implementation):
    site = replace(SITES["ragged"], batch=2)
    query, key, value = site.tensors(dtype)
    mask = cut_frames(site)
    with kernels.using(implementation):
        ours = kernels.sparse_attention_masked(query, [key], [value], mask, **POLICY, **site.grids)
        sparse = kernels.sparse_attention_masked(query, [key], [value], masks_of(site)["tail"], **POLICY, **site.grids)
    assert torch.equal(ours[0], sparse[0])
    wide = (part.double() for part in (query, key, value))
    expected = F.scaled_dot_product_attention(*wide, mask[:, None, None], enable_gqa=True)
    error = (ours[1].double() - expected[1]).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("implementation", ["reference", "gather"])
def test_a_query_whose_keys_are_all_masked_gives_zeros(implementation):
    site = replace(SITES["ragged"], batch=2)
    query, key, value = site.tensors(torch.float32)
    mask = masks_of(site)["none"]
    mask[1] = False
    with kernels.using(implementation):
        ours = kernels.sparse_attention_masked(query, [key], [value], mask, **POLICY, **site.grids)
    assert not ours[1].any() and ours[0].all()


@pytest.mark.parametrize("heads_first", [True, False])
def test_dense_by_choice_is_what_torch_computes(heads_first):
    site = replace(SITES["ragged"], batch=2)
    query, key, value = site.tensors(torch.float32)
    query = query if heads_first else query.transpose(1, 2).contiguous().transpose(1, 2)
    for kind, mask in masks_of(site).items():
        with kernels.using("dense"):
            ours = kernels.sparse_attention_masked(query, [key], [value], mask, **POLICY, **site.grids)
        if kind == "of text":
            mask = F.pad(mask, (0, site.layout.key_tokens - site.prefix), value=True)
        expected = F.scaled_dot_product_attention(query, key, value, mask[:, None, None], enable_gqa=True)
        torch.testing.assert_close(ours, expected)


def test_a_plan_holds_no_mask():
    """One plan serves calls with other contents of a mask, in turn."""
    site = replace(SITES["ragged"], batch=2)
    query, key, value = site.tensors(torch.float64)
    planning.forget()
    with kernels.using("gather"):
        call = lambda mask: kernels.sparse_attention_masked(query, [key], [value], mask, **POLICY, **site.grids)  # noqa: E731
        masks = [masks_of(site)["tail"], cut_frames(site), masks_of(site)["holes"]]
        seen = [call(mask) for mask in (*masks, *masks)]
        assert len(planning._plans) == 1
    assert all(map(torch.equal, seen[:3], seen[3:]))
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_prepared_context_changes_nothing():
    site = SITES["ragged"]
    layout = site.layout
    query, key, value = site.tensors(torch.float64)
    cut = [layout.prefix, layout.context_tokens, layout.current_tokens]
    keys, values = key.split(cut, 2), value.split(cut, 2)
    half = kernels.part_tile(site.tile, 2)
    pools = [
        kernels.prepare_context(part[1], grid=layout.context_grid, tile=tile)
        for part, tile in ((keys, site.tile), (keys, half), (values, half))
    ]
    mask = masks_of(site)["tail"]
    with kernels.using("gather"):
        given = [
            kernels.sparse_attention_masked(query, keys, values, mask, *pools[:count], **POLICY, **site.grids)
            for count in range(4)
        ]
        whole = kernels.sparse_attention_masked(query, [key], [value], mask, **POLICY, **site.grids)
    for each in given:
        torch.testing.assert_close(each, whole)


@pytest.mark.parametrize("kind", ["tail", "of text", "numbers"])
def test_opcheck(kind):
    site = Site((2, 4, 6), (4, 4, 6), (2, 4, 4), prefix=3, heads=4, key_heads=2, head_dim=16, batch=2)
    query, key, value = site.tensors(torch.float32)
    where = (site.query_grid, site.key_grid, site.prefix, site.tile)
    arguments = (query, [key], [value], masks_of(site)[kind], *where, 0.5, None, 0, 1, None, None, 2, 0)
    with kernels.using("gather"):
        torch.library.opcheck(getattr(torch.ops, ops.NAMESPACE).sparse_attention_masked.default, arguments)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda mask: mask[:, :-1],
        lambda mask: mask[0],
        lambda mask: mask[:, None],
        lambda mask: mask.long(),
        lambda mask: mask.expand(3, -1),
        lambda mask: mask.to("meta"),
    ],
)
def test_masks_that_do_not_fit_are_one_clear_error(spoil):
    site = SITES["ragged"]
    query, key, value = site.tensors(torch.float32)
    mask = torch.ones(1, site.layout.key_tokens, dtype=torch.bool)
    with pytest.raises(InputError, match="mask"):
        kernels.sparse_attention_masked(query, [key], [value], spoil(mask), **POLICY, **site.grids)


def test_an_archive_can_hold_the_steps_of_a_masked_call():
    pytest.importorskip("triton")
    from lightint_compile.kernels.decompositions import portable_table

    site = replace(SITES["ragged"], batch=2)

    class Attention(torch.nn.Module):
        def forward(self, query, key, value, mask):
            return kernels.sparse_attention_masked(query, [key], [value], mask, **POLICY, **site.grids)

    tensors = (*site.tensors(torch.float32), masks_of(site)["tail"])
    lowered = torch.export.export(Attention(), tensors, strict=False).run_decompositions(portable_table())
    steps = [str(node.target) for node in lowered.graph.nodes if "lightint" in str(node.target)]
    names = [step.removeprefix("lightint.portable_").removesuffix(".default") for step in steps]
    assert names == ["pool", "select", "pool", "pool", "attend", "attend_all"]


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["portable", "hopper"])
def on_gpu(request):
    """An implementation that runs here."""
    example = torch.empty(1, 1, 0, 128, dtype=torch.bfloat16, device="cuda")
    if request.param == "hopper" and kernels.implementation(example) != "hopper":
        pytest.skip("the sm_90 kernel does not run here")
    return request.param


def on_cuda(implementation, tensors, mask, **policy):
    query, key, value = tensors
    prefix = REAL.prefix
    segments = ([part[:, :, :prefix], part[:, :, prefix:]] for part in (key, value))
    with kernels.using(implementation):
        return kernels.sparse_attention_masked(query, *segments, mask, **(POLICY | policy), **REAL.grids)


def assert_close_to(ours, exact, yardstick):
    """Within twice the error of a yardstick of the same dtype, and its rounding."""
    exact, eps = exact.double(), torch.finfo(ours.dtype).eps
    allowed = 2 * (yardstick.double() - exact).abs().max() + eps * exact.abs().max()
    assert (ours.double() - exact).abs().max() <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["none", "tail", "holes", "no text", "of text", "numbers", "frames"])
def test_kernels_agree_with_the_specification(on_gpu, kind, dtype):
    tensors = REAL.tensors(dtype, "cuda")
    mask = cut_frames(REAL, "cuda") if kind == "frames" else masks_of(REAL, "cuda")[kind]
    ours = on_cuda(on_gpu, tensors, mask)
    same = on_cuda("reference", tensors, mask)
    # Pools of another rounding may swap two blocks of all but equal score: few rows may differ, none by much.
    assert (ours.float() - same.float()).abs().mean() < 1e-3
    assert ((ours.float() - same.float()).abs() > 0.05).float().mean() < 1e-3


@pytest.mark.gpu
def test_frames_that_a_mask_leaves_out_make_the_call_dense_on_the_device(on_gpu):
    tensors = REAL.tensors(torch.bfloat16, "cuda")
    mask = cut_frames(REAL, "cuda")
    bias = torch.where(mask, 0.0, -torch.inf)[:, None, None]
    wide = (part.double() for part in tensors)
    exact = F.scaled_dot_product_attention(*wide, bias.double(), enable_gqa=True)
    dense = F.scaled_dot_product_attention(*tensors, bias.to(torch.bfloat16), enable_gqa=True)
    ours = on_cuda(on_gpu, tensors, mask)
    assert_close_to(ours[1], exact[1], dense[1])
    kept = on_cuda(on_gpu, tensors, masks_of(REAL, "cuda")["tail"])
    assert torch.equal(ours[0], kept[0])


@pytest.mark.gpu
def test_no_host_reads_the_mask_and_a_captured_graph_follows_it(on_gpu):
    tensors = REAL.tensors(torch.bfloat16, "cuda")
    masks = [*[*masks_of(REAL, "cuda").values()][:4], cut_frames(REAL, "cuda")]
    mask = masks[0].clone()
    on_cuda(on_gpu, tensors, mask)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_cuda(on_gpu, tensors, mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = on_cuda(on_gpu, tensors, mask)
    seen = []
    for each in masks:
        mask.copy_(each)
        graph.replay()
        assert torch.equal(captured, on_cuda(on_gpu, tensors, mask))
        seen.append(captured.clone())
    assert not any(torch.equal(seen[0], other) for other in seen[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 96])
def test_other_head_dims(on_gpu, head_dim):
    site = replace(REAL, head_dim=head_dim)
    tensors = site.tensors(torch.bfloat16, "cuda")
    for mask in (masks_of(site, "cuda")["holes"], cut_frames(site, "cuda")):
        ours, same = on_cuda(on_gpu, tensors, mask), on_cuda("reference", tensors, mask)
        assert (ours.float() - same.float()).abs().mean() < 1e-3
