"""Video decoders of VAEs chunk by chunk: the frames are those of decoding all latents at once.

decoder = lightint_compile.streaming_decoder(pipe.vae)
frames, state = decoder(latents[:, :, :4])
frames, state = decoder(latents[:, :, 4:8], state)
"""

from __future__ import annotations

from typing import Any

import torch

from lightint_compile.integrations.video_decoder.decoder import StreamingDecoder
from lightint_compile.integrations.video_decoder.tape import DecoderState

__all__ = ["DecoderState", "StreamingDecoder", "streaming_decoder"]


def streaming_decoder(vae: Any, *, memory_format: torch.memory_format = torch.contiguous_format) -> StreamingDecoder:
    """The decoder of a causal video VAE, for latent frames that come chunk by chunk.

    Known are ``AutoencoderKLHunyuanVideo15`` and ``AutoencoderKLWan`` of diffusers, of Wan the decoders of 2.1 and 2.2.
    The idea is that of Wan's feature cache: a causal convolution needs the last frames of its input and nothing else
    of the past. Here the caches are a value that the caller holds, chunks have any length, and attention over earlier
    frames (HunyuanVideo-1.5) keeps its keys and values.

    Args:
        vae: the VAE, with its weights, on its device, in evaluation mode. It stays as it is and shares its parameters.
        memory_format: of the inputs of convolutions. ``torch.channels_last_3d`` also lays the weights of these
            convolutions out so, in place.

    Raises:
        InputError: the VAE is not known, has tiling or slicing on, or holds a part whose result for a chunk depends on
            later frames.
    """
    return StreamingDecoder(vae, memory_format)
