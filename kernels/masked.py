"""Sparse attention under a mask of keys that is data: padded text, and whatever else it says, not read by the host.

A mask of keys mostly says where text ends. Text is read by every query, so its keys join the softmax one by one, as
keys that stand for skipped blocks do: with an offset of their logit, minus infinity where the mask leaves a key out.
Which tiles of frames are read is not the mask's affair as long as it leaves all frames as they are. Where it does not,
all keys of that element of the batch are attended under the mask; that is decided on the device as well.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Implementation
from .spans import Spans
from .steps import ContextPools, Text, run_steps
from .tiles import Layout, accumulate_dtype


def run_masked(
    steps: Implementation,
    query: Tensor,
    keys: Spans,
    values: Spans,
    key_mask: Tensor,
    layout: Layout,
    chosen: dict[str, Any],
    pools: ContextPools,
    parts: int,
) -> Tensor:
    """:func:`run_steps` under a mask as of :func:`checks.key_mask`."""
    bias, prefix = bias_of(key_mask, query), layout.prefix
    visual = dataclasses.replace(layout, prefix=0)
    text = Text(keys.prefix, values.prefix, bias[:, :prefix])
    frames = _frames(keys), _frames(values)
    out = run_steps(steps, query, *frames, visual, chosen, pools, parts, text)
    if _is_of_text(key_mask, layout):
        return out
    cut = (bias[:, prefix:] != 0).any(1).expand(query.shape[0])
    return steps.attend_all(out, query, keys, values, bias, cut, chosen["scale"])


def _frames(spans: Spans) -> Spans:
    return Spans(spans.prefix[:, :, :0], spans.context, spans.current)


def bias_of(key_mask: Tensor, query: Tensor) -> Tensor:
    """What a mask adds to the logits of each key, in the dtype in which sums run."""
    dtype = accumulate_dtype(query.dtype)
    if key_mask.dtype != torch.bool:
        return key_mask.to(dtype)
    return torch.zeros(key_mask.shape, dtype=dtype, device=key_mask.device).masked_fill(~key_mask, float("-inf"))


def dense_mask(key_mask: Tensor, query: Tensor, layout: Layout) -> Tensor:
    """The mask as ``scaled_dot_product_attention`` takes it, ``[batch or 1, 1, 1, key_tokens]``."""
    if _is_of_text(key_mask, layout):
        rest = layout.key_tokens - layout.prefix
        key_mask = F.pad(key_mask, (0, rest), value=True if key_mask.dtype == torch.bool else 0.0)
    return (key_mask if key_mask.dtype == torch.bool else key_mask.to(query.dtype))[:, None, None]


def _is_of_text(key_mask: Tensor, layout: Layout) -> bool:
    """Whether a mask is one of the prefix alone."""
    return key_mask.shape[1] == layout.prefix != layout.key_tokens
