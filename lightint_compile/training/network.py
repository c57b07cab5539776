"""The transformer as it is trained: the passes of `WorldPlayTransformer`, for several noisy copies of a chunk at once.

The mathematics is the model's own, operation by operation; a test compares both. What differs is the cost: modulation
and camera matrices are computed once a frame instead of once a token, and a block is a function of tensors, so that one
compiled function serves all blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lightint_compile.models.maze.compiled import Axes, Compiled
from lightint_compile.models.maze.config import MazeSize
from lightint_compile.models.maze.world_model import prompt
from lightint_compile.models.worldplay.blocks import DoubleBlock, KeyValue
from lightint_compile.models.worldplay.camera import apply_rope, projection_matrices, rope_table
from lightint_compile.models.worldplay.transformer import WorldPlayTransformer

Weights = dict[str, Tensor]
Caches = list[KeyValue]
BlockPass = Callable[..., tuple[Tensor, Tensor, Tensor]]

_CHANGING: Axes = {1: (0, 1), 2: (0, 1), 3: (0, 1), 4: (0, 1), 5: (0,), 6: (0,), 9: (0, 2), 10: (0, 2)}
"""Axes of the arguments of `block_pass` that are batches, frames and tokens of context."""


class Cameras(NamedTuple):
    """What frames [B, T] carry: extrinsics [B, T, 4, 4] world-to-camera, intrinsics [B, T, 3, 3], actions [B, T]."""

    extrinsics: Tensor
    intrinsics: Tensor
    actions: Tensor

    def at(self, frames: Tensor) -> Cameras:
        """Those of frames [B, n], each row its own."""
        rows = torch.arange(frames.shape[0], device=frames.device)[:, None]
        return Cameras(*(each[rows, frames] for each in self))

    def repeated(self, copies: int) -> Cameras:
        """Every row `copies` times in a row."""
        return Cameras(*(each.repeat_interleave(copies, dim=0) for each in self))


class Network:
    """A transformer with its prompt; `compiled` compiles a block once for all of them.

    The prompt never changes, so its half of the weights stays as it was drawn: gradients would only move constants.
    """

    def __init__(self, transformer: WorldPlayTransformer, size: MazeSize, compiled: bool = False) -> None:
        self.transformer, self.size = transformer, size
        self._block: BlockPass = Compiled(block_pass, _CHANGING) if compiled else block_pass

    def shared(self, transformer: WorldPlayTransformer) -> Network:
        """Another transformer of the same size, by the same compiled function."""
        other = Network(transformer, self.size)
        other._block = self._block
        return other

    @torch.no_grad()
    def text(self) -> Caches:
        """Keys and values of the prompt in every block, of batch 1."""
        device = self.transformer.img_in.proj.weight.device
        return self.transformer.text_cache(**prompt(self.size, 1, device))

    def prefill(self, latents: Tensor, cameras: Cameras, text: Caches) -> Caches:
        """Keys and values [2B, heads, N*S, head_dim] of context frames [B, input channels, N, h, w] in every block."""
        level = torch.full(cameras.actions.shape, self.size.transformer.context_timestep, device=latents.device)
        caches: Caches = []
        self._run(latents, level, cameras, 0, text, None, caches)
        return caches

    def velocity(
        self, latents: Tensor, sigma: Tensor, cameras: Cameras, text: Caches, context: Caches | None, position: int
    ) -> Tensor:
        """Flow velocity [B, C, T, h, w] of frames [B, input channels, T, h, w] at noise levels `sigma` [B]."""
        level = (1000.0 * sigma)[:, None].expand_as(cameras.actions)
        tokens, vector = self._run(latents, level, cameras, position, text, context, None)
        last = self.transformer.final_layer
        shift, scale = last.adaLN_modulation(vector)[:, :, None].chunk(2, dim=-1)
        tokens = last.norm_final(tokens) * (1 + scale) + shift
        return self.transformer._unpatchify(last.linear(tokens).flatten(1, 2), latents.shape[2])

    def _run(
        self,
        latents: Tensor,
        level: Tensor,
        cameras: Cameras,
        position: int,
        text: Caches,
        context: Caches | None,
        caches: Caches | None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, S, hidden] after all blocks, conditioning [B, T, hidden]; keys and values go into `caches`."""
        network, config = self.transformer, self.size.transformer
        vector = network.time_in(level.flatten()) + network.action_in(cameras.actions.flatten())
        vector = vector.unflatten(0, level.shape)
        with torch.autocast(latents.device.type, enabled=False):
            projection, inverse = projection_matrices(cameras.extrinsics, cameras.intrinsics)
        rope = rope_table(config, level.shape[1], position, latents.device, torch.float32)
        rope = tuple(each.unflatten(0, (level.shape[1], -1)) for each in rope)
        # Contiguous, so that the first block is called with tokens like those of all others: one compiled function.
        tokens = network.img_in(latents).unflatten(1, (level.shape[1], -1)).contiguous()
        for index, block in enumerate(network.double_blocks):
            weights = image_weights(cast(DoubleBlock, block))
            past = (None, None) if context is None else context[index]
            tokens, key, value = self._block(
                weights, tokens, vector, projection, inverse, *rope, *text[index], *past, config.heads
            )
            if caches is not None:
                caches.append(KeyValue(key, value))
        return tokens, vector


