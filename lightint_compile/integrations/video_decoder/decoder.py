"""A VAE's decoder as a function of a chunk of latent frames and a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.errors import InputError
from lightint_compile.integrations.video_decoder.bodies import body_of
from lightint_compile.integrations.video_decoder.parts import CausalConv, PastAttention
from lightint_compile.integrations.video_decoder.tape import DecoderState, Tape


class StreamingDecoder(nn.Module):
    """A causal video decoder that is given latent frames chunk by chunk; made by :func:`streaming_decoder`.

    It holds the VAE's own parameters. A call is a pure function of latents, state and weights, and traces in one
    graph. For chunks of one length, ``torch.compile(decoder, backend="lightint")`` makes two programs: that of the
    first chunk, and that of all later ones.
    """

    def __init__(self, vae: nn.Module, memory_format: torch.memory_format) -> None:
        super().__init__()
        self._tape = Tape()
        self.body = body_of(vae, self._tape)
        self._growing = [name for part in self._parts(PastAttention) for name in (part.keys, part.values)]
        self._kept = [part.name for part in self._parts(CausalConv) if part.kept]
        first = next(part for part in self._parts(CausalConv) if part.kept)
        self._first, self._channels = first.name, first.conv.in_channels
        if memory_format != torch.contiguous_format:
            self._lay_out(memory_format)

    @torch.compiler.disable(recursive=False)
    def __call__(self, latents: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, DecoderState]:
        """Decode the next chunk.

        Args:
            latents: ``[batch, channels, frames, height, width]``, one latent frame or more, in the dtype and on the
                device of the weights, scaled as for the VAE's ``decode``.
            state: what the call before returned; ``None`` for the first frames of a video. It is not changed.

        Returns:
            Video frames ``[batch, 3, frames, height, width]`` in [-1, 1], a first chunk's first latent frame being one
            frame and every other latent frame four; and the state behind them.

        Raises:
            InputError: the latents have another form, or the state is of another decoder or of other sizes.
        """
        self._check(latents, state)
        if state is not None:
            for name in self._growing:
                # the number of tokens before a chunk is a symbol from the first program on that sees one
                torch._dynamo.maybe_mark_dynamic(state[name], 1)
        with self._tape.turn:
            decoded: tuple[Tensor, DecoderState] = super().__call__(latents, state)
        return decoded

    def forward(self, latents: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, DecoderState]:
        """What a call runs, without its checks; inside of a larger graph it is what to call."""
        self._tape.start(state)
        frames: Tensor = self.body(latents)
        return frames, self._tape.finish()

    @torch.compiler.disable
    def _check(self, latents: Tensor, state: Mapping[str, Tensor] | None) -> None:
        if latents.dim() != 5 or latents.shape[1] != self._channels or not latents.shape[2]:
            why = f"they are {list(latents.shape)}"
            fix = f"give [batch, {self._channels}, frames, height, width] with at least one frame"
            raise InputError("latents of another form", where="latents", why=why, fix=fix)
        if state is None:
            return
        fix = "give the state that the call before returned, or None to begin a video"
        if set(state) != {*self._kept, *self._growing}:
            why = f"it has {len(state)} tensors under other names"
            raise InputError("the state is not of this decoder", where="state", why=why, fix=fix)
        kept = state[self._first]
        if (kept.shape[0], *kept.shape[3:]) != (latents.shape[0], *latents.shape[3:]) or kept.dtype != latents.dtype:
            held, asked = (f"{list(each.shape)} of {each.dtype}" for each in (kept, latents))
            why = f"it is for {held}, the latents are {asked}"
            raise InputError("the state is of a video of another form", where="state", why=why, fix=fix)

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        for conv in self._parts(nn.Conv3d):
            conv.to(memory_format=memory_format)  # type: ignore[call-overload]
        for part in self._parts(CausalConv):
            part.memory_format = memory_format

    def _parts(self, kind: Any) -> list[Any]:
        return [module for module in self.modules() if isinstance(module, kind)]
