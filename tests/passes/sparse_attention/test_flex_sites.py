"""``flex_attention`` whose mask says which frames see which is sparse; any other stays as it is, with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differential import feeds_of, largest_difference, rewritten, run, trace
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import lightint_compile
from lightint_compile import kernels
from lightint_compile.kernels import ops
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.sparse_attention import flex_sites

SMALL = "canonicalize-attention,sparse-attention{tile=1x2x2,min-tokens=0,density=0.4}"
LIGHTINT = getattr(torch.ops, ops.NAMESPACE)
DENSE = torch.ops.aten.scaled_dot_product_attention.default
FRAMES, PLANE, PADDED = 5, 64, 384
TOKENS = FRAMES * PLANE


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def causal(b, h, q, k):
    return ((k // PLANE <= q // PLANE) & (k < TOKENS)) | (q == k)


def chunks(b, h, q, k):
    frames = 2 * PLANE
    return ((k // frames <= q // frames) & (k < TOKENS)) | (q == k)


def window(b, h, q, k):
    """The latest two frames and the first one."""
    query, key = q // PLANE, k // PLANE
    return ((key <= query) & ((key > query - 2) | (key < 1)) & (k < TOKENS)) | (q == k)


def bidirectional(b, h, q, k):
    return ((k < TOKENS) & (q < TOKENS)) | (q == k)


def block_mask(mask_mod: Callable[..., Any], length: int = PADDED) -> BlockMask:
    return create_block_mask(mask_mod, None, None, length, length, device="cpu", _compile=False)


class Flex(nn.Module):
    """A causal video model's self-attention as it is trained: padded behind to a multiple of 128 tokens."""

    def __init__(self, *, pads: bool = True, returns_pads: bool = False, shared: int = 1, **options: Any) -> None:
        super().__init__()
        self.pads, self.returns_pads, self.options = pads, returns_pads, options
        self.patch, self.query = nn.Conv3d(4, 16, (1, 2, 2), (1, 2, 2)), nn.Linear(16, 32)
        self.key, self.value = nn.Linear(16, 32 // shared), nn.Linear(16, 32 // shared)

    def forward(self, latent: Tensor, mask: BlockMask | None) -> Tensor:
        tokens = self.patch(latent).flatten(2).transpose(1, 2)
        q, k, v = (each(tokens).unflatten(2, (-1, 16)) for each in (self.query, self.key, self.value))
        missing = PADDED - tokens.shape[1] if self.pads else 0
        if missing:
            q, k, v = (torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], 1) for x in (q, k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = flex_attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1], **self.options)
        if self.options.get("return_lse"):
            out, lse = out
            out = out * lse.sum()
        out = out if self.returns_pads or not missing else out[:, :, :-missing]
        return out.transpose(1, 2).flatten(2)


def model(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Flex(**options).eval().requires_grad_(False)


def arguments(mask: BlockMask | None, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"latent": torch.randn(2, 4, FRAMES, 16, 16, generator=generator).to(dtype), "mask": mask}


def feeds_for(module: nn.Module, given: dict[str, Any], program: Any) -> dict[str, Any]:
    """Values by path, those of the block mask and of what its function holds among them."""
    feeds, mask = feeds_of(module, given), given["mask"]
    for entry in program.inputs:
        if entry.path.startswith("mask."):
            feeds[entry.path] = getattr(mask, entry.path.removeprefix("mask."))
    return feeds


GROUPS = {"causal": (causal, 5), "chunks": (chunks, 3), "window": (window, 5), "bidirectional": (bidirectional, 1)}


OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "pads": {"returns_pads": True}, "shared": {"shared": 2}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(
            kind, OPTIONS[name], id=f"{kind}-{name}", marks=[pytest.mark.slow] * (name != "plain" and kind != "chunks")
        )
        for kind in GROUPS
        for name in OPTIONS
    ],
)
def test_frames_that_see_the_same_are_one_call(kind, options):
    mask_mod, groups = GROUPS[kind]
    module, given = model(**options), arguments(block_mask(mask_mod))
    program = trace(module, given)
    copy, result = rewritten(program, SMALL)
    calls = list(copy.calls(LIGHTINT.sparse_attention_segments.default))
    assert len(calls) == groups and "flex_attention" not in str(copy.graph)
    feeds = feeds_for(module, given, program)
    (expected,) = run(program, feeds)
    with kernels.using("dense"):
        assert largest_difference(run(copy, feeds), [expected]) < 1e-5
    with kernels.using("gather"):
        (found,) = run(copy, feeds)
    assert 1e-6 < (found - expected).norm() / expected.norm() < 0.5
    (applied,) = [each for each in result.remarks if each.kind is RemarkKind.APPLIED]
    assert "no text tokens, under a mask of frames" in applied.message


