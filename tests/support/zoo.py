"""Tiny random-weight video transformers of diffusers, one call away: ``zoo.build("wan") -> (module, kwargs)``.

Every model has its real architecture at toy width, so that it traces in seconds. Weights and inputs come from fixed
seeds, and tables that start at zero are randomised: otherwise adaptive norms and gates would hide errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

TEXT = 12  # text tokens of every example
WIDTH = 16  # width of the text embeddings of most examples


@dataclass(frozen=True)
class Entry:
    """One model: its diffusers class, its constructor arguments, its inputs, and an optional wrapper."""

    kind: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    wrap: Callable[[nn.Module], nn.Module] = field(default=lambda module: module)


def names() -> list[str]:
    """Every model of the zoo."""
    return list(ZOO)


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The model called ``name`` in eval mode on the CPU in fp32, and the keyword arguments of one forward call.

    Skips the test where diffusers is not installed. With ``return_dict=False`` already in the arguments.
    """
    diffusers = pytest.importorskip("diffusers", reason="the zoo is made of diffusers models")
    diffusers.utils.logging.set_verbosity_error()
    entry = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = entry.wrap(getattr(diffusers, entry.kind)(**entry.config)).eval().requires_grad_(False)
        _randomise_zeros(module)
        torch.manual_seed(1)
        return module, entry.inputs()


@cache
def program(name: str) -> Any:
    """The traced program of a model, made once a test session; take a ``snapshot()`` before editing it."""
    from lightint_compile import capture

    module, kwargs = build(name)
    with torch.no_grad():
        return capture.trace(module, (), kwargs)


def _randomise_zeros(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.numel() and not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def _text(length: int = TEXT, width: int = WIDTH) -> Tensor:
    return torch.randn(1, length, width)


def _step(value: float = 500.0) -> Tensor:
    return torch.tensor([value])


def _call(**kwargs: Any) -> dict[str, Any]:
    return kwargs | {"return_dict": False}


# --- Wan and its kin: (batch, channels, frames, height, width), patch 1x2x2, text by cross-attention -----------------

_WAN_LATENT = (1, 4, 4, 16, 16)
_WAN: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": (1, 2, 2),
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": WIDTH,
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}


def _wan() -> dict[str, Any]:
    return _call(hidden_states=torch.randn(_WAN_LATENT), timestep=torch.tensor([500]), encoder_hidden_states=_text())


def _wan_per_token() -> dict[str, Any]:
    tokens = 4 * 8 * 8
    return _wan() | {"timestep": torch.full((1, tokens), 500.0)}


def _skyreels_df() -> dict[str, Any]:
    return _wan() | {
        "timestep": torch.tensor([[0, 0, 500, 500]]),
        "enable_diffusion_forcing": True,
        "fps": torch.tensor([1]),
    }


_HELIOS = {key: value for key, value in _WAN.items() if key not in ("qk_norm", "cross_attn_norm", "rope_max_seq_len")}
_HELIOS |= {
    "rope_dim": (4, 6, 6),
    "has_multi_term_memory_patch": True,
    "guidance_cross_attn": True,
    "zero_history_timestep": True,
}


def _helios() -> dict[str, Any]:
    """History of 8, 2 and 3 frames at three resolutions in front of 2 current frames."""
    return _call(
        hidden_states=torch.randn(1, 4, 2, 16, 16),
        timestep=torch.tensor([500]),
        encoder_hidden_states=_text(),
        indices_hidden_states=torch.tensor([[19, 20]]),
        indices_latents_history_short=torch.tensor([[0, 17, 18]]),
        indices_latents_history_mid=torch.tensor([[15, 16]]),
        indices_latents_history_long=torch.arange(1, 9)[None],
        latents_history_short=torch.randn(1, 4, 3, 16, 16),
        latents_history_mid=torch.randn(1, 4, 2, 16, 16),
        latents_history_long=torch.randn(1, 4, 8, 16, 16),
    )


# --- Hunyuan: text behind the video in one sequence -------------------------------------------------------------------

_HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": WIDTH,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}


