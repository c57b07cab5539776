"""Whether keeping results is worth the check, in every call, that what they depend on is unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.fx as fx

from lightint_compile.passes.ir.flops import bytes_of_value, flops_of
from lightint_compile.passes.ir.program import tensor_of

#: FLOPs for each byte that is checked below which a device computes about as fast as it reads: an H100 does 500 TFLOP/s
#: in 16 bits and 50 in 32 while it reads 3.3 TB/s, and computing reads the weights as well. A CPU reads at about
#: the speed at which it multiplies one row, so that one row is not worth it and two are.
_WORTH = {"cuda": {2: 150.0, 4: 15.0}, "cpu": {2: 0.5, 4: 0.5}}

#: Bytes that are checked in no time.
_SMALL = 1 << 20


def objection(nodes: Sequence[fx.Node], weights: Sequence[fx.Node], text: Sequence[fx.Node]) -> tuple[str, str]:
    """Why the results of ``nodes`` should be computed in every call, and what would change that.

    They are made from ``weights`` (parameters and buffers) and ``text``, inputs of the program.

    Both are empty where they should be kept; on a device that nothing is known of, such as meta, they should.
    """
    sources = _tensors([*weights, *text])
    checked = sum(map(bytes_of_value, sources))
    flops = sum(map(flops_of, nodes))
    computes = {tensor.device.type for tensor in _tensors(node for node in nodes if flops_of(node))}
    hosted = sum(bytes_of_value(tensor) for tensor in _tensors(weights) if tensor.device.type == "cpu")
    cost = f"computed in every call, {flops / 1e9:.3g} GFLOP"
    if hosted and computes - {"cpu"}:
        told = (
            f"{hosted / 1e9:.3g} GB of the weights lie on the host, where telling that they are the same takes longer"
        )
        return f"{cost}: {told}", "keep the weights that the prompt goes through on the device"
    for device in computes & _WORTH.keys():
        worth = _WORTH[device][2 if all(map(_is_short, sources)) else 4]
        if checked > _SMALL and flops < worth * checked:
            told = f"telling that the {checked / 1e9:.3g} GB it comes from are the same takes about as long"
            return f"{cost}: {told}", ""
    return "", ""


def _tensors(nodes: Iterable[fx.Node]) -> list[torch.Tensor]:
    return [tensor for node in nodes if (tensor := tensor_of(node)) is not None]


def _is_short(tensor: torch.Tensor) -> bool:
    return tensor.element_size() <= 2 or not tensor.is_floating_point()
