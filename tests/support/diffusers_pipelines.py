"""Pipelines of diffusers, unmodified: tiny components made from configurations as its own tests make them, no network.

Text goes in as embeddings, so no pipeline has a text encoder. Every transformer's width and depth are the smallest that
its positions allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

TOKENS, WORDS = 6, 16
"""Text tokens and their width."""


@dataclass(frozen=True)
class Piped:
    """A pipeline, and what a call of it is given besides text, seed and steps."""

    pipe: Any
    given: dict[str, Any]
    text: Callable[[torch.Generator], dict[str, Any]] = field(default=lambda draw: {"prompt_embeds": words(draw)})

    def __call__(self, seed: int = 1, steps: int = 3) -> Tensor:
        """What it makes of a seed: frames or images ``[1, ..., height, width]``."""
        torch.manual_seed(seed)  # one of them draws noise without its generator
        draw = torch.Generator().manual_seed(seed)
        given = {**self.text(draw), "output_type": "pt", **self.given}
        with torch.no_grad():
            made = self.pipe(num_inference_steps=steps, generator=draw, **given)
        result: Tensor = getattr(made, "frames", None) if hasattr(made, "frames") else made.images
        return result


def words(draw: torch.Generator, width: int = WORDS) -> Tensor:
    """Embeddings of a text ``[1, tokens, width]``."""
    return torch.randn(1, TOKENS, width, generator=draw)


def _piped(kind: type, given: dict[str, Any], text: Any = None, **components: Any) -> Piped:
    for part in components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipe = kind(**components)
    pipe.set_progress_bar_config(disable=True)
    return Piped(pipe, given, **({"text": text} if text else {}))


def _euler(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def _wan_vae() -> Any:
    torch.manual_seed(1)
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    spread = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return diffusers.AutoencoderKLWan(**sizes, temperal_downsample=[False, True, True], **spread)


def _wan(kind: type = diffusers.WanTransformer3DModel, **more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
    return kind(**(sizes | {"text_dim": WORDS, "freq_dim": 16, "ffn_dim": 32, "rope_max_seq_len": 32} | more))


_NO_TEXT = {"tokenizer": None, "text_encoder": None}
_VIDEO = {"height": 64, "width": 64, "num_frames": 9}


def wan() -> Piped:
    """Wan 2.1, with guidance."""

    def text(draw: torch.Generator) -> dict[str, Any]:
        return {"prompt_embeds": words(draw), "negative_prompt_embeds": words(draw)}

    parts = {"vae": _wan_vae(), "scheduler": _euler(shift=3.0), "transformer": _wan()}
    return _piped(diffusers.WanPipeline, {**_VIDEO, "guidance_scale": 4.0}, text, **_NO_TEXT, **parts)


def wan_of_two() -> Piped:
    """Wan 2.2: one transformer for steps of much noise, another for those of little; a multistep scheduler."""
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    parts = {"vae": _wan_vae(), "scheduler": scheduler, "transformer": _wan(), "transformer_2": _wan()}
    given = {**_VIDEO, "guidance_scale": 1.0}
    return _piped(diffusers.WanPipeline, given, **_NO_TEXT, **parts, boundary_ratio=0.8)


def wan_of_an_image() -> Piped:
    """Wan 2.2 TI2V: a time step for each token; the first frame is the image's, and its time is zero."""
    parts = {"vae": _wan_vae(), "scheduler": _euler(shift=3.0), "transformer": _wan()}
    given = {**_VIDEO, "guidance_scale": 1.0, "image": torch.zeros(1, 3, 64, 64)}
    kind = diffusers.WanImageToVideoPipeline
    return _piped(kind, given, **_NO_TEXT, **parts, image_processor=None, image_encoder=None, expand_timesteps=True)


def skyreels() -> Piped:
    """SkyReels-V2's diffusion forcing: noise levels staggered over the frames, in windows that overlap."""
    transformer = _wan(diffusers.SkyReelsV2Transformer3DModel, inject_sample_info=True)
    scheduler = diffusers.UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True)
    given = {"height": 64, "width": 64, "num_frames": 17, "base_num_frames": 9, "guidance_scale": 1.0}
    given |= {"overlap_history": 5, "ar_step": 1, "causal_block_size": 1, "addnoise_condition": 20}
    parts = {"vae": _wan_vae(), "scheduler": scheduler, "transformer": transformer}
    kind = diffusers.SkyReelsV2DiffusionForcingPipeline
    return _piped(kind, {**given, "prompt": None}, **_NO_TEXT, **parts)


