"""The action module of a block: what the mouse and the keys did, told to every token.

Both halves attend over time alone, each position by itself. The mouse is joined to the tokens; the keyboard is keys and
values, the same for all positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dtypes import wide
from .positions import RopeTable, apply_rope, axis_table
from .sizes import FRAMES_PER_LATENT, GameSizes

MEMORY_MOUSE, MEMORY_KEYS = 1.0, -1.0
"""What the actions of memory frames are set to."""


class HeadNorm(nn.Module):
    """Root-mean-square norm of a head in the dtype of its input.

    The released code declares a weight and does not apply it; `applied` says whether it is.
    """

    def __init__(self, dim: int, applied: bool, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.applied = applied
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, heads: Tensor) -> Tensor:
        """heads [..., dim] -> [..., dim]."""
        normed = heads * torch.rsqrt(heads.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return normed * self.weight if self.applied else normed


def windows(actions: Tensor, window: int) -> Tensor:
    """Actions of video frames [B, V, C] as windows [B, T, 4 * window, C], one a latent frame, each ending with it.

    The first frame is repeated in front. In a first clip (V = 4 (T - 1) + 1) a window ends with the latent frame
    before, as in the released code.
    """
    first_clip = actions.shape[1] % FRAMES_PER_LATENT == 1
    repeats = FRAMES_PER_LATENT * (window if first_clip else window - 1)
    return overlapping(torch.cat([actions[:, :1].repeat(1, repeats, 1), actions], dim=1), window)


def overlapping(actions: Tensor, window: int) -> Tensor:
    """Windows [B, T, 4 * window, C] of actions [B, 4 * (window - 1 + T), C] or more, one every four video frames."""
    length = FRAMES_PER_LATENT * window
    starts = range(0, actions.shape[1] - length + 1, FRAMES_PER_LATENT)
    return torch.stack([actions[:, start : start + length] for start in starts], dim=1)


def with_memory(grouped: Tensor, constant: Tensor, memory: int) -> Tensor:
    """Windows [B, T, W, C] behind those of `memory` frames, whose actions are all `constant` [C]."""
    return torch.cat([constant.expand(grouped.shape[0], memory, *grouped.shape[2:]), grouped], dim=1)


class ActionLayers(nn.Module):
    """The layers of an action module, and how they make queries, keys and values."""

    def __init__(self, config: GameSizes) -> None:
        super().__init__()
        self.config = config
        hidden, width, keys = config.hidden_size, config.action_size, config.key_size
        seen = FRAMES_PER_LATENT * config.action_window
        head = width // config.action_heads
        self.keyboard_embed = nn.Sequential(nn.Linear(config.keys, keys), nn.SiLU(), nn.Linear(keys, keys))
        self.mouse_mlp = nn.Sequential(
            nn.Linear(config.mouse_axes * seen + hidden, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )
        self.t_qkv = nn.Linear(width, 3 * width, bias=False)
        self.img_attn_q_norm = HeadNorm(head, config.action_norm_weight)
        self.img_attn_k_norm = HeadNorm(head, config.action_norm_weight)
        self.proj_mouse = nn.Linear(width, hidden, bias=False)
        self.key_attn_q_norm = HeadNorm(head, config.action_norm_weight)
        self.key_attn_k_norm = HeadNorm(head, config.action_norm_weight)
        self.mouse_attn_q = nn.Linear(hidden, width, bias=False)
        self.keyboard_attn_kv = nn.Linear(seen * keys, 2 * width, bias=False)
        self.proj_keyboard = nn.Linear(width, hidden, bias=False)

    def _mouse_heads(self, tokens: Tensor, grouped: Tensor, table: RopeTable) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [B*S1, T, heads, head_dim] of tokens [B, T*S1, hidden] and windows [B, T, W, 2]."""
        positions = self.config.tokens_per_frame
        features = grouped.flatten(2)[:, :, None].expand(-1, -1, positions, -1)
        # [B, T, S1, C] -> a sequence over time at each position
        joined = torch.cat([tokens.unflatten(1, (-1, positions)), features], dim=-1).transpose(1, 2).flatten(0, 1)
        qkv = self.t_qkv(self.mouse_mlp(joined)).unflatten(-1, (3, self.config.action_heads, -1))
        query, key, value = qkv.unbind(-3)
        query = apply_rope(self.img_attn_q_norm(query), table).to(value.dtype)
        key = apply_rope(self.img_attn_k_norm(key), table).to(value.dtype)
        return query, key, value

    def _keyboard_heads(self, tokens: Tensor, grouped: Tensor, table: RopeTable) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B*S1, T, heads, head_dim] of tokens, key and value [B, T, heads, head_dim] of embedded windows."""
        positions, heads = self.config.tokens_per_frame, self.config.action_heads
        key, value = self.keyboard_attn_kv(grouped.flatten(2)).unflatten(-1, (2, heads, -1)).unbind(-3)
        query = self.mouse_attn_q(tokens).unflatten(-1, (heads, -1))
        query = self.key_attn_q_norm(query).unflatten(1, (-1, positions)).transpose(1, 2).flatten(0, 1)
        query = apply_rope(query, table).to(value.dtype)
        return query, apply_rope(self.key_attn_k_norm(key), table).to(value.dtype), value

    def _everywhere(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keyboard's keys and values [B, T, heads, head_dim] for each position [B*S1, T, heads, head_dim]."""
        positions = self.config.tokens_per_frame
        return key.repeat_interleave(positions, dim=0), value.repeat_interleave(positions, dim=0)

    def _over_time(self, query: Tensor, key: Tensor, value: Tensor, batch: int) -> Tensor:
        """Attention [B*S1, T, heads, head_dim] over T, and back to [B, T*S1, heads*head_dim]."""
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return attended.unflatten(0, (batch, -1)).transpose(1, 2).flatten(1, 2)