class Making(Flex):
    """Makes its mask, and the table that it reads, in every call."""

    def forward(self, latent: Tensor) -> Tensor:
        places = torch.arange(PADDED)
        ends = torch.where(places < TOKENS, (places // PLANE + 1) * PLANE, 0)
        made = create_block_mask(lambda b, h, q, k: (k < ends[q]) | (q == k), None, None, PADDED, PADDED, device="cpu")
        return super().forward(latent, made)


@pytest.mark.slow
def test_a_table_that_the_graph_makes_of_constants_is_known():
    torch.manual_seed(0)
    module, given = Making().eval().requires_grad_(False), {"latent": arguments(None)["latent"]}
    program = trace(module, given)
    copy, _ = rewritten(program, SMALL)
    assert len(list(copy.calls(LIGHTINT.sparse_attention_segments.default))) == FRAMES
    feeds = feeds_of(module, given)
    with kernels.using("dense"):
        assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5


def test_without_a_mask_it_is_plain_attention_of_a_grid_to_itself():
    module, given = model(pads=False), arguments(None)
    program = trace(module, given)
    copy, result = rewritten(program, SMALL)
    applied = {each.pass_name: each for each in result.remarks if each.kind is RemarkKind.APPLIED}
    assert "flex_attention without a mask becomes one" in applied["canonicalize-attention"].message
    assert "mask" not in applied["sparse-attention"].message
    feeds = feeds_of(module, given)
    with kernels.using("dense"):
        assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5


def test_other_dtypes():
    module = model().double()
    given = arguments(block_mask(chunks), torch.float64)
    program = trace(module, given)
    copy, _ = rewritten(program, SMALL)
    feeds = feeds_for(module, given, program)
    with kernels.using("dense"):
        assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-12


ENDS = torch.zeros(PADDED, dtype=torch.long)
for start in range(0, TOKENS, PLANE):
    ENDS[start : start + PLANE] = start + PLANE


def of_a_table(b, h, q, k):
    """As it is mostly written: where the frame of a query ends, from a table that the mask holds."""
    return (k < ENDS[q]) | (q == k)


def of_heads(b, h, q, k):
    return ((k // PLANE <= q // PLANE) & (k < TOKENS)) | (q == k) | (h == 1)


def within_frames(b, h, q, k):
    return (k <= q) | (q == k)


def halved(score, b, h, q, k):
    return score / 2


TWINS: dict[str, tuple[dict[str, Any], Callable[..., Any], str]] = {
    "a table": ({}, of_a_table, "which only the data tell"),
    "heads": ({}, of_heads, "differs between batches or heads"),
    "tokens": ({}, within_frames, "is not one of frames"),
    "scores": ({"score_mod": halved}, causal, "score_mod changes the scores"),
    "log-sum-exp": ({"return_lse": True}, causal, "log-sum-exp is read"),
}


class Beside(Flex):
    """Attention of another spelling behind it, as in the next block."""

    def forward(self, latent: Tensor, mask: BlockMask) -> Tensor:
        tokens = self.query(self.patch(latent).flatten(2).transpose(1, 2)) + super().forward(latent, mask)
        heads = tokens.unflatten(2, (2, 16)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads)


@pytest.mark.parametrize("twin", TWINS)
def test_any_other_stays_with_a_reason_and_what_is_beside_it_does_not(twin):
    options, mask_mod, why = TWINS[twin]
    torch.manual_seed(0)
    module, given = Beside(**options).eval().requires_grad_(False), arguments(block_mask(mask_mod))
    program = trace(module, given)
    copy, result = rewritten(program, SMALL)
    assert "flex_attention" in str(copy.graph) and not list(copy.calls(DENSE))
    assert len(list(copy.calls(LIGHTINT.sparse_attention.default))) == 1
    (missed,) = [each for each in result.remarks if each.kind is RemarkKind.MISSED]
    assert missed.rule == "mask" and why in missed.message and missed.hint


@pytest.mark.parametrize("delegate", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_it_follows_the_mask_of_each_call(delegate):
    torch._dynamo.reset()
    module = model()
    options = {"preset": "sparse", "delegate": delegate, "strict": True, "min_tokens": 1, "tile": [1, 2, 2]}
    compiled = torch.compile(module, backend="lightint", options=options)
    masks = [block_mask(mask_mod) for mask_mod in (causal, of_a_table, window, causal)]
    results = []
    for mask in masks:
        given = arguments(mask)
        expected, found = module(**given), compiled(**given)
        assert (found - expected).norm() / expected.norm() < 0.5
        results.append((found, expected))
    assert torch.equal(results[0][0], results[3][0]) and not torch.equal(*results[0])
    torch.testing.assert_close(*results[1])  # dense
    assert "under a mask of frames" in " ".join(str(lightint_compile.report(compiled)).split())


def test_a_mask_that_several_sites_have_is_computed_once(monkeypatch):
    class Twice(Flex):
        def forward(self, latent: Tensor, mask: BlockMask) -> Tensor:
            first = super().forward(latent, mask)
            return first + super().forward(latent + 1, mask)

    computed = []
    frames = flex_sites.FlexSite.frames
    monkeypatch.setattr(flex_sites.FlexSite, "frames", lambda *given: computed.append(given) or frames(*given))
    torch.manual_seed(0)
    module, given = Twice().eval().requires_grad_(False), arguments(block_mask(chunks))
    program = trace(module, given)
    copy, _ = rewritten(program, SMALL)
    assert len(computed) == 1 and len(list(copy.calls(LIGHTINT.sparse_attention_segments.default))) == 6
    feeds = feeds_for(module, given, program)
    with kernels.using("dense"):
        assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5
