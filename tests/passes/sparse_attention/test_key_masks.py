"""Sites with padding: masks of keys that are data, whatever they hold in a call, and what is no mask of keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from differential import feeds_of, largest_difference, rewritten, run, trace
from torch import Tensor, nn

from lightint_compile import kernels
from lightint_compile.kernels import ops
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import RemarkKind

SMALL = "canonicalize-attention,sparse-attention{tile=2x2x2,min-tokens=0,density=0.4}"
MASKED = getattr(torch.ops, ops.NAMESPACE).sparse_attention_masked.default
DENSE = torch.ops.aten.scaled_dot_product_attention.default
TEXT, FRAMES, BATCH = 6, 64, 2


def patches(video: Tensor) -> Tensor:
    """[batch, 16, T, H, W] to two heads [batch, 2, tokens, 8]."""
    tokens = F.avg_pool3d(video.float(), 1).to(video.dtype).flatten(2).transpose(1, 2)
    return tokens.unflatten(2, (2, 8)).transpose(1, 2)


def text_behind(video: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Frames and text attend to each other; the mask is of the joined keys."""
    tokens = torch.cat([patches(video), text], 2)
    return F.scaled_dot_product_attention(tokens, tokens.sin(), tokens, attn_mask=mask)


def text_in_front(video: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    tokens = torch.cat([text, patches(video)], 2)
    return F.scaled_dot_product_attention(tokens, tokens.sin(), tokens, attn_mask=mask)


def one_tensor_behind(video: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Keys that are no concatenation any more."""
    tokens = torch.cat([patches(video), text], 2)
    return F.scaled_dot_product_attention(tokens, tokens * 2, tokens.cos(), attn_mask=mask)


def context_and_text_behind(video: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    query = patches(video[:, :, 2:])
    key = torch.cat([patches(video[:, :, :2].clone()), query, text], 2)
    return F.scaled_dot_product_attention(query, key, key, attn_mask=mask)


SITES = {each.__name__: each for each in (text_behind, text_in_front, one_tensor_behind)}


def row(place: str, kind: str) -> Tensor:
    """A mask of ``[batch, keys]``, by what it leaves out and where the text is."""
    keep = torch.ones(BATCH, TEXT + FRAMES, dtype=torch.bool)
    text = slice(0, TEXT) if place == "text_in_front" else slice(FRAMES, None)
    frames = slice(TEXT, None) if place == "text_in_front" else slice(0, FRAMES)
    if kind == "padding":
        keep[0, text][2:] = False
    elif kind == "no text":
        keep[1, text] = False
    elif kind == "holes":
        keep[:, text][:, ::2] = False
    elif kind == "frames":
        keep[1, frames][::3] = False
    elif kind == "nothing":
        keep[0] = False
    return keep


def outer(keep: Tensor) -> Tensor:
    """As one model spells it: repeated, transposed, and both together."""
    batch, keys = keep.shape
    rows = keep.view(batch, 1, 1, keys).repeat(1, 1, keys, 1)
    return (rows & rows.transpose(2, 3)).bool()


SPELLINGS = {
    "boolean": lambda keep: keep[:, None, None, :],
    "negated": lambda keep: ~(~keep)[:, None, None, :],
    "of heads": lambda keep: keep[:, None, None, :].expand(-1, 2, 1, -1),
    "of all scores": lambda keep: keep[:, None, None, :].expand(-1, 2, keep.shape[1], -1),
    "infinities": lambda keep: torch.zeros_like(keep, dtype=torch.float32).masked_fill(~keep, -torch.inf)[
        :, None, None
    ],
    "chosen": lambda keep: torch.where(keep, 0.0, -torch.inf)[:, None, None, :],
    "large": lambda keep: (1.0 - keep.float())[:, None, None, :] * -1e9,
    "outer": outer,
    "multiplied": lambda keep: keep[:, None, None, :] & keep[:, None, :, None],
}


class Padded(nn.Module):
    """A site with a mask computed from an input."""

    def __init__(self, site: Any, spelling: Any) -> None:
        super().__init__()
        self.site, self.spelling = site, spelling

    def forward(self, video: Tensor, text: Tensor, keep: Tensor) -> Tensor:
        mask = self.spelling(keep)
        return self.site(video, text, mask.to(video.dtype) if mask.is_floating_point() else mask)


def arguments(place: str, kind: str = "padding", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(BATCH, 16, 4, 4, 4, generator=generator).to(dtype)
    text = torch.randn(BATCH, 2, TEXT, 8, generator=generator).to(dtype)
    return {"video": video, "text": text, "keep": row(place, kind)}


def wide(feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.double() if each.is_floating_point() else each for name, each in feeds.items()}


KINDS = ("padding", "no text", "holes", "frames", "nothing", "all")


PLACED = [*(("text_behind", name) for name in SPELLINGS), ("text_in_front", "outer"), ("one_tensor_behind", "boolean")]


@pytest.mark.parametrize(("place", "spelling"), PLACED)
def test_one_program_is_right_for_every_mask(place, spelling):
    """Calls with other masks in turn: read in full it is dense attention, and masked text is not there at all."""
    program = trace(Padded(SITES[place], SPELLINGS[spelling]), arguments(place))
    copy, _ = rewritten(program, SMALL)
    assert len(list(copy.calls(MASKED))) == 1
    (text,) = copy.calls(DENSE)  # the text's own queries
    assert text.meta["val"].shape[2] == TEXT
    for kind in (*KINDS, "padding"):
        feeds = arguments(place, kind)
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5, kind
        with kernels.using("gather"):
            found = run(copy, feeds)
        with kernels.using("reference"):
            assert largest_difference(found, run(copy, feeds)) < 1e-5, kind
        (expected,) = run(program, feeds)
        if kind == "frames":  # what touches frames is attended in full
            torch.testing.assert_close(found[0][1], expected[1])
        error = (found[0] - expected).norm() / expected.norm()
        assert error < 0.5, kind


@pytest.mark.parametrize("place", SITES)
def test_what_is_padding_does_not_reach_the_result(place):
    program = trace(Padded(SITES[place], SPELLINGS["boolean"]), arguments(place))
    copy, _ = rewritten(program, SMALL)
    feeds = arguments(place, "holes")
    other = feeds | {"text": feeds["text"].clone()}
    other["text"][:, :, ::2] = 50.0
    text = slice(0, TEXT) if place == "text_in_front" else slice(FRAMES, None)
    with kernels.using("gather"):
        (ours,), (same,) = run(copy, feeds), run(copy, other)
    frames = torch.ones(TEXT + FRAMES, dtype=torch.bool)
    frames[text] = False
    assert torch.equal(ours[:, :, frames], same[:, :, frames])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("spelling", ["boolean", "infinities", "outer"])
def test_other_dtypes(spelling, dtype):
    program = trace(Padded(text_behind, SPELLINGS[spelling]), arguments("text_behind", dtype=dtype))
    copy, _ = rewritten(program, SMALL)
    exact = trace(Padded(text_behind, SPELLINGS[spelling]), arguments("text_behind", dtype=torch.float64))
    for kind in KINDS:
        feeds = arguments("text_behind", kind, dtype)
        (expected,) = run(exact, wide(feeds))
        with kernels.using("dense"):
            (ours,) = run(copy, feeds)
        assert (ours.double() - expected).abs().max() < 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_a_mask_of_one_element_serves_a_batch():
    shared = lambda keep: keep[:1, None, None, :]  # noqa: E731
    program = trace(Padded(text_behind, shared), arguments("text_behind"))
    copy, _ = rewritten(program, SMALL)
    for kind in ("padding", "frames", "no text"):
        feeds = arguments("text_behind", kind)
        feeds["keep"] = feeds["keep"].flip(0)
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5


def test_context_in_front_of_the_frames():
    feeds = arguments("text_behind")
    program = trace(Padded(context_and_text_behind, SPELLINGS["boolean"]), feeds)
    copy, result = rewritten(program, SMALL)
    assert [remark.rule for remark in result.remarks if remark.kind is RemarkKind.APPLIED] == ["denoise"]
    for kind in KINDS:
        feeds = arguments("text_behind", kind)
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5


class Prompted(nn.Module):
    """A mask of text alone: frames always take part."""

    def forward(self, video: Tensor, text: Tensor, keep: Tensor) -> Tensor:
        tokens = torch.cat([patches(video), text], 2)
        mask = F.pad(keep, (tokens.shape[2] - keep.shape[1], 0), value=True)[:, None, None, :]
        return F.scaled_dot_product_attention(tokens, tokens.sin(), tokens, attn_mask=mask)


def test_numbers_of_frames_and_lengths_of_text_may_change():
    example = arguments("text_behind")
    example["keep"] = example["keep"][:, FRAMES:].clone()
    program = trace(Prompted(), example, dynamic={"video": 2, "text": 2, "keep": 1})
    copy, _ = rewritten(program, SMALL)
    assert len(list(copy.calls(MASKED))) == 1
    for frames, length in ((4, 6), (6, 9), (3, 2)):
        feeds = {
            "video": torch.randn(BATCH, 16, frames, 4, 4),
            "text": torch.randn(BATCH, 2, length, 8),
            "keep": torch.rand(BATCH, length) < 0.5,
        }
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5


# --- what is no mask of keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        (lambda keep: keep[:, None, None, :] | keep[:, None, :, None], "not the same for every query"),
        (
            lambda keep: keep[:, None, None, :].repeat(1, 1, keep.shape[1], 1).cumsum(2) > 3,
            "not the same for every query",
        ),
        (lambda keep: torch.rand(BATCH, 1, keep.shape[1], keep.shape[1]) > 0.1, "not the same for every query"),
        (lambda keep: torch.rand(BATCH, 2, 1, keep.shape[1]), "not the same for every query"),
        (lambda keep: keep[:, None, :, None], "says nothing of single keys"),
    ],
)
def test_masks_that_differ_from_query_to_query_stay_dense_with_a_reason(spelling, why):
    program = trace(Padded(text_behind, spelling), arguments("text_behind"))
    copy, result = rewritten(program, SMALL)
    assert not list(copy.calls(MASKED))
    (missed,) = [remark for remark in result.remarks if remark.rule == "mask"]
    assert why in missed.hint


# --- models of diffusers ---------------------------------------------------------------------------------------------


def program_of(name: str) -> tuple[nn.Module, dict[str, Any], Program]:
    module, given = zoo.build(name)
    return module, given, zoo.program(name)


@pytest.mark.parametrize("name", ["hunyuan_video15", pytest.param("hunyuan_video", marks=pytest.mark.slow)])
def test_models_with_padded_text_are_sparse(name):
    module, given, program = program_of(name)
    copy, _ = rewritten(program, SMALL)
    assert len(list(copy.calls(MASKED))) == 2
    feeds = feeds_of(module, given)
    mask = next(path for path in ("encoder_attention_mask", "text_mask") if path in feeds)
    for length in (12, 7, 1):
        padded = feeds[mask].clone()
        padded[:, length:] = 0
        call = feeds | {mask: padded}
        with kernels.using("dense"):
            assert largest_difference(run(copy, call), run(program, call)) < 1e-5
        with kernels.using("gather"):
            assert largest_difference(run(copy, call), run(program, call)) < 0.05


class Blocks(nn.Module):
    """Two blocks of joint attention over frames and padded text, wide enough for the kernels of a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv3d(4, 128, (1, 2, 2), (1, 2, 2)), nn.Linear(128, 4)
        self.qkv = nn.ModuleList(nn.Linear(128, 384) for _ in range(2))

    def forward(self, latent: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        video = self.patch(latent).flatten(2).transpose(1, 2)
        x = torch.cat([video, text], 1)
        mask = F.pad(valid, (video.shape[1], 0), value=True)[:, None, None, :]
        for project in self.qkv:
            q, k, v = (part.unflatten(2, (2, 64)).transpose(1, 2) for part in project(x).chunk(3, 2))
            x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return self.head(x[:, : video.shape[1]])


@pytest.mark.gpu
def test_a_compiled_model_follows_its_mask_on_a_gpu():
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = Blocks().eval().requires_grad_(False).to("cuda", torch.bfloat16)
    options = {"preset": "sparse", "min_tokens": 1, "strict": True, "require": ["sparse-attention"]}
    compiled = torch.compile(module, backend="lightint", options=options)
    latent, text = torch.randn(2, 4, 9, 32, 32, device="cuda"), torch.randn(2, 50, 128, device="cuda")
    latent, text = latent.bfloat16(), text.bfloat16()
    results = []
    for lengths in ([50, 7], [0, 31], [50, 7]):
        valid = torch.arange(50, device="cuda") < torch.tensor(lengths, device="cuda")[:, None]
        found, expected = compiled(latent, text, valid).clone(), module(latent, text, valid)
        assert (found - expected).float().norm() < 0.2 * expected.float().norm()
        results.append(found)
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