class ActionModule(ActionLayers):
    """Mouse and keyboard of the clip, added to the tokens."""

    def forward(self, tokens: Tensor, mouse: Tensor, keyboard: Tensor, memory: int) -> Tensor:
        """tokens [B, T*S1, hidden] of `memory` frames and the clip's, mouse [B, V, 2], keyboard [B, V, 6] -> tokens."""
        frames = tokens.shape[1] // self.config.tokens_per_frame
        table = self._table(frames, memory, tokens)
        tokens = tokens + self.proj_mouse(self._mouse(tokens, mouse.to(tokens.dtype), memory, table))
        return tokens + self.proj_keyboard(self._keyboard(tokens, keyboard.to(tokens.dtype), memory, table))

    def _table(self, frames: int, memory: int, like: Tensor) -> RopeTable:
        """Positions of memory and of the clip both count from 0."""
        places = torch.cat([torch.arange(length, device=like.device) for length in (memory, frames - memory)])
        cosine, sine = axis_table(self.config, places, wide(like.dtype))
        return cosine[:, None], sine[:, None]

    def _mouse(self, tokens: Tensor, mouse: Tensor, memory: int, table: RopeTable) -> Tensor:
        grouped = windows(mouse, self.config.action_window)
        grouped = with_memory(grouped, torch.full_like(grouped[0, 0, 0], MEMORY_MOUSE), memory)
        return self._over_time(*self._mouse_heads(tokens, grouped, table), tokens.shape[0])

    def _keyboard(self, tokens: Tensor, keyboard: Tensor, memory: int, table: RopeTable) -> Tensor:
        grouped = windows(self.keyboard_embed(keyboard), self.config.action_window)
        constant = self.keyboard_embed(torch.full_like(keyboard[0, 0], MEMORY_KEYS))
        query, key, value = self._keyboard_heads(tokens, with_memory(grouped, constant, memory), table)
        return self._over_time(query, *self._everywhere(key, value), tokens.shape[0])
