"""Attention over samples in a row (varlen functions) is a batch where lengths are known."""

from __future__ import annotations

import itertools
import operator

import pytest
import torch
import torch.nn.functional as F
import varlen
from torch import Tensor, nn

import lightint_compile
from lightint_compile import capture
from lightint_compile.compiled import CompiledGraph
from lightint_compile.passes.canonicalize_attention import CanonicalizeAttention
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline

SDPA = torch.ops.aten.scaled_dot_product_attention.default


@pytest.fixture(scope="module", autouse=True)
def flash():
    with varlen.registered() as operation:
        yield operation


def of_tensors(lengths: list[int], tokens: Tensor) -> Tensor:
    """Lengths as a tensor, a zero in front, added up: as video models for many GPUs spell it."""
    sizes = torch.tensor(lengths, dtype=torch.int32).to(tokens.device, non_blocking=True)
    return torch.cat([sizes.new_zeros([1]), sizes]).cumsum(0, dtype=torch.int32)


def padded(lengths: list[int], tokens: Tensor) -> Tensor:
    sizes = torch.tensor(lengths, dtype=torch.int32, device=tokens.device)
    return F.pad(torch.cumsum(sizes, 0, dtype=torch.int32), (1, 0))


def as_range(lengths: list[int], tokens: Tensor) -> Tensor:
    return torch.arange(0, (len(lengths) + 1) * lengths[0], step=lengths[0], dtype=torch.int32, device=tokens.device)


def one_by_one(lengths: list[int], tokens: Tensor) -> Tensor:
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=tokens.device)
    for place, length in enumerate(lengths):
        starts[place + 1] = starts[place] + length
    return starts


SPELLINGS = [of_tensors, padded, as_range, one_by_one]


