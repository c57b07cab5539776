"""Tensors whose class has operations of its own, and the models of tests that hold them. A fresh process imports it."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn


def unwrapped(func: Any, kind: type, args: Any, kwargs: Any) -> Any:
    """What an operation gives with tensors of ``kind`` replaced by the plain ones that they stand for."""
    args, kwargs = pytree.tree_map_only(kind, lambda each: each.plain(), (args, kwargs or {}))
    return func(*args, **kwargs)


class Scaled(Tensor):
    """Whole numbers of 8 bits with a scale for each row: quantised weights, as torchao has them."""

    q: Tensor
    s: Tensor

    @staticmethod
    def __new__(cls, q: Tensor, s: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, q.shape, dtype=s.dtype, device=q.device)  # type: ignore[attr-defined]

    def __init__(self, q: Tensor, s: Tensor) -> None:
        self.q, self.s = q, s

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["q", "s"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> Self:
        return cls(inner["q"], inner["s"])

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        s = weight.abs().amax(-1, keepdim=True) / 127
        return cls((weight / s).round().to(torch.int8), s)

    def plain(self) -> Tensor:
        return self.q.to(self.s.dtype) * self.s

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.clone.default):
            return cls(func(args[0].q), func(args[0].s))
        return unwrapped(func, cls, args, kwargs)


class Closed(Tensor):
    """A wrapper that nothing can take apart."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)  # type: ignore[attr-defined]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def plain(self) -> Tensor:
        return self.held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return unwrapped(func, cls, args, kwargs)


class Named(Tensor):
    """Plain memory under another name: only functions of torch see the class."""


class Repeating(nn.Module):
    """Rows that are repeated in front of a linear, which every preset moves behind it, and a gain."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.gain = nn.Parameter(torch.rand(width) + 0.5)
        self.register_buffer("offset", torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x.repeat_interleave(16, 0))) * self.gain + self.offset


class Stacked(nn.Module):
    """Blocks in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Repeating() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x[:2])
        return x


class Caching(nn.Module):
    """Attention over a key/value cache that a call writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, kv: Tensor) -> Tensor:
        kept = x.shape[1]
        kv[:, :, :-kept] = kv[:, :, kept:].clone()
        kv[:, 0, -kept:], kv[:, 1, -kept:] = self.k(x), self.v(x)
        heads = [each.unflatten(-1, (2, -1)).transpose(1, 2) for each in (self.q(x), kv[:, 0], kv[:, 1])]
        return self.o(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)) + x


class Scaling(nn.Module):
    """Multiplies by what the caller hands over in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Repeating()

    def forward(self, x: Tensor, given: dict[str, Tensor]) -> Tensor:
        return self.inner(x) * given["scale"]


def wrap(model: nn.Module, path: str) -> None:
    """Put quantised numbers in the place of a parameter or buffer."""
    holder, _, name = path.rpartition(".")
    owner = model.get_submodule(holder)
    value = Scaled.of(getattr(owner, name).detach())
    if name in owner._buffers:
        owner._buffers[name] = value
    else:
        owner._parameters[name] = nn.Parameter(value, requires_grad=False)


def plain_double(value: Any) -> Any:
    """A tensor in double precision, with the numbers that a wrapper stands for."""
    if isinstance(value, (Scaled, Closed)):
        value = value.plain()
    return value.detach().clone().double() if value.is_floating_point() else value


def reference(model: nn.Module, made: nn.Module) -> nn.Module:
    """``made``, a model of the same class, with the numbers of ``model`` in double precision."""
    made = made.eval().requires_grad_(False)
    for path, module in model.named_modules():
        owner = made.get_submodule(path)
        for name, value in module._parameters.items():
            owner._parameters[name] = nn.Parameter(plain_double(value), requires_grad=False)
        for name, value in module._buffers.items():
            owner._buffers[name] = plain_double(value)
    return made
