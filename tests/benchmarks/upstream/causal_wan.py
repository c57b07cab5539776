"""Self-Forcing's released causal Wan and its pipeline's loop, unedited, with random weights.

The text encoder and the VAE are stand-ins: one gives random embeddings, the other hands latents through.
``flash_attn`` is PyTorch's attention where it is not installed, for every way alike.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile.models.random_weights import fill_random

SIZES = {
    "model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 512, "in_dim": 16, "dim": 1536, "ffn_dim": 8960,
    "freq_dim": 256, "text_dim": 4096, "out_dim": 16, "num_heads": 12, "num_layers": 30,
}  # fmt: skip
"""Wan 2.1, 1.3B."""

LATENT = (16, 60, 104)
"""Channels, height and width of a latent frame at 480p: 1,560 tokens."""

CHUNK = 3


def _flash_attn() -> None:
    """One sample through PyTorch's attention; the released code asks for nothing else here."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, *_: Any, softmax_scale: Any = None, causal: bool = False, **__: Any
    ) -> Any:
        heads = [each.transpose(0, 1)[None] for each in (q, k, v)]
        return F.scaled_dot_product_attention(*heads, scale=softmax_scale, is_causal=causal)[0].transpose(0, 1)

    made = types.ModuleType("flash_attn")
    made.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    made.flash_attn_varlen_func = attend  # type: ignore[attr-defined]
    sys.modules["flash_attn"] = made


def _stub(name: str, **values: Any) -> None:
    made = types.ModuleType(name)
    vars(made).update(values)
    sys.modules[name] = made


class _Text(nn.Module):
    def forward(self, text_prompts: list[str]) -> dict[str, Tensor]:
        draw = torch.Generator("cuda").manual_seed(2)
        return {"prompt_embeds": torch.randn(1, 512, 4096, generator=draw, device="cuda", dtype=torch.bfloat16)}


class _Vae:
    def decode_to_pixel(self, latent: Tensor, use_cache: bool = False) -> Tensor:
        return latent


def pipeline(root: Path, window: int, layers: int) -> Any:
    """The released pipeline; ``window`` latent frames are attended to once it rolls, -1 keeps all."""
    _flash_attn()
    sys.path.insert(0, str(root))
    for name, place in {"wan": "wan", "wan.modules": "wan/modules", "pipeline": "pipeline"}.items():
        package = types.ModuleType(name)
        package.__path__ = [str(root / place)]
        sys.modules[name] = package
    _stub("wan.modules.tokenizers", HuggingfaceTokenizer=None)
    _stub("wan.modules.t5", umt5_xxl=None)
    _stub("wan.modules.vae", _video_vae=None)
    code = importlib.import_module("pipeline.causal_inference")
    wrapper, model = sys.modules["utils.wan_wrapper"], sys.modules["wan.modules.causal_model"].CausalWanModel

    def made(_: Any, path: str, **more: Any) -> nn.Module:
        with torch.device("cuda"):
            return fill_random(model(**(SIZES | {"num_layers": layers}), **more).to(torch.bfloat16))

    model.from_pretrained = classmethod(made)
    sink = {} if window < 0 else {"local_attn_size": window, "sink_size": CHUNK}
    generator = wrapper.WanDiffusionWrapper(timestep_shift=5.0, is_causal=True, **sink).eval().requires_grad_(False)
    given = types.SimpleNamespace(
        denoising_step_list=[1000, 750, 500, 250], warp_denoising_step=True, num_frame_per_block=CHUNK,
        independent_first_frame=False, context_noise=0,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        pipe = code.CausalInferencePipeline(given, "cuda", generator=generator, text_encoder=_Text(), vae=_Vae())
    pipe.num_transformer_blocks = layers
    return pipe


def noise(frames: int) -> Tensor:
    """Noise [1, F, C, H, W]."""
    draw = torch.Generator("cuda").manual_seed(3)
    return torch.randn(1, frames, *LATENT, generator=draw, device="cuda", dtype=torch.bfloat16)


def rollout(pipe: Any, frames: int) -> Tensor:
    """The released loop: latents [1, F, C, H, W], denoising noise drawn from a seed."""
    torch.manual_seed(4)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every timestep
        result: Tensor = pipe.inference(noise(frames), ["a prompt"], return_latents=True)[1]
    return result
