"""``lightint::camera_heads``: what projective position encodings do to queries, keys and values, in one pass.

PRoPE attends twice with the same heads: once rotated by position (RoPE), once with every group of four channels
multiplied by the camera matrix of its token. Written out, that is a norm, a rotation, a product of 4x4 matrices and two
copies; the operator reads the heads once and writes both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from lightint_compile.errors import InputError

from .checks import no_gradient
from .planning import on_device_of

GROUP = 4
"""Channels that one matrix multiplies."""

DIMS = (32, 64, 128, 256)
"""Head sizes that the GPU kernel takes."""

SCHEMA = (
    "camera_heads(Tensor heads, Tensor matrix, Tensor? weight, float eps, Tensor? cosine, Tensor? sine, bool both)"
    " -> Tensor"
)

_library = Library("lightint", "FRAGMENT")


def camera_heads(
    heads: Tensor,
    matrix: Tensor,
    weight: Tensor | None = None,
    eps: float = 0.0,
    cosine: Tensor | None = None,
    sine: Tensor | None = None,
    both: bool = True,
) -> Tensor:
    """Heads rotated by position, and heads multiplied by camera matrices.

    Args:
        heads: ``[batch, tokens, heads, dim]``.
        matrix: ``[batch, tokens, 4, 4]`` float32.
        weight: ``[dim]`` of an RMS norm in front, with ``eps``; none without it.
        cosine, sine: ``[tokens, dim]`` float32 tables of a rotation of interleaved channel pairs; none without it.
        both: the rotated heads followed, along the batch, by the multiplied ones; else the latter alone.

    Returns:
        Contiguous, ``[2 * batch or batch, tokens, heads, dim]``, the dtype of ``heads``; computed in float32 or wider.

    Raises:
        InputError: tensors that do not fit together.
    """
    return torch.ops.lightint.camera_heads(heads, matrix, weight, eps, cosine, sine, both)


def reference(
    heads: Tensor,
    matrix: Tensor,
    weight: Tensor | None,
    eps: float,
    cosine: Tensor | None,
    sine: Tensor | None,
    both: bool,
) -> Tensor:
    """The specification, in plain torch."""
    check_heads(heads.shape, *shapes_of(matrix, weight, cosine, sine))
    wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
    if weight is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    groups = wide.unflatten(-1, (-1, GROUP))
    seen = torch.einsum("bnij,bnhgj->bnhgi", matrix.to(wide.dtype), groups).flatten(-2)
    if not both:
        return seen.to(heads.dtype).contiguous()
    rotated = wide
    if cosine is not None and sine is not None:
        even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        rotated = wide * cosine.to(wide.dtype)[:, None] + turned * sine.to(wide.dtype)[:, None]
    return torch.cat([rotated, seen]).to(heads.dtype)


def _on_gpu(heads: Tensor, matrix: Tensor, weight: Tensor | None, eps: float, *rest: Any) -> Tensor:
    from .portable.camera import camera_heads as run

    cosine, sine, both = rest
    fitting_heads(heads.shape, *shapes_of(matrix, weight, cosine, sine))
    if heads.shape[3] not in DIMS or heads.dtype not in (torch.bfloat16, torch.float16) or not heads.numel():
        return reference(heads, matrix, weight, eps, cosine, sine, both)
    cosine, sine = (None if each is None else each.float().contiguous() for each in (cosine, sine))
    with on_device_of(heads):
        return run(heads.contiguous(), matrix.float().contiguous(), weight, eps, cosine, sine, both)


def _fake(
    heads: Tensor,
    matrix: Tensor,
    weight: Tensor | None,
    eps: float,
    cosine: Tensor | None,
    sine: Tensor | None,
    both: bool,
) -> Tensor:
    check_heads(heads.shape, *shapes_of(matrix, weight, cosine, sine))
    return heads.new_empty((2 * heads.shape[0] if both else heads.shape[0], *heads.shape[1:]))


Shape = Sequence[int]


def shapes_of(*tensors: Tensor | None) -> tuple[Shape | None, ...]:
    """The shape of each tensor that there is."""
    return tuple(None if tensor is None else tensor.shape for tensor in tensors)


def check_heads(
    shape: Shape, matrix: Shape | None, weight: Shape | None, cosine: Shape | None, sine: Shape | None
) -> None:
    """Raise :class:`InputError` where operands of such shapes do not fit heads of this shape."""
    if len(shape) != 4 or shape[3] % GROUP:
        why = f"the shape is {tuple(shape)}"
        raise InputError("heads are [batch, tokens, heads, a multiple of 4]", where="camera_heads: heads", why=why)
    batch, tokens, _, dim = shape
    expected = {
        "matrix": (matrix, (batch, tokens, GROUP, GROUP)),
        "weight": (weight, (dim,)),
        "cosine": (cosine, (tokens, dim)),
        "sine": (sine, (tokens, dim)),
    }
    for name, (given, wanted) in expected.items():
        if given is not None and tuple(given) != wanted:
            why = f"its shape is {tuple(given)}, expected {wanted}"
            raise InputError(f"{name} does not fit the heads", where=f"camera_heads: {name}", why=why)
    if (cosine is None) != (sine is None):
        raise InputError("a rotation has a cosine and a sine", where="camera_heads", fix="give both or none")


fitting_heads = functools.lru_cache(maxsize=256)(check_heads)
"""The same for shapes of real tensors, which come again in every block."""


_library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("camera_heads", reference, "CompositeExplicitAutograd")
_library.impl("camera_heads", _on_gpu, "CUDA")
torch.library.register_fake("lightint::camera_heads", _fake, lib=_library)
torch.library.register_autograd("lightint::camera_heads", no_gradient, lib=_library)
