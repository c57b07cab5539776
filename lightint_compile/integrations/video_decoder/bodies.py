"""What stands around a VAE's decoder from latents to video frames, for each VAE that is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.errors import InputError
from lightint_compile.integrations.video_decoder.rebuild import HUNYUAN, WAN, class_name, rebuilt
from lightint_compile.integrations.video_decoder.tape import Tape


class WanBody(nn.Module):
    """Wan's ``decode`` for a chunk: frames out of patches where the VAE has them, and values cut to [-1, 1]."""

    def __init__(self, vae: nn.Module, tape: Tape) -> None:
        super().__init__()
        of_vae: Any = vae
        self.tape, self.patch = tape, of_vae.config.patch_size
        self.post_quant_conv = rebuilt(of_vae.post_quant_conv, "post_quant_conv", tape)
        self.decoder = rebuilt(of_vae.decoder, "decoder", tape)
        self._unpatchify: Callable[..., Tensor] = sys.modules[type(vae).__module__].unpatchify

    def forward(self, latents: Tensor) -> Tensor:
        """Latents ``[batch, channels, frames, height, width]`` to video frames ``[batch, 3, ...]``."""
        frames: Tensor = self.decoder(self.post_quant_conv(latents), first_chunk=self.tape.is_first)
        if self.patch is not None:
            frames = self._unpatchify(frames, patch_size=self.patch)
        return torch.clamp(frames, min=-1.0, max=1.0)


class HunyuanBody(nn.Module):
    """HunyuanVideo-1.5's ``decode`` is its decoder."""

    def __init__(self, vae: nn.Module, tape: Tape) -> None:
        super().__init__()
        of_vae: Any = vae
        self.decoder = rebuilt(of_vae.decoder, "decoder", tape)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents ``[batch, channels, frames, height, width]`` to video frames ``[batch, 3, ...]``."""
        frames: Tensor = self.decoder(latents)
        return frames


BODIES: dict[str, Callable[[nn.Module, Tape], nn.Module]] = {
    f"{WAN}.AutoencoderKLWan": WanBody,
    f"{HUNYUAN}.AutoencoderKLHunyuanVideo15": HunyuanBody,
}
"""By the full name of a VAE's class."""


def body_of(vae: Any, tape: Tape) -> nn.Module:
    """The path from latents to frames of a VAE, on a tape.

    Raises:
        InputError: the VAE is not known, decodes in tiles or slices, or holds a part that cannot be streamed.
    """
    body = BODIES.get(class_name(vae))
    if body is None:
        known = ", ".join(name.rpartition(".")[2] for name in BODIES)
        why = f"it is a {type(vae).__name__}; known are {known}"
        fix = "give one of these, as a pipeline holds it under vae"
        raise InputError("this VAE cannot be streamed", where="streaming_decoder", why=why, fix=fix)
    for flag, what in (("use_tiling", "tiles that are blended"), ("use_slicing", "slices of the batch")):
        if getattr(vae, flag):
            fix = f"call vae.disable_{flag.removeprefix('use_')}()"
            raise InputError("this VAE cannot be streamed", where=f"vae.{flag}", why=f"it decodes in {what}", fix=fix)
    return body(vae, tape)