def _hunyuan_vae() -> Any:
    torch.manual_seed(1)
    channels = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (8, 8, 8, 8)}
    blocks = {f"{way}_block_types": (f"HunyuanVideo{way.title()}Block3D",) * 4 for way in ("down", "up")}
    ratios = {"spatial_compression_ratio": 8, "temporal_compression_ratio": 4}
    return diffusers.AutoencoderKLHunyuanVideo(**channels, **blocks, **ratios, layers_per_block=1, norm_num_groups=4)


def hunyuan() -> Piped:
    """HunyuanVideo: text and video joined, with a mask of the text's padding."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "num_single_layers": 2}
    text = {"num_refiner_layers": 1, "text_embed_dim": WORDS, "pooled_projection_dim": 8, "guidance_embeds": True}
    forms = {"in_channels": 4, "out_channels": 4, "patch_size": 1, "patch_size_t": 1, "rope_axes_dim": (4, 4, 4)}
    transformer = diffusers.HunyuanVideoTransformer3DModel(**sizes, **text, **forms)

    def told(draw: torch.Generator) -> dict[str, Any]:
        mask = torch.ones(1, TOKENS, dtype=torch.int64)
        mask[:, -2:] = 0
        pooled = torch.randn(1, 8, generator=draw)
        return {"prompt_embeds": words(draw), "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}

    parts = {"vae": _hunyuan_vae(), "scheduler": _euler(shift=7.0), "transformer": transformer}
    none = {**_NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
    return _piped(diffusers.HunyuanVideoPipeline, {**_VIDEO, "guidance_scale": 4.5}, told, **none, **parts)


def cogvideox() -> Piped:
    """CogVideoX: text in front of video, DDIM."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "time_embed_dim": 2, "patch_size": 2}
    forms = {"sample_width": 8, "sample_height": 8, "sample_frames": 9, "max_text_seq_length": TOKENS}
    text = {"text_embed_dim": WORDS, "in_channels": 4, "out_channels": 4, "temporal_compression_ratio": 4}
    transformer = diffusers.CogVideoXTransformer3DModel(**sizes, **forms, **text)
    channels = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (8, 8, 8, 8)}
    blocks = {f"{way}_block_types": (f"CogVideoX{way.title()}Block3D",) * 4 for way in ("down", "up")}
    more = {"layers_per_block": 1, "norm_num_groups": 2, "temporal_compression_ratio": 4}
    vae = diffusers.AutoencoderKLCogVideoX(**channels, **blocks, **more)
    parts = {"vae": vae, "scheduler": diffusers.DDIMScheduler(), "transformer": transformer}
    return _piped(diffusers.CogVideoXPipeline, {**_VIDEO, "guidance_scale": 1.0}, **_NO_TEXT, **parts)


