"""Attention over samples in a row whose lengths are data: sparse where a call's samples are frames and real text."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import varlen
from differential import feeds_of, largest_difference, rewritten, run, trace
from torch import Tensor, nn

import lightint_compile
from lightint_compile import kernels
from lightint_compile.kernels import ops
from lightint_compile.passes.ir.remarks import RemarkKind

SMALL = "canonicalize-attention,sparse-attention{tile=2x2x2,min-tokens=0,density=0.4}"
MASKED = getattr(torch.ops, ops.NAMESPACE).sparse_attention_masked.default
DENSE = torch.ops.aten.scaled_dot_product_attention.default
FRAMES, TEXT = 64, 6


@pytest.fixture(scope="module", autouse=True)
def flash():
    with varlen.registered() as operation:
        yield operation


def one_by_one(valid: Tensor, frames: int) -> Tensor:
    """Frames and real text are one sample, padding another; written entry by entry."""
    batch, longest = valid.shape[0], valid.shape[1] + frames
    lengths = valid.sum(1)
    starts = torch.zeros([2 * batch + 1], dtype=torch.int32, device=valid.device)
    for i in range(batch):
        starts[2 * i + 1] = i * longest + lengths[i] + frames
        starts[2 * i + 2] = (i + 1) * longest
    return starts


def added_up(valid: Tensor, frames: int) -> Tensor:
    real = valid.sum(1, dtype=torch.int32) + frames
    pairs = torch.stack([real, valid.shape[1] + frames - real], 1).flatten()
    return F.pad(pairs.cumsum(0, dtype=torch.int32), (1, 0))


def padding_first(valid: Tensor, frames: int) -> Tensor:
    """Padding is in front of real text, and both in front of frames."""
    padding = valid.shape[1] - valid.sum(1, dtype=torch.int32)
    pairs = torch.stack([padding, valid.shape[1] + frames - padding], 1).flatten()
    return F.pad(pairs.cumsum(0, dtype=torch.int32), (1, 0))


class Folded(nn.Module):
    """Frames with text behind them (or in front), the batch folded into tokens, a grid at both ends."""

    def __init__(self, starts=one_by_one, *, text_first: bool = False, shared: int = 1, causal: bool = False) -> None:
        super().__init__()
        self.starts, self.text_first, self.shared, self.causal = starts, text_first, shared, causal
        self.patch, self.query = nn.Conv3d(4, 16, (1, 2, 2), (1, 2, 2)), nn.Linear(16, 32)
        self.key, self.value = nn.Linear(16, 32 // shared), nn.Linear(16, 32 // shared)

    def forward(self, latent: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        video = self.patch(latent).flatten(2).transpose(1, 2)
        starts = self.starts(valid, video.shape[1])
        tokens = torch.cat([text, video] if self.text_first else [video, text], 1)
        batch, rows = tokens.shape[:2]
        q, k, v = (each(tokens).unflatten(2, (-1, 8)) for each in (self.query, self.key, self.value))
        q, k, v = (x.view(batch * rows, *x.shape[2:]) for x in (q, k, v))
        longest = tokens.shape[1]
        out = torch.ops.flash_attn._flash_attn_varlen_forward(
            q, k, v, starts, starts, longest, longest, 0.0, 8**-0.5, self.causal
        )[0]
        return out.view(batch, rows, 32)


def arguments(batch: int, lengths: list[int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "latent": torch.randn(batch, 4, 4, 8, 8, generator=generator).to(dtype),
        "text": torch.randn(batch, TEXT, 16, generator=generator).to(dtype),
        "valid": torch.arange(TEXT) < torch.tensor(lengths)[:, None],
    }


def model(*given, **options) -> nn.Module:
    torch.manual_seed(0)
    return Folded(*given, **options).eval().requires_grad_(False)


CASES = {
    "one element": (1, {}),
    "two elements": (2, {}),
    "three, added up": (3, {"starts": added_up}),
    "shared heads": (2, {"shared": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_one_program_is_right_for_all_lengths(case):
    batch, options = CASES[case]
    module = model(**options)
    program = trace(module, arguments(batch, [3] * batch))
    copy, result = rewritten(program, SMALL)
    assert len(list(copy.calls(MASKED))) == 1
    (text,) = copy.calls(DENSE)
    assert text.meta["val"].shape[2] == TEXT
    (applied,) = [each for each in result.remarks if each.kind is RemarkKind.APPLIED]
    assert "lengths of samples" in applied.message
    for length in (3, 0, 6, 1, 3):
        feeds = feeds_of(module, arguments(batch, [(length + 2 * i) % 7 for i in range(batch)]))
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5
        with kernels.using("gather"):
            (found,), (expected,) = run(copy, feeds), run(program, feeds)
        torch.testing.assert_close(found[:, FRAMES:], expected[:, FRAMES:])  # text reads everything, as before
        assert 1e-5 < (found - expected).norm() / expected.norm() < 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    module, exact = model().to(dtype), model().to(dtype).double()
    copy, _ = rewritten(trace(module, arguments(2, [3, 5], dtype)), SMALL)
    for lengths in ([3, 5], [6, 0]):
        feeds = arguments(2, lengths, dtype)
        wide = {name: x.double() if x.is_floating_point() else x for name, x in feeds.items()}
        expected = exact(**wide)
        with kernels.using("dense"):
            (ours,) = run(copy, feeds_of(module, feeds))
        assert (ours.double() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()


class OfInputs(Folded):
    """The places where samples begin are given."""

    def forward(self, latent: Tensor, text: Tensor, starts: Tensor) -> Tensor:
        self.starts = lambda *_: starts
        return super().forward(latent, text, text)


@pytest.mark.parametrize(
    "starts",
    [
        [0, 67, 70, 140],  # frames and text of the first, its padding, all of the second
        [0, 70, 70, 140],  # an empty sample
        [0, 32, 70, 140],  # frames of the first in two samples
        [0, 60, 135, 140],  # a sample over both elements
        [0, 64, 134, 140],  # the second's frames begin in the first's padding
    ],
)
def test_samples_that_are_not_what_a_site_takes_them_for_run_as_they_were(starts):
    torch.manual_seed(0)
    module = OfInputs().eval().requires_grad_(False)
    given = arguments(2, [3, 3])
    feeds = {"latent": given["latent"], "text": given["text"], "starts": torch.tensor(starts, dtype=torch.int32)}
    usual = feeds | {"starts": torch.tensor([0, 66, 70, 137], dtype=torch.int32)}
    program = trace(module, usual)
    copy, _ = rewritten(program, SMALL)
    assert len(list(copy.calls(MASKED))) == 1
    values = feeds_of(module, feeds)
    covered = (torch.arange(140) < starts[-1]).view(2, 70)
    with kernels.using("dense"):
        (ours,), (expected,) = run(copy, values), run(program, values)
    torch.testing.assert_close(ours[covered], expected[covered])
    with kernels.using("gather"):
        (ours,) = run(copy, values)
    alike = torch.equal(ours[covered], expected[covered])
    assert alike == (starts[1] in (32, 60, 64))  # sparse where they fit, the call itself where they do not


def test_text_in_front():
    module = model(padding_first, text_first=True)
    program = trace(module, arguments(2, [3, 3]))
    copy, _ = rewritten(program, SMALL)
    assert len(list(copy.calls(MASKED))) == 1
    for lengths in ([3, 6], [0, 5]):
        feeds = feeds_of(module, arguments(2, lengths))
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5
        with kernels.using("gather"):
            assert 1e-5 < largest_difference(run(copy, feeds), run(program, feeds)) < 1


@pytest.mark.parametrize("starts", [one_by_one, added_up])
def test_the_number_of_frames_may_change(starts):
    module = model(starts)
    program = trace(module, arguments(2, [3, 3]), dynamic={"latent": 2})
    copy, _ = rewritten(program, SMALL)
    assert len(list(copy.calls(MASKED))) == 1
    for frames, lengths in ((4, [3, 6]), (7, [0, 5]), (3, [1, 1])):
        given = arguments(2, lengths) | {"latent": torch.randn(2, 4, frames, 8, 8)}
        feeds = feeds_of(module, given)
        with kernels.using("dense"):
            assert largest_difference(run(copy, feeds), run(program, feeds)) < 1e-5


@pytest.mark.parametrize(
    ("options", "density"),
    [({"causal": True}, "0.4"), ({}, "1.0")],
    ids=["causal", "all tiles kept"],
)
def test_what_stays_is_the_call_itself(options, density):
    program = trace(model(**options), arguments(2, [3, 3]))
    copy, result = rewritten(program, SMALL.replace("0.4", density))
    assert not result.modified and not list(copy.calls(MASKED)) and not list(copy.calls(DENSE))
    assert [node.name for node in copy.graph.nodes] == [node.name for node in program.graph.nodes]


def test_compiled_it_follows_the_lengths_of_each_call():
    torch._dynamo.reset()
    module = model()
    options = {"preset": "sparse", "delegate": "eager", "strict": True, "min_tokens": 1, "tile": [2, 2, 2]}
    compiled = torch.compile(module, backend="lightint", options={**options, "require": ["sparse-attention"]})
    for lengths in ([3, 5], [6, 0], [1, 2]):
        given = arguments(2, lengths)
        expected, found = module(**given), compiled(**given)
        assert 1e-6 < (found - expected).norm() / expected.norm() < 0.5
    assert "lengths of samples" in " ".join(str(lightint_compile.report(compiled)).split())
