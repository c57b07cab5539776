"""Decoding latents chunk by chunk gives the frames of decoding them at once, for every VAE that is known."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_variants import mostly_slow
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.errors import InputError

autoencoders = pytest.importorskip("diffusers.models.autoencoders", reason="the extra diffusers is not installed")

WAN = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, "attn_scales": []}
NORMED = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
VAES: dict[str, tuple[str, dict[str, Any]]] = {
    "wan-2.1": ("AutoencoderKLWan", WAN | NORMED | {"temperal_downsample": [False, True, True]}),
    "wan-2.2": (
        "AutoencoderKLWan",
        WAN
        | NORMED
        | {"temperal_downsample": [False, True, True], "decoder_base_dim": 8, "is_residual": True, "patch_size": 2}
        | {"in_channels": 12, "out_channels": 12},
    ),
    "hunyuan-1.5": (
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 4, "block_out_channels": (8, 8, 16, 16, 16), "layers_per_block": 1},
    ),
}
EVERY = pytest.mark.parametrize("name", VAES)


@cache
def vae(name: str) -> Any:
    torch.manual_seed(0)
    kind, settings_ = VAES[name]
    made = getattr(autoencoders, kind)(**settings_).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.dim() == 1 else 0.15))
    return made


def latents(frames: int, seed: int = 1) -> Tensor:
    return torch.randn(1, 4, frames, 3, 5, generator=torch.Generator().manual_seed(seed))


def in_chunks(decoder: Any, whole: Tensor, lengths: Sequence[int]) -> Tensor:
    state, frames = None, []
    for part in whole.split(list(lengths), 2):
        made, state = decoder(part, state)
        frames.append(made)
    return torch.cat(frames, 2)


@EVERY
@settings(max_examples=6, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=4))
@torch.no_grad()
def test_chunks_of_any_lengths_are_the_whole(name: str, lengths: list[int]) -> None:
    whole = latents(sum(lengths))
    expected = vae(name).decode(whole).sample
    made = in_chunks(lightint_compile.streaming_decoder(vae(name)), whole, lengths)
    assert made.shape == expected.shape == (1, 3, 4 * sum(lengths) - 3, *expected.shape[3:])
    assert expected.std() > 0.05
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@EVERY
@torch.no_grad()
def test_float64_tells_rounding_from_a_fault_and_bfloat16_is_as_near_as_the_vae(name: str) -> None:
    exact, whole = copy.deepcopy(vae(name)).double(), latents(5)
    truth = exact.decode(whole.double()).sample
    made = in_chunks(lightint_compile.streaming_decoder(exact), whole.double(), [2, 1, 2])
    torch.testing.assert_close(made, truth, rtol=1e-11, atol=1e-12)
    half = copy.deepcopy(vae(name)).bfloat16()
    chunked = in_chunks(lightint_compile.streaming_decoder(half), whole.bfloat16(), [2, 1, 2])
    errors = [(each.double() - truth).norm() for each in (chunked, half.decode(whole.bfloat16()).sample)]
    assert errors[0] < 1.3 * errors[1]


@EVERY
@torch.no_grad()
def test_a_state_is_a_value(name: str) -> None:
    """It is forked by keeping it, is not changed by a call, and shares no memory with what the caller may write."""
    decoder = lightint_compile.streaming_decoder(vae(name))
    first, left, right = latents(2), latents(2, seed=2), latents(2, seed=3)
    given_ = first.clone()
    _, state = decoder(given_)
    given_.zero_()
    before = {key: value.clone() for key, value in state.items()}
    frames, _ = decoder(left, state)
    other, _ = decoder(right, state)
    again, _ = decoder(left, state)
    assert all(torch.equal(value, before[key]) for key, value in state.items())
    assert torch.equal(frames, again) and not torch.allclose(frames, other)
    expected = vae(name).decode(torch.cat([first, right], 2)).sample[:, :, -other.shape[2] :]
    torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_threads_share_a_decoder_and_a_copy_is_one_of_its_own() -> None:
    decoder = lightint_compile.streaming_decoder(vae("wan-2.1"))
    videos = [latents(4, seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda video: in_chunks(decoder, video, [1, 2, 1]), videos))
    for frames, video in zip(made, videos, strict=True):
        assert torch.equal(frames, in_chunks(copy.deepcopy(decoder), video, [1, 2, 1]))


@pytest.mark.parametrize("name", mostly_slow(VAES, quick={"hunyuan-1.5"}))
def test_compiled_it_is_two_programs_and_no_break(name: str, fresh_dynamo: None) -> None:
    decoder, whole = lightint_compile.streaming_decoder(vae(name)), latents(8)
    compiled = torch.compile(decoder, backend="lightint", fullgraph=True, options={"delegate": "eager"})
    made = in_chunks(compiled, whole, [2, 2, 2, 2])
    torch.testing.assert_close(made, vae(name).decode(whole).sample, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2


@EVERY
@torch.no_grad()
def test_the_vae_stays_as_it_is_and_weights_are_shared(name: str) -> None:
    mine = copy.deepcopy(vae(name))
    before, names = mine.decode(latents(2)).sample, set(dict(mine.named_modules()))
    decoder = lightint_compile.streaming_decoder(mine, memory_format=torch.channels_last_3d)
    laid_out = in_chunks(decoder, latents(2), [1, 1])
    assert set(dict(mine.named_modules())) == names
    torch.testing.assert_close(laid_out, before, rtol=1e-4, atol=1e-5)
    assert len(decoder.state_dict()) == len({value.data_ptr() for value in decoder.state_dict().values()})
    ours = {parameter.data_ptr() for parameter in decoder.parameters()}
    assert ours and ours <= {parameter.data_ptr() for parameter in mine.parameters()}


def refused(change: Any, name: str = "wan-2.1") -> str:
    mine = copy.deepcopy(vae(name))
    change(mine)
    with pytest.raises(InputError) as caught:
        lightint_compile.streaming_decoder(mine)
    return str(caught.value)


def test_what_would_not_be_equal_is_refused_with_its_place() -> None:
    def sees_later(mine: Any) -> None:
        mine.decoder.conv_in = nn.Conv3d(4, 16, 3, padding=1)

    def over_frames(mine: Any) -> None:
        mine.decoder.norm_out = nn.GroupNorm(1, 8)

    def unknown(mine: Any) -> None:
        mine.decoder.nonlinearity = type("Blend", (nn.Module,), {})()

    def hooked(mine: Any) -> None:
        mine.decoder.conv_out.register_forward_hook(lambda *_: None)

    assert "decoder.conv_in" in refused(sees_later) and "later frames" in refused(sees_later)
    assert "decoder.norm_out" in refused(over_frames) and "statistics" in refused(over_frames)
    assert "decoder.nonlinearity (Blend)" in refused(unknown)
    assert "hooks" in refused(hooked)
    assert "disable_tiling" in refused(lambda mine: mine.enable_tiling())
    with pytest.raises(InputError, match="known are AutoencoderKLWan, AutoencoderKLHunyuanVideo15"):
        lightint_compile.streaming_decoder(nn.Conv3d(4, 4, 1))


@torch.no_grad()
def test_a_state_or_latents_of_another_form_are_told() -> None:
    decoder = lightint_compile.streaming_decoder(vae("wan-2.1"))
    _, state = decoder(latents(1))
    with pytest.raises(InputError, match="another form"):
        decoder(latents(1)[:, :3])
    with pytest.raises(InputError, match="not of this decoder"):
        lightint_compile.streaming_decoder(vae("hunyuan-1.5"))(latents(1), state)
    with pytest.raises(InputError, match="of a video of another form"):
        decoder(torch.cat([latents(1)] * 2, 3), state)
