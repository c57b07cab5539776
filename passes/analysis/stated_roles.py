"""Roles that the user stated and that change nothing: one remark each, with what would have to hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Set
from typing import NamedTuple

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.roles import Role
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss, Remark, RemarkKind


class _Use(NamedTuple):
    """Who reads a role, and of which inputs.

    Attributes:
        passes: the passes.
        fits: whether they can use a tensor.
        what: how such a tensor looks.
        hint: what else must hold.
    """

    passes: tuple[str, ...]
    fits: Callable[[torch.Tensor], bool]
    what: str
    hint: str


def _matrices(tensor: torch.Tensor, sides: Collection[tuple[int, int]], ranks: Collection[int]) -> bool:
    return tensor.is_floating_point() and tensor.dim() in ranks and tuple(tensor.shape[-2:]) in sides


_DECIDING = ("adaptive-context", "step-cache")

USES: dict[Role, _Use] = {
    Role.CONTEXT: _Use(
        ("adaptive-context",),
        lambda tensor: tensor.is_floating_point() and tensor.dim() == 5,
        "latents [batch, channels, frames, height, width]",
        "mark its frame axis dynamic, and give the cameras of its frames and of the chunk",
    ),
    Role.CAMERA: _Use(
        _DECIDING,
        lambda tensor: _matrices(tensor, [(4, 4)], (3, 4)),
        "world-to-camera matrices [batch, frames, 4, 4]",
        "put the denoising loop, or the choice of context, into the module",
    ),
    Role.INTRINSICS: _Use(
        _DECIDING,
        lambda tensor: _matrices(tensor, [(3, 3)], (2, 3, 4)) or tuple(tensor.shape[-1:]) == (4,),
        "matrices [..., 3, 3] or four numbers [..., 4]",
        "give the cameras that they belong to",
    ),
    Role.LATENT: _Use(
        _DECIDING,
        lambda tensor: tensor.is_floating_point() and tensor.dim() >= 3,
        "what is denoised, with at least three axes of floating point",
        "give the cameras of its frames",
    ),
    Role.TEXT: _Use(
        ("hoist-invariants",),
        lambda tensor: tensor.dim() >= 2,
        "tokens with at least two axes",
        "compute on it what no other input enters",
    ),
}
"""Roles that passes act on; of other inputs a stated role only keeps them from being taken for one of these."""


def unused_remarks(program: Program, pipeline: Iterable[str], said: Iterable[Remark]) -> Iterator[Remark]:
    """Near misses for stated roles that change nothing, each with what would have to hold.

    The rule says why: ``unfit`` inputs, roles ``unread`` by the pipeline; in a graph that is one of several, inputs
    that are ``absent`` and roles that were used ``nowhere`` may do their work in another.

    Args:
        pipeline: the passes that ran.
        said: what they said.
    """
    ran, heard = set(pipeline), {r.pass_name for r in said if r.kind is not RemarkKind.ANALYSIS}
    inputs = {program.input_of(node).path: node for node in program.placeholders()}
    for path, role in program.roles.items():
        node = inputs.get(path)
        found = _absent(program, path) if node is None else _unused(node, path, Role(role), ran, heard)
        if found is not None:
            rule, miss = found
            yield miss.remark("roles", rule)


def _absent(program: Program, path: str) -> tuple[str, Miss]:
    known = [entry.path for entry in program.inputs if entry.kind is InputKind.TENSOR]
    why = f"{path} is no input of this graph, so its role changes nothing here"
    hint = f"the inputs of this graph are: {', '.join(known) or 'none'}"
    return "absent", Miss(next(iter(program.graph.nodes)), why, hint)


def _unused(node: fx.Node, path: str, role: Role, ran: Set[str], heard: Set[str]) -> tuple[str, Miss] | None:
    use, tensor = USES.get(role), tensor_of(node)
    if use is None:
        return None
    if tensor is None or not use.fits(tensor):
        shape = "no tensor" if tensor is None else f"{tensor.dtype} of ({', '.join(map(str, tensor.shape))})"
        why = f"{path} is stated to be {role}, and nothing can be done with that: it is {shape}"
        return "unfit", Miss(node, why, f"{role} is {use.what}; leave the entry out, or state it of such an input")
    passes = [name for name in use.passes if name in ran]
    if not passes:
        why = f"{path} is stated to be {role}, which no pass of this pipeline looks at"
        return "unread", Miss(node, why, f"{' and '.join(use.passes)} would")
    if heard.isdisjoint(passes):
        why = f"{path} is stated to be {role}, and {' and '.join(passes)} found no place to use it in"
        return "nowhere", Miss(node, why, use.hint)
    return None
