"""The parts of a causal decoder that look at earlier frames: each keeps what the next chunk will need of this one.

Tensors are ``[batch, channels, frames, height, width]``. A part computes for a chunk what the library's module
computes for the same frames of the whole video; only the order of sums may differ.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile.integrations.video_decoder.tape import Tape


class CausalConv(nn.Module):
    """A convolution with all padding of time in front: it keeps the last frames of its input.

    In front of a video stand copies of its first frame (``replicate``) or zeros (``constant``). They are the kept
    frames of the first chunk, so that one code serves all chunks.

    Args:
        conv: the convolution: no padding of its own, stride and dilation 1.
        spatial: padding of height and width, on both sides.
        mode: ``replicate`` or ``constant``, as of ``torch.nn.functional.pad``.
    """

    def __init__(self, conv: nn.Conv3d, spatial: tuple[int, int], mode: str, name: str, tape: Tape) -> None:
        super().__init__()
        self.conv, self.spatial, self.mode = conv, spatial, mode
        self.name, self.tape, self.kept = name, tape, conv.kernel_size[0] - 1
        self.memory_format = torch.contiguous_format

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of a chunk, with what was kept in front of it."""
        weight, bias, groups = self.conv.weight, self.conv.bias, self.conv.groups
        parts, padding = [self._earlier(x), x] if self.kept else [x], (0, *self.spatial)
        if self.mode != "constant":
            # each part is padded before they are joined, so that the joined frames are written once
            parts, padding = [self._padded(each) for each in parts], (0, 0, 0)
        seen = torch.cat(parts, 2) if self.kept else parts[0]
        return F.conv3d(seen.contiguous(memory_format=self.memory_format), weight, bias, 1, padding, 1, groups)

    def pass_over(self, x: Tensor) -> None:
        """Keep what the part kept before, in a call that has no frames for it.

        Args:
            x: any frames of the part's form.
        """
        self._earlier(x[:, :, :0])

    def _earlier(self, x: Tensor) -> Tensor:
        """The frames in front of ``x``; the last of both are kept, as a copy that holds no larger tensor alive.

        The copy lies in memory as the convolution reads it, so that the next chunk reads it in order.
        """
        earlier = self.tape.take(self.name)
        if earlier is None:
            earlier = self._in_front_of_all(x)
        last = torch.cat([earlier, x[:, :, -self.kept :]], 2)[:, :, -self.kept :]
        self.tape.put(self.name, last.clone(memory_format=self.memory_format))
        return earlier

    def _in_front_of_all(self, x: Tensor) -> Tensor:
        if self.mode == "constant":
            return x.new_zeros(*x.shape[:2], self.kept, *x.shape[3:])
        return x[:, :, :1].expand(-1, -1, self.kept, -1, -1)

    def _padded(self, x: Tensor) -> Tensor:
        height, width = self.spatial
        return F.pad(x, (width, width, height, height, 0, 0), mode=self.mode) if height or width else x


class PairedFrames(nn.Module):
    """Twice the frames by a causal convolution with twice the channels, then a resampling of each frame.

    The first frame of a video stays one, and the convolution does not see it: zeros are in front of the second.
    Found in Wan's decoders, both forms.

    Args:
        inner: Wan's module; without a cache its forward is the resampling alone.
    """

    def __init__(self, inner: nn.Module, tape: Tape) -> None:
        super().__init__()
        self.inner: Any = inner
        self.tape = tape

    def forward(self, x: Tensor) -> Tensor:
        """Twice the frames of a chunk; one less behind the start of a video."""
        if not self.tape.is_first:
            return self._resampled(self._doubled(x))
        if x.shape[2] == 1:
            self.inner.time_conv.pass_over(x)
            return self._resampled(x)
        return self._resampled(torch.cat([x[:, :, :1], self._doubled(x[:, :, 1:])], 2))

    def _doubled(self, x: Tensor) -> Tensor:
        pairs: Tensor = self.inner.time_conv(x).unflatten(1, (2, x.shape[1]))
        return pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)

    def _resampled(self, x: Tensor) -> Tensor:
        frames: Tensor = self.inner(x)
        return frames


class PackedFrames(nn.Module):
    """Twice the frames, height and width out of channels, and a shortcut that repeats channels.

    The first frame of a video stays one. Found in HunyuanVideo-1.5's decoder, after DC-AE (J. Chen et al., 2024).

    Args:
        inner: HunyuanVideo-1.5's module; its own forward takes the first frame of what it gets for that of the video.
    """

    def __init__(self, inner: nn.Module, tape: Tape) -> None:
        super().__init__()
        self.inner: Any = inner
        self.tape = tape

    def forward(self, x: Tensor) -> Tensor:
        """Twice the frames of a chunk; one less behind the start of a video."""
        if self.tape.is_first:
            frames: Tensor = self.inner(x)
            return frames
        shortcut = self._unpacked(x).repeat_interleave(self.inner.repeats, dim=1)
        return self._unpacked(self.inner.conv(x)) + shortcut

    def _unpacked(self, x: Tensor) -> Tensor:
        frames: Tensor = self.inner._dcae_upsample_rearrange(x, r1=2, r2=2, r3=2)
        return frames


class PastAttention(nn.Module):
    """Attention of every frame to itself and all earlier ones: it keeps keys and values of all frames.

    They are ``[batch, tokens, channels]``, and tokens grow by height times width a latent frame. Nothing less gives
    what decoding at once gives. Each frame has a dense attention of its own, so there is no mask: that of the
    library has an entry for each pair of tokens.

    Args:
        inner: HunyuanVideo-1.5's module, which has one head.
    """

    def __init__(self, inner: nn.Module, name: str, tape: Tape) -> None:
        super().__init__()
        self.inner: Any = inner
        self.tape = tape
        self.keys, self.values = f"{name}.keys", f"{name}.values"

    def forward(self, x: Tensor) -> Tensor:
        """What the frames of a chunk attend to, added to them."""
        inner, (_, _, frames, height, width) = self.inner, x.shape
        normed = inner.norm(x)
        query = _tokens(inner.to_q(normed))
        key, value = (self._with_past(name, to(normed)) for name, to in self._kept())
        tokens, past = height * width, key.shape[1] - query.shape[1]
        seen = []
        for frame in range(frames):
            mine, end = query[:, frame * tokens : (frame + 1) * tokens], past + (frame + 1) * tokens
            seen.append(_attended(mine, key[:, :end], value[:, :end]))
        found: Tensor = inner.proj_out(torch.cat(seen, 1).transpose(1, 2).unflatten(2, (frames, height, width)))
        return found + x

    def _kept(self) -> tuple[tuple[str, nn.Module], tuple[str, nn.Module]]:
        return (self.keys, self.inner.to_k), (self.values, self.inner.to_v)

    def _with_past(self, name: str, x: Tensor) -> Tensor:
        past, new = self.tape.take(name), _tokens(x)
        both = new if past is None else torch.cat([past, new], 1)
        self.tape.put(name, both)
        return both


def _tokens(x: Tensor) -> Tensor:
    """``[batch, frames * height * width, channels]``."""
    return x.flatten(2).transpose(1, 2).contiguous()


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = [each.unsqueeze(1) for each in (query, key, value)]
    return F.scaled_dot_product_attention(heads[0], heads[1], heads[2]).squeeze(1)
