"""Masks that say which frames see which: a call of sparse attention for each group of frames that see the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from differential import feeds_of, largest_difference, rewritten, run, trace
from torch import Tensor, nn

import lightint_compile
from lightint_compile import kernels
from lightint_compile.kernels import ops
from lightint_compile.passes.ir.remarks import RemarkKind

SMALL = "canonicalize-attention,sparse-attention{tile=1x2x2,min-tokens=0,density=0.4}"
SEGMENTS = getattr(torch.ops, ops.NAMESPACE).sparse_attention_segments.default
DENSE = torch.ops.aten.scaled_dot_product_attention.default
FRAMES, PLANE, TEXT = 6, 16, 5

Seen = Callable[[Tensor, Tensor], Tensor]
"""Whether a frame of queries sees a frame of keys."""

SEEN: dict[str, tuple[Seen, int]] = {
    "causal": (lambda q, k: k <= q, 6),
    "chunks": (lambda q, k: k // 2 <= q // 2, 3),
    "window": (lambda q, k: (k // 2 <= q // 2) & (k // 2 > q // 2 - 2), 3),
    "sink and window": (lambda q, k: (k <= q) & ((k > q - 2) | (k < 1)), 6),
    "later ones too": (lambda q, k: (k == q) | (k % 2 == 1), 6),
    "each alone": (lambda q, k: k == q, 6),
}


def frame_matrix(seen: Seen, frames: int = FRAMES) -> Tensor:
    numbers = torch.arange(frames)
    return seen(numbers[:, None], numbers[None])


def repeated(seen: Seen) -> Tensor:
    """As one library spells it: a matrix of frames, repeated to tokens."""
    matrix = frame_matrix(seen).view(FRAMES, 1, FRAMES, 1).repeat(1, PLANE, 1, PLANE)
    return matrix.reshape(FRAMES * PLANE, -1)[None, None]


def of_tokens(seen: Seen) -> Tensor:
    """By the frame of each token."""
    frame = torch.arange(FRAMES * PLANE) // PLANE
    return seen(frame[:, None], frame[None])


def of_infinities(seen: Seen) -> Tensor:
    return torch.zeros(FRAMES * PLANE, FRAMES * PLANE).masked_fill(~of_tokens(seen), -torch.inf)[None]


SPELLINGS = {"repeated": repeated, "of tokens": of_tokens, "of infinities": of_infinities}


class Frames(nn.Module):
    """A video transformer's attention under a mask, with text in front, behind, or none."""

    def __init__(self, mask: Callable[[], Tensor], *, text: str = "", shared: int = 1) -> None:
        super().__init__()
        self.mask, self.text = mask, text
        self.patch, self.query = nn.Conv3d(4, 16, (1, 2, 2), (1, 2, 2)), nn.Linear(16, 32)
        self.key, self.value = nn.Linear(16, 32 // shared), nn.Linear(16, 32 // shared)

    def forward(self, latent: Tensor, text: Tensor) -> Tensor:
        tokens = self.patch(latent).flatten(2).transpose(1, 2)
        if self.text:
            tokens = torch.cat([tokens, text] if self.text == "behind" else [text, tokens], 1)
        q, k, v = (each(tokens).unflatten(2, (-1, 8)).transpose(1, 2) for each in (self.query, self.key, self.value))
        mask = self.mask()
        mask = mask.to(q.dtype) if mask.is_floating_point() else mask
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2).flatten(2)


