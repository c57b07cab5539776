"""Operators with several results, and what a drawn world does with what they make.

In eager some of the results are new memory and some are views of the operand. A backend that keeps, merges or hands out
results has to know which, also where a graph reads only some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Operator = Callable[[Tensor], Sequence[Tensor]]


def _spread(t: Tensor) -> Tensor:
    """The operand and a fixed matrix of full rank, so that no decomposition hangs on rounding."""
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    count = t.shape[-2] * t.shape[-1]
    fixed = 3.0 * (torch.arange(count, dtype=t.dtype) ** 2).sin().view(t.shape[-2:])
    return t.clamp(-8.0, 8.0) * 0.1 + fixed


def _square(t: Tensor) -> Tensor:
    spread = _spread(t)
    return spread.mT @ spread + torch.diag(torch.arange(t.shape[-1], dtype=spread.dtype))


#: What takes ``[n, rows, columns]`` and gives several tensors.
OPERATORS: dict[str, Operator] = {
    "topk": lambda t: t.topk(2, -1),
    "sort": lambda t: t.sort(-1),
    "stable-sort": lambda t: torch.sort(t, dim=-1, stable=True),
    "max": lambda t: t.max(-1),
    "median": lambda t: t.median(-1),
    "kthvalue": lambda t: t.kthvalue(2, -1),
    "cummax": lambda t: t.cummax(-1),
    "aminmax": lambda t: torch.aminmax(t, dim=-1),
    "var-mean": lambda t: torch.var_mean(t, -1),
    "std-mean": lambda t: torch.std_mean(t, (1, 2)),
    "batch-norm": lambda t: torch.native_batch_norm(t, None, None, None, None, True, 0.1, 1e-5),
    "layer-norm": lambda t: torch.native_layer_norm(t, t.shape[-1:], None, None, 1e-5),
    "max-pool": lambda t: F.max_pool1d(t, 2, return_indices=True),
    "svd": lambda t: torch.linalg.svd(_spread(t), full_matrices=False),
    "qr": lambda t: torch.linalg.qr(_spread(t)),
    "eigh": lambda t: torch.linalg.eigh(_square(t)),
    "slogdet": lambda t: torch.linalg.slogdet(_square(t)),
    "frexp": torch.frexp,
    "split": lambda t: t.split(3, -1),
    "unbind": lambda t: t.unbind(0),
    "tensor-split": lambda t: torch.tensor_split(t, 3, -1),
    "broadcast": lambda t: torch.broadcast_tensors(t, t[:1]),
    "meshgrid": lambda t: torch.meshgrid(t[0, 0], t[0, :, 0], indexing="ij"),
    "foreach": lambda t: torch._foreach_add([t, t * 2.0], 1.0),
    "chunks-of-a-sum": lambda t: (t + 1.0).chunk(2, -1),
}

#: Which of the results are returned, and from how many applications.
USES: dict[str, Callable[[Operator, Tensor], Sequence[Tensor]]] = {
    "all": lambda operator, t: list(operator(t)),
    "first": lambda operator, t: [operator(t)[0]],
    "last": lambda operator, t: [operator(t)[-1]],
    "view": lambda operator, t: [operator(t)[0].unsqueeze(0), operator(t)[-1].unsqueeze(0)[0]],
    "twice": lambda operator, t: [*operator(t), *operator(t)],
    "written": lambda operator, t: _written(list(operator(t))),
    "added": lambda operator, t: [],
    "both": lambda operator, t: list(operator(t)),
    "cached": lambda operator, t: [operator(t)[-1]],
}


def _written(results: list[Tensor]) -> list[Tensor]:
    """The first result after a write in place, and what the others see of it."""
    results[0].mul_(2.0)
    return results


class Several:
    """One operator of :data:`OPERATORS`, applied to one of a world's tensors.

    Args:
        operator: which one.
        operand: ``video``, ``rows`` (of the prompt), ``given`` (an argument), ``weight`` or ``cache``.
        use: one of :data:`USES`.
    """

    def __init__(self, operator: str, operand: str, use: str) -> None:
        self.operator, self.operand, self.use = OPERATORS[operator], operand, use

    def __call__(self, operands: Mapping[str, Tensor | None], x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """The video, with what is added to it, and what is returned besides."""
        found = operands.get(self.operand)
        operand = x if found is None else found
        tokens = operand.reshape(-1, *operand.shape[-2:])
        returned = USES[self.use](self.operator, tokens)
        if self.use in ("added", "both"):
            x = x + sum(part.mean() for part in self.operator(tokens) if part.is_floating_point())
        cache = operands.get("cache")
        if self.use == "cached" and cache is not None:
            _write(cache, self.operator(tokens)[0])
        return x, returned


def _write(cache: Tensor, part: Tensor) -> None:
    """Into the last slot, as much of it as there is room for."""
    row = part.detach().flatten()[: cache.shape[-1]]
    cache[:, -1, : row.shape[0]] = row.to(cache.dtype)