def _masked(draw: torch.Generator) -> dict[str, Any]:
    return {"prompt_embeds": words(draw), "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}


def ltx() -> Piped:
    """LTX-Video: video as a sequence, text by cross attention with a mask of its padding."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "in_channels": 8, "out_channels": 8}
    text = {"cross_attention_dim": 32, "caption_channels": WORDS}
    transformer = diffusers.LTXVideoTransformer3DModel(**sizes, **text, patch_size=1, patch_size_t=1)
    four, five = (8, 8, 8, 8), (1, 1, 1, 1, 1)
    scaling, flags = (True, True, False, False), (False, False, False, False)
    encoder = {"block_out_channels": four, "layers_per_block": five, "spatio_temporal_scaling": scaling}
    decoder = {"decoder_block_out_channels": four, "decoder_layers_per_block": five, "upsample_residual": flags}
    decoder |= {"decoder_spatio_temporal_scaling": scaling, "upsample_factor": (1, 1, 1, 1)}
    forms = {"decoder_inject_noise": (False,) * 5, "patch_size": 1, "patch_size_t": 1, "latent_channels": 8}
    causal = {"timestep_conditioning": False, "encoder_causal": True, "decoder_causal": False}
    vae = diffusers.AutoencoderKLLTXVideo(in_channels=3, out_channels=3, **encoder, **decoder, **forms, **causal)
    parts = {"vae": vae, "scheduler": _euler(), "transformer": transformer}
    given = {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 1.0}
    return _piped(diffusers.LTXPipeline, given, _masked, **_NO_TEXT, **parts)


def mochi() -> Piped:
    """Mochi: joint attention that drops the text's padding by its mask."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 2, "time_embed_dim": 4}
    text = {"pooled_projection_dim": 16, "text_embed_dim": WORDS, "in_channels": 12, "max_sequence_length": TOKENS}
    transformer = diffusers.MochiTransformer3DModel(**sizes, **text, out_channels=None, qk_norm="rms_norm")
    channels = {f"{way}_block_out_channels": (32, 32, 32, 32) for way in ("encoder", "decoder")}
    vae = diffusers.AutoencoderKLMochi(latent_channels=12, out_channels=3, layers_per_block=(1, 1, 1, 1, 1), **channels)
    parts = {"vae": vae, "scheduler": _euler(), "transformer": transformer}
    given = {"height": 64, "width": 64, "num_frames": 7, "guidance_scale": 1.0}
    return _piped(diffusers.MochiPipeline, given, _masked, **_NO_TEXT, **parts)


def allegro() -> Piped:
    """Allegro: rotary positions made by the pipeline. Its VAE decodes in tiles, of which so short a video has none."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "in_channels": 4, "out_channels": 4}
    text = {"cross_attention_dim": 24, "caption_channels": WORDS}
    transformer = diffusers.AllegroTransformer3DModel(**sizes, **text, sample_width=8, sample_height=8, sample_frames=8)
    channels = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (8, 8, 8, 8)}
    blocks = {f"{way}_block_types": (f"Allegro{way.title()}Block3D",) * 4 for way in ("down", "up")}
    more = {"layers_per_block": 1, "norm_num_groups": 2, "temporal_compression_ratio": 4}
    vae = diffusers.AutoencoderKLAllegro(**channels, **blocks, **more)
    vae.enable_tiling()
    parts = {"vae": vae, "scheduler": diffusers.DDIMScheduler(), "transformer": transformer}
    given = {"height": 64, "width": 64, "num_frames": 8, "guidance_scale": 1.0, "output_type": "latent"}
    return _piped(diffusers.AllegroPipeline, given, _masked, **_NO_TEXT, **parts)


def sana() -> Piped:
    """SANA-Video: linear attention over the video, DPM-Solver."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "in_channels": 4, "out_channels": 4}
    text = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24}
    forms = {"caption_channels": WORDS, "sample_size": 8, "patch_size": (1, 2, 2), "rope_max_seq_len": 32}
    more = {"qk_norm": "rms_norm_across_heads"}
    transformer = diffusers.SanaVideoTransformer3DModel(**sizes, **text, **forms, **more)
    scheduler = diffusers.DPMSolverMultistepScheduler()
    given = {"height": 64, "width": 64, "frames": 9, "guidance_scale": 1.0, "use_resolution_binning": False}
    parts = {"vae": _wan_vae(), "scheduler": scheduler, "transformer": transformer}
    return _piped(diffusers.SanaVideoPipeline, given, _masked, **_NO_TEXT, **parts)