class Attention(nn.Module):
    """Self- or cross-attention whose batch is folded into tokens."""

    def __init__(self, starts=of_tensors, *, causal=False, shared=1, window=-1, less=0, lse=False) -> None:
        super().__init__()
        self.starts, self.causal, self.window, self.less, self.lse = starts, causal, window, less, lse
        self.query, self.key = nn.Linear(32, 32), nn.Linear(32, 32 // shared)
        self.value, self.out = nn.Linear(32, 32 // shared), nn.Linear(32, 32)

    def forward(self, video: Tensor, text: Tensor | None = None) -> Tensor:
        source = video if text is None else text
        batch, rows, read = len(video), video.shape[1], source.shape[1]
        q = self.query(video).view(batch * rows, 4, 8)
        k, v = (each(source).view(batch * read, -1, 8) for each in (self.key, self.value))
        starts = self.starts([rows] * batch, q), self.starts([read] * batch, k)
        longest = rows - self.less, read
        options = (0.0, 8**-0.5, self.causal, self.window, -1)
        out, lse, *_ = torch.ops.flash_attn._flash_attn_varlen_forward(q, k, v, *starts, *longest, *options)
        out = self.out(out.view(batch, rows, 32))
        return out * lse.sum() if self.lse else out


def canonical(module: nn.Module, *arguments: Tensor):
    program = capture.trace(module.eval(), arguments)
    return program, Pipeline((CanonicalizeAttention(),)).run(program, strict=True)


def check(module: nn.Module, *arguments: Tensor):
    with torch.no_grad():
        expected = module.eval().double()(*(x.double() for x in arguments))
        program, result = canonical(module.float(), *arguments)
        given = dict(zip(("video", "text"), arguments, strict=False)) | dict(module.named_parameters())
        values = [given[entry.path] for entry in program.inputs]
        (found,) = program.graph_module(*values)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    return program, result


def cases() -> list[object]:
    """Each spelling with each batch, causal or not and with shared keys or not in turn; the rest is slow."""
    quick = [(number, batch, (number + batch) % 2 == 0, 1 + batch % 2) for number in range(4) for batch in (1, 2, 3)]
    every = itertools.product(range(4), (1, 2, 3), (False, True), (1, 2))
    return [pytest.param(SPELLINGS[c[0]], *c[1:], marks=[pytest.mark.slow] * (c not in quick)) for c in every]


@pytest.mark.parametrize(("starts", "batch", "causal", "shared"), cases())
def test_samples_of_one_length_are_a_batch(starts, batch: int, causal: bool, shared: int) -> None:
    program, result = check(Attention(starts, causal=causal, shared=shared), torch.randn(batch, 6, 32))
    (call,) = program.calls(SDPA)
    assert call.meta["val"].shape == (batch, 4, 6, 8)
    assert next(remark.rule for remark in result.remarks if remark.kind is RemarkKind.APPLIED) == "samples"


def test_cross_attention_has_lengths_of_its_own() -> None:
    program, _ = check(Attention(), torch.randn(2, 6, 32), torch.randn(2, 5, 32))
    (call,) = program.calls(SDPA)
    assert call.args[1].meta["val"].shape == (2, 4, 5, 8)


class Uneven(nn.Module):
    def __init__(self, lengths: list[int]) -> None:
        super().__init__()
        self.lengths, self.qkv = lengths, nn.Linear(32, 96)

    def forward(self, video: Tensor) -> Tensor:
        q, k, v = (each.unflatten(1, (4, 8)) for each in self.qkv(video).chunk(3, 1))
        starts, longest = of_tensors(self.lengths, q), max(self.lengths)
        options = (starts, starts, longest, longest, 0.0, 8**-0.5, False)
        return torch.ops.flash_attn._flash_attn_varlen_forward(q, k, v, *options)[0].flatten(1)


def test_samples_of_different_known_lengths_are_calls_of_their_own() -> None:
    program, _ = check(Uneven([3, 7, 2]), torch.randn(12, 32))
    assert [call.meta["val"].shape[2] for call in program.calls(SDPA)] == [3, 7, 2]


def _of_data(lengths: list[int], tokens: Tensor) -> Tensor:
    return of_tensors(lengths, tokens) + (tokens.sum() > 1e9).int()


def _from_one(lengths: list[int], tokens: Tensor) -> Tensor:
    return of_tensors(lengths, tokens) + 1


TWINS = {
    "lengths are data": (Attention(_of_data), "samples"),
    "samples leave tokens out": (Attention(_from_one), "samples"),
    "the longest is shorter than a sample": (Attention(less=1), "samples"),
    "a window": (Attention(window=2), "window-size-left"),
    "the log-sum-exp is read": (Attention(lse=True), "probabilities-escape"),
}


@pytest.mark.parametrize("twin", TWINS)
def test_what_is_more_than_attention_of_known_samples_stays(twin: str) -> None:
    module, reason = TWINS[twin]
    program, result = canonical(module, torch.randn(2, 6, 32))
    assert not list(program.calls(SDPA))
    assert [remark.rule for remark in result.remarks] == [reason] and result.remarks[0].hint


def test_a_causal_triangle_over_other_keys_stays() -> None:
    _, result = canonical(Attention(causal=True), torch.randn(2, 6, 32), torch.randn(2, 5, 32))
    assert [remark.rule for remark in result.remarks] == ["causal-at-end"]


def test_many_samples_of_different_lengths_stay() -> None:
    _, result = canonical(Uneven([1, 2] * 5), torch.randn(15, 32))
    assert [remark.rule for remark in result.remarks] == ["samples"]


class Padded(nn.Module):
    """Tokens padded to 12; keys are those that are no padding, and ``longest`` of them is said to be the longest."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.longest, self.qkv = longest, nn.Linear(32, 96)

    def forward(self, video: Tensor) -> Tensor:
        tokens = torch.cat([video, video.new_zeros(12 - len(video), 32)])
        q, k, v = (each.unflatten(1, (4, 8)) for each in self.qkv(tokens).chunk(3, 1))
        k, v = k[: len(video)], v[: len(video)]
        starts = of_tensors([12], q), of_tensors([len(video)], k)
        options = (*starts, 12, self.longest, 0.0, 8**-0.5, False)
        return torch.ops.flash_attn._flash_attn_varlen_forward(q, k, v, *options)[0].flatten(1)


@pytest.mark.parametrize(("longest", "applied"), [(12, True), (11, False)])
def test_a_length_that_is_a_symbol_is_held_against_what_the_capture_asserts(longest: int, applied: bool) -> None:
    """No more than 12 tokens are padded to 12: the longest of 12 is long enough for any, and 11 is not."""
    program = capture.trace(Padded(longest).eval(), (torch.randn(5, 32),), dynamic={"video": [0]})
    result = Pipeline((CanonicalizeAttention(),)).run(program, strict=True)
    assert bool(list(program.calls(SDPA))) == applied
    kind = RemarkKind.APPLIED if applied else RemarkKind.MISSED
    assert [(remark.kind, remark.rule) for remark in result.remarks] == [(kind, "samples")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_program_serves_all_lengths(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    module = Attention().eval().to(dtype).requires_grad_(False)
    options = {"preset": "exact", "delegate": "eager", "strict": True}
    compiled = torch.compile(module, backend="lightint", dynamic=True, options=options)
    for tokens in (6, 9, 4, 9):
        video = torch.randn(2, tokens, 32, dtype=dtype)
        with torch.no_grad():
            expected = module.double()(video.double())
            module.to(dtype)
            torch.testing.assert_close(compiled(video).double(), expected, rtol=2e-2, atol=2e-2)
    assert "2 samples of known length" in " ".join(str(lightint_compile.report(compiled)).split())
    assert len(CompiledGraph.of(compiled)) == 1


class Video(nn.Module):
    """A video transformer whose attention is spelled so: tokens in the order of the grid, the batch folded."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attention, self.head = nn.Conv3d(4, 32, (1, 2, 2), (1, 2, 2)), Attention(), nn.Linear(32, 16)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.patch(latent)
        size = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = self.head(x + self.attention(x))
        return x.transpose(1, 2).unflatten(2, size[2:])


def test_behind_it_the_grid_is_known_and_attention_sparse() -> None:
    torch._dynamo.reset()
    module = Video().eval().requires_grad_(False)
    options = {"preset": "sparse", "delegate": "eager", "min_tokens": 0, "tile": [1, 2, 2], "density": 0.3}
    compiled = torch.compile(module, backend="lightint", options={**options, "require": ["sparse-attention"]})
    latent = torch.randn(1, 4, 4, 16, 16)
    with torch.no_grad():
        found, dense = compiled(latent), module(latent)
    assert not torch.equal(found, dense)
    torch.testing.assert_close(found, dense, rtol=0.3, atol=0.3)
    assert "key tiles" in str(lightint_compile.report(compiled))


def test_getitem_of_other_results_that_nothing_reads_is_no_obstacle(flash) -> None:
    program, _ = canonical(Attention(), torch.randn(1, 6, 32))
    assert not [node for node in program.graph.nodes if node.target is flash or node.target is operator.getitem]
