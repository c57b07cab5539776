"""Keys that the sm_90 kernel's descriptors cannot read where they are: they are copied, and the launches stay bound."""

import pytest
import torch
from attention_cases import Site

adapter = pytest.importorskip("lightint_compile.kernels.hopper_adapter", reason="Triton is not installed")

from lightint_compile import kernels  # noqa: E402
from lightint_compile.kernels import planning  # noqa: E402
from lightint_compile.kernels.spans import Cutting  # noqa: E402
from lightint_compile.kernels.steps import ContextPools  # noqa: E402

REAL = Site((4, 30, 52), (8, 30, 52), (4, 8, 4), prefix=77, heads=4, key_heads=4, head_dim=128, batch=2)
POLICY = {
    "density": 0.3, "coverage": None, "protect_frames": 0, "neighbours": 1, "context_density": None, "scale": 128**-0.5,
}  # fmt: skip


def two_samples(device, part=None):
    """Query, text, context and current keys and values of two samples; ``part`` of them as some of twice the heads."""
    layout = REAL.layout
    lengths = layout.prefix, layout.context_tokens, layout.current_tokens

    def made(name, tokens):
        torch.manual_seed(tokens + len(name))
        heads = torch.randn(2, 4, tokens, 128, device=device).to(torch.bfloat16)
        if name != part:
            return heads
        return torch.cat([heads, heads], 1)[:, 4:]

    names = "text", "context", "current"
    keys, values = ([made(name, tokens) for name, tokens in zip(names, lengths, strict=True)] for _ in "kv")
    return made("query", layout.current_tokens), keys, values


def bound(query, keys, values):
    cut = Cutting([key.shape[2] for key in keys], REAL.layout)
    spans = cut.filled(keys), cut.filled(values)
    return adapter.bind(query, *spans, REAL.layout, POLICY, pools=ContextPools(), parts=0)


@pytest.mark.parametrize("part", ["query", "text", "context", "current"])
def test_some_heads_of_several_samples_are_copied_in_front_of_bound_launches(part):
    query, keys, values = two_samples("cpu", part)
    copies = bound(query, keys, values).copies
    assert copies.query == (part == "query",)
    assert copies.keys == copies.values == tuple(part == name for name in ("text", "context", "current"))
    cut = Cutting([key.shape[2] for key in keys], REAL.layout)
    copied = copies.of(query, cut.filled(keys), cut.filled(values))
    for whole, own in zip(copied[1], keys, strict=True):
        assert torch.equal(whole, own) and whole.is_contiguous()


def test_what_is_read_where_it_is_needs_no_copy():
    assert not hasattr(bound(*two_samples("cpu")), "copies")
    one = two_samples("cpu", "text")
    first = one[0][:1], [key[:1] for key in one[1]], [value[:1] for value in one[2]]
    assert not hasattr(bound(*first), "copies")  # heads of one sample lie one after the other


def test_a_query_keeps_its_memory_order():
    query = torch.randn(2, 8, 6, 128).transpose(1, 2)[:, 2:]
    copied, _, _ = adapter.Copies((True,), (False,) * 3, (False,) * 3).of(query, *[adapter.Spans(*[query] * 3)] * 2)
    assert torch.equal(copied, query) and copied.stride(1) < copied.stride(2)


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["query", "text", "context", "current"])
def test_copied_spans_give_the_same_bits_without_steps(part, monkeypatch):
    tensors, strided = two_samples("cuda"), two_samples("cuda", part)
    if kernels.implementation(tensors[0]) != "hopper":
        pytest.skip("the sm_90 kernel does not run here")
    planning.forget()
    with kernels.using("hopper"):
        expected = kernels.sparse_attention_segments(*tensors, **REAL.grids)
        monkeypatch.setattr(planning, "run_steps", None)
        for _ in range(3):
            assert torch.equal(kernels.sparse_attention_segments(*strided, **REAL.grids), expected)