def model(*given: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Frames(*given, **options).eval().requires_grad_(False)


def arguments(batch: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(batch, 4, FRAMES, 8, 8, generator=generator)
    return {"latent": latent.to(dtype), "text": torch.randn(batch, TEXT, 16, generator=generator).to(dtype)}


def check(module: nn.Module, batch: int = 1, tolerance: float = 1e-5) -> Any:
    """The rewritten program, which is the original where every key is read, and near it where few are."""
    program = trace(module, arguments(batch))
    copy, result = rewritten(program, SMALL)
    feeds = feeds_of(module, arguments(batch))
    with kernels.using("dense"):
        assert largest_difference(run(copy, feeds), run(program, feeds)) < tolerance
    with kernels.using("gather"):
        found = run(copy, feeds)
    with kernels.using("reference"):
        assert largest_difference(found, run(copy, feeds)) < 1e-5
    (expected,) = run(program, feeds)
    assert (found[0] - expected).norm() / expected.norm() < 0.5
    return copy, result


TOKENS = FRAMES * PLANE
BROADCAST: dict[str, Callable[[], Tensor]] = {
    "numbers of keys": lambda: torch.zeros(1, 1, 1, TOKENS).masked_fill(torch.arange(TOKENS) < PLANE, -torch.inf),
    "of queries": lambda: (torch.arange(TOKENS) >= 0)[:, None],
    "of keys": lambda: (torch.arange(TOKENS) >= PLANE)[None],
    "times a number": lambda: of_tokens(SEEN["causal"][0]) * True,
}


@pytest.mark.parametrize("name", BROADCAST)
def test_what_is_no_matrix_of_pairs_fails_nothing(name: str) -> None:
    """A mask that is broadcast along queries or keys has no rows of frames to look at."""
    module = model(BROADCAST[name])
    program = trace(module, arguments())
    copy, _ = rewritten(program, SMALL)
    with kernels.using("dense"):
        assert (
            largest_difference(run(copy, feeds_of(module, arguments())), run(program, feeds_of(module, arguments())))
            < 1e-5
        )


SPELLED = [*((kind, "of tokens") for kind in SEEN), ("chunks", "repeated"), ("window", "of infinities")]


@pytest.mark.parametrize(("kind", "spelling"), SPELLED)
def test_frames_that_see_the_same_are_one_call(kind, spelling):
    seen, groups = SEEN[kind]
    copy, result = check(model(lambda: SPELLINGS[spelling](seen)))
    calls = list(copy.calls(SEGMENTS))
    assert len(calls) == groups and not list(copy.calls(DENSE))
    matrix = frame_matrix(seen)
    shown = [call.args[4][0] for call in calls for _ in range(call.args[3][0])]
    assert shown == matrix.sum(1).tolist()
    (applied,) = [each for each in result.remarks if each.kind is RemarkKind.APPLIED]
    assert f"{groups} groups" in applied.message and applied.flops_after < applied.flops_before


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shared", [1, 2])
def test_heads_are_shared_and_a_batch_is_one(batch, shared):
    check(model(lambda: of_tokens(SEEN["chunks"][0]), shared=shared), batch)


def with_text(text: str, *, seen_by_frames: bool = True) -> Tensor:
    """Text sees everything; frames see text or do not, and earlier frames."""
    keys = F.pad(of_tokens(SEEN["causal"][0]), (0, TEXT) if text == "behind" else (TEXT, 0), value=seen_by_frames)
    return F.pad(keys, (0, 0, 0, TEXT) if text == "behind" else (0, 0, TEXT, 0), value=True)


@pytest.mark.parametrize("seen_by_frames", [True, False])
@pytest.mark.parametrize("text", ["behind", "in front"])
def test_text_on_one_side(text, seen_by_frames):
    copy, _ = check(model(lambda: with_text(text, seen_by_frames=seen_by_frames), text=text))
    calls = list(copy.calls(SEGMENTS))
    assert [call.args[5] for call in calls] == [TEXT if seen_by_frames else 0] * FRAMES
    assert len(list(copy.calls(DENSE))) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    module = model(lambda: of_infinities(SEEN["window"][0])).to(dtype)
    copy, _ = rewritten(trace(module, arguments(dtype=dtype)), SMALL)
    feeds = feeds_of(module, arguments(dtype=dtype))
    with kernels.using("dense"):
        (ours,) = run(copy, feeds)
    expected = module.double()(**{name: each.double() for name, each in arguments(dtype=dtype).items()})
    assert (ours.double() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()


def _tokens_within() -> Tensor:
    """Causal by tokens."""
    return torch.ones(FRAMES * PLANE, FRAMES * PLANE, dtype=torch.bool).tril()


def _blind() -> Tensor:
    """Frames that do not see themselves."""
    return of_tokens(lambda q, k: (k < q) | (k == 5))


def _per_head() -> Tensor:
    return torch.stack([of_tokens(SEEN["causal"][0]), of_tokens(SEEN["chunks"][0])]).repeat(2, 1, 1)[None]


def _random() -> Tensor:
    return torch.rand(1, 1, FRAMES * PLANE, FRAMES * PLANE) > 0.1


@pytest.mark.parametrize("mask", [_tokens_within, _blind, _per_head, _random])
def test_other_masks_stay_dense_with_a_reason(mask):
    copy, result = rewritten(trace(model(mask), arguments()), SMALL)
    assert not list(copy.calls(SEGMENTS))
    (missed,) = [each for each in result.remarks if each.pass_name == "sparse-attention"]
    assert missed.rule == "mask" and missed.hint


def test_a_mask_that_depends_on_an_input_stays_dense():
    class Given(Frames):
        def forward(self, latent: Tensor, text: Tensor) -> Tensor:
            self.mask = lambda: of_tokens(lambda q, k: k <= q + (text.sum() > 1e9))
            return super().forward(latent, text)

    module = Given(lambda: torch.ones(1)).eval().requires_grad_(False)
    copy, result = rewritten(trace(module, arguments()), SMALL)
    assert not list(copy.calls(SEGMENTS))
    assert "mask" in [each.rule for each in result.remarks]


def test_a_model_with_chunks_of_frames_is_sparse():
    module, given = zoo.build("skyreels_v2_df")
    program = zoo.program("skyreels_v2_df")
    copy, _ = rewritten(program, SMALL)
    assert len(list(copy.calls(SEGMENTS))) == 4  # two blocks, two chunks
    feeds = feeds_of(module, given)
    with kernels.using("dense"):
        assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5
    with kernels.using("gather"):
        assert largest_difference(run(copy, feeds), run(program, feeds)) < 0.1


def test_compiled_it_is_sparse_and_says_so():
    torch._dynamo.reset()
    module = model(lambda: repeated(SEEN["chunks"][0]))
    options = {"preset": "sparse", "delegate": "eager", "strict": True, "min_tokens": 1, "tile": [1, 2, 2]}
    compiled = torch.compile(module, backend="lightint", options={**options, "require": ["sparse-attention"]})
    for batch in (1, 1):
        found, expected = compiled(**arguments(batch)), module(**arguments(batch))
        assert 1e-6 < (found - expected).norm() / expected.norm() < 0.5
    assert "a mask of frames (3 groups" in " ".join(str(lightint_compile.report(compiled)).split())
