"""A model's latents to frames in host memory, chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightint_compile.bench.end_to_end.job import Decoding
from lightint_compile.errors import InputError, OptionError, did_you_mean
from lightint_compile.integrations.video_decoder import streaming_decoder
from lightint_compile.models.pixels import as_bytes
from lightint_compile.models.world_model import Shown, WorldModel


def check_shown(model: WorldModel, name: str, decoder: str | None = None) -> None:
    """Raise InputError for a model whose latents nothing decodes, and OptionError for a decoder that it has not."""
    if not isinstance(model, Shown):
        why, fix = f"{type(model).__name__} has no video_decoder", "measure it without --end-to-end"
        raise InputError(f"nothing decodes the latents of {name}", where="--end-to-end", why=why, fix=fix)
    if decoder is not None and decoder not in model.decoders:
        fix = did_you_mean(decoder, model.decoders)
        raise OptionError(f"{name} has no decoder {decoder!r}", where="--decoder", fix=fix)


class ChunkDecoder:
    """The decoder of a model with the state of the video that is decoded.

    Its calls are all made on one stream, which its state belongs to.
    """

    def __init__(self, model: WorldModel, decoding: Decoding, dtype: torch.dtype) -> None:
        assert isinstance(model, Shown)
        made = model.video_decoder(decoding.device, dtype, name=decoding.decoder)
        layout = decoding.memory_format
        decoder: Any = made.module if made.by_chunk else streaming_decoder(made.module, memory_format=layout)
        self._compile = decoding.compiled
        self._decode: Any = decoder if self._compile is None else torch.compile(decoder, **self._compile)
        self._state: Any = None
        self._scale = made.scale
        last = ", channels last" if layout == torch.channels_last_3d and not made.by_chunk else ""
        self.told = f"{made.told}; {decoding}{last}"

    def rewind(self) -> None:
        """Forget the video: the next chunk is a first one."""
        self._state = None

    def scaled(self, latents: Tensor) -> Tensor:
        """A copy of latents as the decoder takes them: what the model wrote them into may be written again."""
        return latents / self._scale

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [1, 3, frames, H, W] in [-1, 1] of the next chunk's scaled latents."""
        frames, self._state = self._decode(latents, self._state)
        made: Tensor = frames
        return made


class HostFrames:
    """Frames in host memory by chunk, page-locked where they come from a GPU; buffers serve rollout after rollout."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []

    def take(self, index: int, frames: Tensor) -> int:
        """Copy a chunk's frames [1, 3, frames, H, W] behind the work of the current stream; how many they are.

        They are there once the stream is done.
        """
        pixels = as_bytes(frames[0].transpose(0, 1).float() * 0.5 + 0.5)
        if index == len(self._chunks):
            self._chunks.append(torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pixels.is_cuda))
        self._chunks[index].copy_(pixels, non_blocking=True)
        return len(pixels)

    def video(self) -> Tensor:
        """All frames [frames, H, W, 3] as bytes."""
        return torch.cat(self._chunks)
