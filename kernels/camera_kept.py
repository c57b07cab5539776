"""``lightint::camera_heads_kept``: camera heads, some of which are read from the slots in which they are kept.

Keys and values of context frames that stay are kept from chunk to chunk, each frame in a slot. A concatenation with the
fresh ones would read and write them once more before their positions are applied. Here the pass that applies positions
reads each frame from its slot.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from lightint_compile.errors import InputError

from .camera import DIMS, check_heads, shapes_of
from .camera import reference as _positioned
from .checks import no_gradient
from .planning import on_device_of

SCHEMA = (
    "camera_heads_kept(Tensor pool, Tensor slots, Tensor heads, Tensor matrix, Tensor? cosine, Tensor? sine) -> Tensor"
)

_library = Library("lightint", "FRAGMENT")


def camera_heads_kept(
    pool: Tensor,
    slots: Tensor,
    heads: Tensor,
    matrix: Tensor,
    cosine: Tensor | None = None,
    sine: Tensor | None = None,
) -> Tensor:
    """Kept and fresh heads, rotated by position, followed along the batch by those multiplied by camera matrices.

    Args:
        pool: ``[batch, capacity, frame_tokens, heads, dim]``, one frame a slot; other slots are not read.
        slots: ``[kept]`` int64, the slots of the first frames. None, one or all may be kept.
        heads: ``[batch, fresh_tokens, heads, dim]``, the tokens after the kept ones, of the same dtype.
        matrix: ``[batch, kept * frame_tokens + fresh_tokens, 4, 4]`` float32.
        cosine, sine: tables of as many tokens, ``[tokens, dim]`` float32; no rotation without them.

    Returns:
        Contiguous ``[2 * batch, tokens, heads, dim]``, the dtype of ``heads``; computed in float32 or wider.

    Raises:
        InputError: tensors that do not fit together.
    """
    return torch.ops.lightint.camera_heads_kept(pool, slots, heads, matrix, cosine, sine)


def _reference(
    pool: Tensor, slots: Tensor, heads: Tensor, matrix: Tensor, cosine: Tensor | None, sine: Tensor | None
) -> Tensor:
    """The specification, in plain torch."""
    _check(pool, slots, heads, matrix, cosine, sine)
    joined = torch.cat([pool.index_select(1, slots).flatten(1, 2), heads], 1)
    return _positioned(joined, matrix, None, 0.0, cosine, sine, True)


def _on_gpu(
    pool: Tensor, slots: Tensor, heads: Tensor, matrix: Tensor, cosine: Tensor | None, sine: Tensor | None
) -> Tensor:
    from .portable.camera import camera_heads_kept as run

    _check(pool, slots, heads, matrix, cosine, sine)
    if heads.shape[3] not in DIMS or heads.dtype not in (torch.bfloat16, torch.float16) or not matrix.numel():
        return _reference(pool, slots, heads, matrix, cosine, sine)
    cosine, sine = (None if each is None else each.float().contiguous() for each in (cosine, sine))
    pool, slots, heads = (each.contiguous() for each in (pool, slots, heads))
    with on_device_of(heads):
        return run(pool, slots, heads, matrix.float().contiguous(), cosine, sine)


def _fake(
    pool: Tensor, slots: Tensor, heads: Tensor, matrix: Tensor, cosine: Tensor | None, sine: Tensor | None
) -> Tensor:
    _check(pool, slots, heads, matrix, cosine, sine)
    return heads.new_empty((2 * heads.shape[0], matrix.shape[1], *heads.shape[2:]))


def _check(
    pool: Tensor, slots: Tensor, heads: Tensor, matrix: Tensor, cosine: Tensor | None, sine: Tensor | None
) -> None:
    where = "camera_heads_kept: pool"
    if pool.dim() != 5 or heads.dim() != 4 or slots.dim() != 1:
        why = f"the shapes are {tuple(pool.shape)}, {tuple(slots.shape)} and {tuple(heads.shape)}"
        raise InputError(
            "a pool is [batch, capacity, frame_tokens, heads, dim], slots are [kept]", where=where, why=why
        )
    if (pool.shape[0], *pool.shape[3:]) != (heads.shape[0], *heads.shape[2:]) or pool.dtype != heads.dtype:
        why = f"it is {tuple(pool.shape)} of {pool.dtype}, the heads are {tuple(heads.shape)} of {heads.dtype}"
        raise InputError("kept and fresh heads do not belong together", where=where, why=why)
    tokens = slots.shape[0] * pool.shape[2] + heads.shape[1]
    check_heads((heads.shape[0], tokens, *heads.shape[2:]), *shapes_of(matrix, None, cosine, sine))


_library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("camera_heads_kept", _reference, "CompositeExplicitAutograd")
_library.impl("camera_heads_kept", _on_gpu, "CUDA")
torch.library.register_fake("lightint::camera_heads_kept", _fake, lib=_library)
torch.library.register_autograd("lightint::camera_heads_kept", no_gradient, lib=_library)