def sana_wm() -> Piped:
    """SANA-WM: a world model, a whole video along cameras; linear and softmax attention in turn, rays of pixels."""
    torch.manual_seed(0)
    sizes = {"num_layers": 4, "num_attention_heads": 2, "linear_head_dim": 24, "hidden_size": 48, "softmax_every_n": 2}
    text = {"caption_channels": WORDS, "in_channels": 8, "chunk_plucker_post_attn_blocks": 4, "mlp_ratio": 2.0}
    transformer = diffusers.SanaWMTransformer3DModel(**sizes, **text)
    four = {"block_out_channels": (4, 8, 8, 8), "layers_per_block": (1,) * 5, "latent_channels": 8}
    decoder = {"decoder_block_out_channels": (8, 16, 32), "decoder_layers_per_block": (1,) * 4}
    torch.manual_seed(1)
    ratios = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
    vae = diffusers.AutoencoderKLLTX2Video(**four, **decoder, **ratios)
    poses = np.tile(np.eye(4, dtype=np.float32), (17, 1, 1))
    poses[:, 2, 3] = np.linspace(0.0, 1.0, 17)

    def told(draw: torch.Generator) -> dict[str, Any]:
        mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
        both = {"prompt_embeds": words(draw)[:, None], "negative_prompt_embeds": words(draw)[:, None]}
        return {**both, "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}

    parts = {"vae": vae, "scheduler": _euler(), "transformer": transformer}
    given = {"image": Image.new("RGB", (256, 256), "teal"), "prompt": "", "c2w": poses, "guidance_scale": 4.0}
    given |= {"height": 256, "width": 256, "intrinsics": [200.0, 200.0, 128.0, 128.0]}
    return _piped(diffusers.SanaWMPipeline, given, told, **_NO_TEXT, **parts)


def anyflow_far() -> Piped:
    """AnyFlow FAR: causal chunks of 1, 3, 3 and 3 frames, caches written in place, old chunks in larger patches."""
    sizes = {"attention_head_dim": 16, "full_chunk_limit": 2, "chunk_partition": (1, 3, 3, 3)}
    transformer = _wan(diffusers.AnyFlowFARTransformer3DModel, **sizes)
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    parts = {"vae": _wan_vae(), "scheduler": scheduler, "transformer": transformer}
    given = {"height": 128, "width": 128, "num_frames": 37, "guidance_scale": 1.0}
    return _piped(diffusers.AnyFlowFARPipeline, given, **_NO_TEXT, **parts)


def _image_vae(channels: int) -> Any:
    torch.manual_seed(1)
    sizes = {"in_channels": 3, "out_channels": 3, "block_out_channels": (4,), "layers_per_block": 1}
    forms = {"latent_channels": channels, "norm_num_groups": 1, "use_quant_conv": False, "use_post_quant_conv": False}
    return diffusers.AutoencoderKL(**sizes, **forms, sample_size=32, shift_factor=0.06, scaling_factor=1.5)


def _pooled(draw: torch.Generator) -> dict[str, Any]:
    return {"prompt_embeds": words(draw), "pooled_prompt_embeds": torch.randn(1, WORDS, generator=draw)}


def flux() -> Piped:
    """FLUX.1: an image, text joined in front."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "num_single_layers": 2}
    text = {"joint_attention_dim": WORDS, "pooled_projection_dim": WORDS, "axes_dims_rope": [4, 4, 8]}
    transformer = diffusers.FluxTransformer2DModel(**sizes, **text, patch_size=1, in_channels=4)
    none = {**_NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
    parts = {"vae": _image_vae(1), "scheduler": _euler(), "transformer": transformer}
    return _piped(diffusers.FluxPipeline, {"height": 16, "width": 16}, _pooled, **none, **parts)


def stable_diffusion_3() -> Piped:
    """Stable Diffusion 3, without guidance."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "in_channels": 4, "out_channels": 4}
    text = {"joint_attention_dim": WORDS, "caption_projection_dim": 32, "pooled_projection_dim": WORDS}
    transformer = diffusers.SD3Transformer2DModel(**sizes, **text, sample_size=32, patch_size=1)
    none = {f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")}
    parts = {"vae": _image_vae(4), "scheduler": _euler(), "transformer": transformer}
    given = {"height": 16, "width": 16, "guidance_scale": 1.0}
    return _piped(diffusers.StableDiffusion3Pipeline, given, _pooled, **none, **parts)


def helios() -> Piped:
    """Helios: chunks of frames with a memory of long, middle and short history."""
    extra = {"cross_attn_norm": True, "rope_dim": (4, 4, 4), "has_multi_term_memory_patch": True}
    extra |= {"guidance_cross_attn": True, "zero_history_timestep": True, "is_amplify_history": False}
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
    text = {"text_dim": WORDS, "freq_dim": 16, "ffn_dim": 32, "patch_size": (1, 2, 2)}
    transformer = diffusers.HeliosTransformer3DModel(**sizes, **text, **extra)
    scheduler = diffusers.HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True)
    parts = {"vae": _wan_vae(), "scheduler": scheduler, "transformer": transformer}
    given = {"height": 64, "width": 64, "num_frames": 33, "guidance_scale": 1.0, "num_latent_frames_per_chunk": 3}
    return _piped(diffusers.HeliosPipeline, given, **_NO_TEXT, **parts)


PIPELINES: dict[str, Callable[[], Piped]] = {
    "WanPipeline": wan,
    "WanPipeline, two transformers": wan_of_two,
    "WanImageToVideoPipeline, a time for each token": wan_of_an_image,
    "SkyReelsV2DiffusionForcingPipeline": skyreels,
    "HunyuanVideoPipeline": hunyuan,
    "CogVideoXPipeline": cogvideox,
    "LTXPipeline": ltx,
    "MochiPipeline": mochi,
    "AllegroPipeline": allegro,
    "SanaVideoPipeline": sana,
    "SanaWMPipeline": sana_wm,
    "AnyFlowFARPipeline": anyflow_far,
    "HeliosPipeline": helios,
    "FluxPipeline": flux,
    "StableDiffusion3Pipeline": stable_diffusion_3,
}
