"""Text encoders of transformers with random weights, as a model's text needs them: what they cost is what is asked.

A prompt is given as random token numbers, so nothing is downloaded and no tokenizer is needed. Each reads the tokens
that count and no padding: behind a causal model's tokens, or masked for a bidirectional one, padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.errors import extra_needed

from .devices import checked_device

QWEN_25_7B: dict[str, Any] = {
    **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944},
    "vocab_size": 152064,
}
UMT5_XXL: dict[str, Any] = {"num_layers": 24, "num_heads": 64, "d_kv": 64, "d_ff": 10240, "vocab_size": 256384}
BYT5_SMALL: dict[str, Any] = {"num_layers": 12, "num_heads": 6, "d_kv": 64, "d_ff": 3584, "vocab_size": 384}
"""Of the released text encoders, all but the width, which is the model's."""

OF_A_GENERATOR: dict[str, Any] = {"use_cache": False, "bos_token_id": None, "eos_token_id": None}
"""What a language model has for going on with a text, which nobody does here."""

SMALL_QWEN = {**QWEN_25_7B, **{"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}}
SMALL_QWEN |= {"intermediate_size": 32, "vocab_size": 64}
SMALL_T5 = {"num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 32, "vocab_size": 64}
"""The same with few and narrow layers, for a CPU."""

TEMPLATE_TOKENS = 108
"""Of the instruction in front of a prompt that HunyuanVideo-1.5 gives its language model and drops from the result."""

UNREAD_LAYERS = 2
"""Last layers of that language model behind the hidden states that are read; they are left out here."""

TextEncoder = Callable[[], Tensor]
"""What encodes one prompt to [1, tokens, width]; the same in every call."""


def qwen_encoder(
    width: int, tokens: int, device: torch.device | str, dtype: torch.dtype, seed: int, *, small: bool
) -> tuple[TextEncoder, str]:
    """The language model of Qwen2.5-VL-7B as HunyuanVideo-1.5 reads it, and what it is, for people.

    Raises:
        InputError: transformers is not installed.
    """
    with extra_needed("diffusers", "there is nothing to encode a prompt with", "Qwen2_5_VLTextModel"):
        from transformers import Qwen2_5_VLTextModel
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    settings = dict(SMALL_QWEN if small else QWEN_25_7B)
    settings["num_hidden_layers"] -= UNREAD_LAYERS
    half = width // settings["num_attention_heads"] // 2
    axes = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": axes}
    config = Qwen2_5_VLTextConfig(hidden_size=width, rope_parameters=rotary, **OF_A_GENERATOR, **settings)
    model = _random(lambda: Qwen2_5_VLTextModel(config), device, dtype, seed)
    model.norm = nn.Identity()  # hidden states between layers are not normalised
    return _encoder(model, tokens, TEMPLATE_TOKENS, seed), _told(model, tokens + TEMPLATE_TOKENS)


def umt5_encoder(
    width: int, tokens: int, device: torch.device | str, dtype: torch.dtype, seed: int, *, small: bool
) -> tuple[TextEncoder, str]:
    """UMT5-XXL's encoder, and what it is, for people.

    Raises:
        InputError: transformers is not installed.
    """
    with extra_needed("diffusers", "there is nothing to encode a prompt with", "UMT5EncoderModel"):
        from transformers import UMT5Config, UMT5EncoderModel
    return _t5(UMT5EncoderModel, UMT5Config, UMT5_XXL, width, tokens, device, dtype, seed, small)


def byt5_encoder(
    width: int, tokens: int, device: torch.device | str, dtype: torch.dtype, seed: int, *, small: bool
) -> tuple[TextEncoder, str]:
    """ByT5-small's encoder, which reads the glyphs of a quoted text, and what it is, for people.

    Raises:
        InputError: transformers is not installed.
    """
    with extra_needed("diffusers", "there is nothing to encode a prompt with", "T5EncoderModel"):
        from transformers import T5Config, T5EncoderModel
    return _t5(T5EncoderModel, T5Config, BYT5_SMALL, width, tokens, device, dtype, seed, small)


def _t5(
    kind: Any,
    described: Any,
    released: dict[str, Any],
    width: int,
    tokens: int,
    device: torch.device | str,
    dtype: torch.dtype,
    seed: int,
    small: bool,
) -> tuple[TextEncoder, str]:
    """An encoder of T5's family, of its class and that of its configuration."""
    config = described(d_model=width, feed_forward_proj="gated-gelu", **(SMALL_T5 if small else released))
    model = _random(lambda: kind(config), device, dtype, seed)
    return _encoder(model, tokens, 0, seed), _told(model, tokens)


def _encoder(model: Any, tokens: int, dropped: int, seed: int) -> TextEncoder:
    """Runs the model on random tokens; the first of the result are dropped."""
    drawn = torch.randint(model.config.vocab_size, (1, dropped + tokens), generator=torch.Generator().manual_seed(seed))
    numbers = drawn.to(next(model.parameters()).device)

    @torch.no_grad()
    def encode() -> Tensor:
        hidden: Tensor = model(input_ids=numbers).last_hidden_state
        return hidden[:, dropped:].contiguous()

    return encode


def _random(make: Callable[[], Any], device: torch.device | str, dtype: torch.dtype, seed: int) -> Any:
    place = checked_device(device)
    with torch.random.fork_rng([place] if place.type == "cuda" else []), place:
        torch.manual_seed(seed)
        model = make()
    # the own method of transformers keeps modules in float32 that a release does not
    return nn.Module.to(model, dtype).eval().requires_grad_(False)


def _told(model: nn.Module, tokens: int) -> str:
    count = sum(each.numel() for each in model.parameters())
    size = f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"
    return f"{type(model).__name__}, {size} parameters, {tokens} tokens"
