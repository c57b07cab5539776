"""Video VAEs of diffusers with random weights, as a model's latents need them: channels have to agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightint_compile.errors import extra_needed

from .devices import checked_device
from .world_model import VideoDecoder

SMALL_HUNYUAN: dict[str, Any] = {"block_out_channels": (8, 8, 16, 16, 16), "layers_per_block": 1}
"""The same up-samplings with few channels, for a CPU."""

WAN_22: dict[str, Any] = {"base_dim": 160, "decoder_base_dim": 256}
SMALL_WAN: dict[str, Any] = {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1}


def hunyuan_decoder(
    channels: int, device: torch.device | str, dtype: torch.dtype, seed: int, *, small: bool
) -> VideoDecoder:
    """HunyuanVideo-1.5's VAE, 16 x 16 pixels a latent pixel; widths as released, or `small` ones.

    Raises:
        InputError: diffusers is not installed.
    """
    widths = SMALL_HUNYUAN if small else {}
    vae = _random("AutoencoderKLHunyuanVideo15", device, dtype, seed, latent_channels=channels, **widths)
    return VideoDecoder(vae, f"{_told(vae)}, random weights", scale=float(vae.config["scaling_factor"]))


def wan_decoder(
    channels: int, device: torch.device | str, dtype: torch.dtype, seed: int, *, small: bool, width: float = 1.0
) -> VideoDecoder:
    """Wan 2.2's VAE of 16 x 16 pixels a latent pixel; widths as released, or `small` ones.

    Its latents are taken as normal already: a mean and a deviation of each channel are weights of a release.

    Args:
        width: the share of the decoder's released width that pruning left in every layer.

    Raises:
        InputError: diffusers is not installed.
    """
    base = (SMALL_WAN if small else WAN_22)["decoder_base_dim"]
    settings = {
        **(SMALL_WAN if small else WAN_22),
        **{"decoder_base_dim": round(base * width)},
        **{"z_dim": channels, "in_channels": 12, "out_channels": 12, "is_residual": True, "patch_size": 2},
        **{"scale_factor_spatial": 16, "temperal_downsample": [False, True, True]},
        **{"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels},
    }
    vae = _random("AutoencoderKLWan", device, dtype, seed, **settings)
    pruned = f", pruned to {width:g} of its width" if width != 1 else ""
    return VideoDecoder(vae, f"{_told(vae)}{pruned}, random weights")


def _told(vae: nn.Module) -> str:
    decoder = vae.decoder
    assert isinstance(decoder, nn.Module)
    millions = sum(each.numel() for each in decoder.parameters()) / 1e6
    return f"{type(vae).__name__}, {millions:.3g} M parameters in its decoder"


def _random(name: str, device: torch.device | str, dtype: torch.dtype, seed: int, **settings: Any) -> Any:
    with extra_needed("diffusers", "there is no VAE to decode with", name):
        from diffusers.models import autoencoders
    place = checked_device(device)
    with torch.random.fork_rng([place] if place.type == "cuda" else []), place:
        torch.manual_seed(seed)
        vae = getattr(autoencoders, name)(**settings)
    # the own method of diffusers warns of modules to keep in float32, of which these have none
    return nn.Module.to(vae, dtype).eval().requires_grad_(False)