def image_weights(block: DoubleBlock) -> Weights:
    """The parameters of a block's vision half by name."""
    return {name: each for name, each in block.named_parameters() if name.startswith("img_")}


def block_pass(
    weights: Weights,
    tokens: Tensor,
    vector: Tensor,
    projection: Tensor,
    inverse: Tensor,
    cosine: Tensor,
    sine: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    past_key: Tensor | None,
    past_value: Tensor | None,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`DoubleBlock.forward` of tokens [B, T, S, hidden] in T frames of S; text keys and values have batch 1.

    `vector` [B, T, hidden] and camera matrices [B, T, 4, 4] are of frames, cosine and sine [T, S, head_dim] of tokens.
    """
    frames = tokens.shape[1]
    modulation = F.linear(F.silu(vector), weights["img_mod.linear.weight"], weights["img_mod.linear.bias"])
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, :, None].chunk(6, dim=-1)
    inner = _modulated(tokens, shift1, scale1).flatten(1, 2)
    query, key, value = (_heads(weights, f"img_attn_{name}", inner, heads) for name in "qkv")
    query = _rms(query, weights["img_attn_q_norm.weight"])
    key = _rms(key, weights["img_attn_k_norm.weight"])
    dtype, table = value.dtype, (cosine.flatten(0, 1), sine.flatten(0, 1))
    turned = projection.transpose(-1, -2)
    query = torch.cat([apply_rope(query, table).to(dtype), _by_camera(query, turned).to(dtype)])
    key = torch.cat([apply_rope(key, table).to(dtype), _by_camera(key, inverse).to(dtype)])
    value = torch.cat([value, _by_camera(value, inverse).to(dtype)])
    attended = F.scaled_dot_product_attention(
        query, _joined(text_key, past_key, key), _joined(text_value, past_value, value)
    )
    rope, prope = attended.chunk(2)
    mixed = _linear(weights, "img_attn_proj", rope.transpose(1, 2).flatten(2)) + _linear(
        weights, "img_attn_prope_proj", _by_camera(prope, projection).to(dtype).transpose(1, 2).flatten(2)
    )
    tokens = tokens + gate1 * mixed.unflatten(1, (frames, -1))
    inner = F.gelu(_linear(weights, "img_mlp.fc1", _modulated(tokens, shift2, scale2)), approximate="tanh")
    return tokens + gate2 * _linear(weights, "img_mlp.fc2", inner), key, value


def _linear(weights: Weights, name: str, inner: Tensor) -> Tensor:
    return F.linear(inner, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _heads(weights: Weights, name: str, inner: Tensor, heads: int) -> Tensor:
    return _linear(weights, name, inner).unflatten(-1, (heads, -1)).transpose(1, 2)


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _rms(heads: Tensor, weight: Tensor) -> Tensor:
    inner = heads.float()
    return inner * torch.rsqrt(inner.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def _by_camera(heads: Tensor, matrices: Tensor) -> Tensor:
    """Groups of 4 channels of heads [B, H, T*S, D] times the matrix [B, T, 4, 4] of their frame, in float32."""
    groups = heads.float().unflatten(-1, (-1, 4)).unflatten(2, (matrices.shape[1], -1))
    moved = (matrices[:, None, :, None, None] * groups[..., None, :]).sum(-1)
    return moved.flatten(-2).flatten(2, 3)


def _joined(text: Tensor, past: Tensor | None, current: Tensor) -> Tensor:
    shown = text.to(current.dtype).expand(current.shape[0], -1, -1, -1)
    return torch.cat([shown, current] if past is None else [shown, past, current], dim=2)


def repeated(caches: Caches, copies: int) -> Caches:
    """Keys and values of every row `copies` times in a row; both branches keep their half of the batch."""
    return [KeyValue(*(_repeated(each, copies) for each in pair)) for pair in caches]


def _repeated(each: Tensor, copies: int) -> Tensor:
    return each.unflatten(0, (2, -1)).repeat_interleave(copies, dim=1).flatten(0, 1)