def _hunyuan() -> dict[str, Any]:
    return _wan() | {
        "encoder_attention_mask": torch.ones(1, TEXT, dtype=torch.long),
        "pooled_projections": torch.randn(1, 8),
        "guidance": _step(6000.0),
    }


_HUNYUAN15 = {
    "in_channels": 9,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": WIDTH,
    "text_embed_2_dim": 12,
    "image_embed_dim": 10,
    "rope_axes_dim": (4, 6, 6),
    "target_size": 16,
}


class HunyuanVideo15Vision(nn.Module):
    """The video half of HunyuanVideo-1.5: everything but the text embedding, whose Python branches break the graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """Latent [B,C,T,H,W] (patch 1), embedded text [B,L,width] and its mask [B,L], to the velocity."""
        model = self.model
        batch, _, *grid = hidden_states.shape
        rotary, conditioning = model.rope(hidden_states), model.time_embed(timestep)
        tokens = model.x_embedder(hidden_states)
        for block in model.transformer_blocks:
            tokens, text = block(tokens, text, conditioning, text_mask, rotary)
        velocity = model.proj_out(model.norm_out(tokens, conditioning))
        return (velocity.reshape(batch, *grid, -1).permute(0, 4, 1, 2, 3),)


def _hunyuan15() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 9, 4, 8, 8),
        "timestep": _step(),
        "text": _text(width=32),
        "text_mask": torch.ones(1, TEXT, dtype=torch.bool),
    }


# --- Cosmos -----------------------------------------------------------------------------------------------------------

_COSMOS = {
    "out_channels": 4,
    "patch_size": (1, 2, 2),
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "mlp_ratio": 2,
    "text_embed_dim": 32,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
    "concat_padding_mask": False,
}
_COSMOS_IMAGE = _COSMOS | {"in_channels": 4, "rope_scale": (2.0, 1.0, 1.0), "extra_pos_embed_type": "learnable"}
_COSMOS_WORLD = _COSMOS | {"in_channels": 5, "rope_scale": (1.0, 2.0, 2.0), "extra_pos_embed_type": None}


def _cosmos() -> dict[str, Any]:
    return _call(
        hidden_states=torch.randn(1, 4, 2, 16, 16),
        timestep=torch.tensor([500]),
        encoder_hidden_states=_text(width=32),
        attention_mask=torch.ones(1, TEXT, dtype=torch.bool),
        fps=30,
    )


def _cosmos_world() -> dict[str, Any]:
    return _call(
        hidden_states=torch.randn(1, 4, 2, 16, 16),
        timestep=torch.full((1, 1, 2, 1, 1), 0.5),
        encoder_hidden_states=_text(width=32),
        fps=16,
        condition_mask=torch.ones(1, 1, 2, 16, 16),
    )


# --- Others -----------------------------------------------------------------------------------------------------------

_SANA_WM = {
    "in_channels": 8,
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "linear_head_dim": 32,
    "softmax_every_n": 2,
    "caption_channels": WIDTH,
    "mlp_ratio": 2.0,
}


def _sana_wm() -> dict[str, Any]:
    """Four frames; the camera is a flattened camera-to-world matrix and (fx, fy, cx, cy) a frame."""
    frames = 4
    pose = torch.eye(4).flatten().expand(1, frames, 16)
    intrinsics = torch.full((1, frames, 4), 4.0)
    return _call(
        hidden_states=torch.randn(1, 8, frames, 8, 8),
        timestep=torch.full((1, 1, frames), 500.0),
        encoder_hidden_states=torch.randn(1, 1, TEXT, WIDTH),
        encoder_attention_mask=torch.ones(1, TEXT, dtype=torch.long),
        camera_conditions=torch.cat([pose, intrinsics], -1),
        chunk_plucker=torch.randn(1, 48, frames, 8, 8),
    )


_COGVIDEOX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 8,
    "text_embed_dim": WIDTH,
    "max_text_seq_length": TEXT,
    "patch_size": 2,
    "sample_width": 16,
    "sample_height": 16,
    "sample_frames": 5,
    "temporal_compression_ratio": 4,
}


def _cogvideox() -> dict[str, Any]:
    """Frames before channels; text in front of the video in one sequence."""
    return _call(
        hidden_states=torch.randn(1, 2, 4, 16, 16), encoder_hidden_states=_text(), timestep=torch.tensor([500])
    )


_LATTE = {
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 1,
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "sample_size": 8,
    "patch_size": 2,
    "video_length": 2,
    "caption_channels": 32,
    "cross_attention_dim": 24,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
}


def _latte() -> dict[str, Any]:
    return _call(
        hidden_states=torch.randn(1, 4, 2, 8, 8), timestep=torch.tensor([500]), encoder_hidden_states=_text(8, 32)
    )


_LTX = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": WIDTH,
}


def _ltx() -> dict[str, Any]:
    """Tokens arrive flattened; the grid is only known from three integers."""
    frames, height, width = 2, 4, 4
    return _call(
        hidden_states=torch.randn(1, frames * height * width, 8),
        encoder_hidden_states=_text(),
        timestep=torch.tensor([500]),
        encoder_attention_mask=torch.ones(1, TEXT, dtype=torch.bool),
        num_frames=frames,
        height=height,
        width=width,
    )


_KANDINSKY5 = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": WIDTH,
    "in_text_dim2": 8,
    "time_dim": 32,
    "model_dim": 48,
    "ff_dim": 128,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "patch_size": (1, 2, 2),
    "axes_dims": (8, 8, 8),
    "visual_cond": False,
}


def _kandinsky5() -> dict[str, Any]:
    """Channels last."""
    return _call(
        hidden_states=torch.randn(1, 2, 16, 16, 4),
        encoder_hidden_states=_text(),
        timestep=_step(),
        pooled_projections=torch.randn(1, 8),
        visual_rope_pos=[torch.arange(2), torch.arange(8), torch.arange(8)],
        text_rope_pos=torch.arange(TEXT),
    )


_MOCHI = {
    "in_channels": 12,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "patch_size": 2,
    "pooled_projection_dim": 16,
    "qk_norm": "rms_norm",
    "text_embed_dim": WIDTH,
    "time_embed_dim": 4,
    "max_sequence_length": 16,
}


def _mochi() -> dict[str, Any]:
    """Only the valid text tokens join the attention, so its length is data dependent."""
    return _call(
        hidden_states=torch.randn(1, 12, 2, 16, 16),
        encoder_hidden_states=_text(16),
        timestep=torch.tensor([500]),
        encoder_attention_mask=torch.ones(1, 16, dtype=torch.bool),
    )


ZOO: dict[str, Entry] = {
    "wan": Entry("WanTransformer3DModel", _WAN, _wan),
    "wan22_ti2v": Entry("WanTransformer3DModel", _WAN, _wan_per_token),
    "skyreels_v2_df": Entry(
        "SkyReelsV2Transformer3DModel", _WAN | {"inject_sample_info": True, "num_frame_per_block": 2}, _skyreels_df
    ),
    "helios": Entry("HeliosTransformer3DModel", _HELIOS, _helios),
    "hunyuan_video": Entry("HunyuanVideoTransformer3DModel", _HUNYUAN, _hunyuan),
    "hunyuan_video15": Entry("HunyuanVideo15Transformer3DModel", _HUNYUAN15, _hunyuan15, HunyuanVideo15Vision),
    "cosmos": Entry("CosmosTransformer3DModel", _COSMOS_IMAGE, _cosmos),
    "cosmos_v2w": Entry("CosmosTransformer3DModel", _COSMOS_WORLD, _cosmos_world),
    "sana_wm": Entry("SanaWMTransformer3DModel", _SANA_WM, _sana_wm),
    "cogvideox": Entry("CogVideoXTransformer3DModel", _COGVIDEOX, _cogvideox),
    "latte": Entry("LatteTransformer3DModel", _LATTE, _latte),
    "ltx": Entry("LTXVideoTransformer3DModel", _LTX, _ltx),
    "kandinsky5": Entry("Kandinsky5Transformer3DModel", _KANDINSKY5, _kandinsky5),
    "mochi": Entry("MochiTransformer3DModel", _MOCHI, _mochi),
}
