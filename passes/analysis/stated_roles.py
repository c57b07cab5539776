"""Roles and grids that the user stated and that change nothing: one remark each, with what would have to hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.roles import Role
from lightint_compile.passes.analysis.stated_inputs import by_path, matches
from lightint_compile.passes.analysis.token_grid import TokenGrid
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


_SPARSE = "sparse-attention"
_DECIDING = ("adaptive-context", "step-cache")

USES: dict[Role, _Use] = {
    Role.CONTEXT: _Use(
        ("adaptive-context",),
        lambda tensor: tensor.is_floating_point() and tensor.dim() == 5,
        "latents [batch, channels, frames, height, width], or keys and values joined in front of the current ones",
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


class _Said:
    """What passes said of a program.

    Attributes:
        ran: the passes.
        heard: those that found places to speak of.
        frames: inputs whose keys and values were looked at as frames, or were said not to be.
    """

    def __init__(self, pipeline: Iterable[str], remarks: Iterable[Remark]) -> None:
        remarks = list(remarks)
        self.ran = frozenset(pipeline)
        self.heard = frozenset(r.pass_name for r in remarks if r.kind is not RemarkKind.ANALYSIS)
        self.frames = frozenset(path for r in remarks for path in r.args.get(FRAMES_OF, ()))


FRAMES_OF = "frames_of"
"""Under this name a remark's ``args`` hold the inputs that it speaks of as frames."""


def unused_remarks(program: Program, pipeline: Iterable[str], remarks: Iterable[Remark]) -> Iterator[Remark]:
    """Near misses for stated roles and grids that change nothing, each with what would have to hold.

    The rule says why: ``unfit`` inputs, roles ``unread`` by the pipeline; in a graph that is one of several, inputs
    that are ``absent`` and roles that were used ``nowhere`` may do their work in another. Of a pattern one input that
    is used is enough.

    Args:
        pipeline: the passes that ran.
        remarks: what they said.
    """
    said = _Said(pipeline, remarks)
    for entry, nodes in _named(program, program.roles):
        role = Role(program.roles[entry])
        found = [_unused(program, node, entry, role, said) for node in nodes]
        yield from _least(program, entry, "role", found, "roles")
    for entry, nodes in _named(program, program.grids):
        found = [_unplaced(node, entry, said, program.input_of(node).path) for node in nodes]
        yield from _least(program, entry, "grid", found, "grids")


def _named(program: Program, entries: Iterable[str]) -> Iterator[tuple[str, list[fx.Node]]]:
    """Every entry with the inputs for which it counts."""
    nodes = dict(zip((entry.path for entry in program.inputs), program.placeholders(), strict=True))
    entry_of = by_path(program, {entry: entry for entry in entries})
    for entry in entries:
        yield entry, [nodes[path] for path, by in entry_of.items() if by == entry]


_Unused = tuple[str, Miss] | None


def _least(program: Program, entry: str, what: str, found: list[_Unused], name: str) -> Iterator[Remark]:
    """One remark where all that an entry names goes unused."""
    missed = [_absent(program, entry, what)] if not found else [] if None in found else list(filter(None, found))[:1]
    for rule, miss in missed:
        yield miss.remark(name, rule)


def _absent(program: Program, path: str, what: str) -> tuple[str, Miss]:
    if matches(program, path):
        why = f"of every input that {path} names another entry states the {what}"
        return "absent", Miss(next(iter(program.graph.nodes)), why, "leave the entry out")
    known = [entry.path for entry in program.inputs if entry.kind is InputKind.TENSOR]
    why = f"{path} is no input of this graph, so its {what} changes nothing here"
    hint = f"the inputs of this graph are: {', '.join(known) or 'none'}"
    return "absent", Miss(next(iter(program.graph.nodes)), why, hint)


def _unused(program: Program, node: fx.Node, entry: str, role: Role, said: _Said) -> _Unused:
    use, tensor = USES.get(role), tensor_of(node)
    if use is None or (role is Role.CONTEXT and program.input_of(node).path in said.frames):
        return None
    if tensor is None or not use.fits(tensor):
        if role is Role.CONTEXT and _SPARSE not in said.ran and program.fact(TokenGrid).past.why_of(node.name):
            return "unread", _unread(node, f"{entry} is stated to be {role}", _SPARSE)
        shape = "no tensor" if tensor is None else f"{tensor.dtype} of ({', '.join(map(str, tensor.shape))})"
        why = f"{entry} is stated to be {role}, and nothing can be done with that: it is {shape}"
        return "unfit", Miss(node, why, f"{role} is {use.what}; leave the entry out, or state it of such an input")
    passes = [name for name in use.passes if name in said.ran]
    if not passes:
        return "unread", _unread(node, f"{entry} is stated to be {role}", *use.passes)
    if said.heard.isdisjoint(passes):
        why = f"{entry} is stated to be {role}, and {' and '.join(passes)} found no place to use it in"
        return "nowhere", Miss(node, why, use.hint)
    return None


def _unplaced(node: fx.Node, entry: str, said: _Said, path: str) -> _Unused:
    if path in said.frames:
        return None
    if _SPARSE not in said.ran:
        return "unread", _unread(node, f"{entry} is stated to hold frames", _SPARSE)
    why = f"{entry} is stated to hold frames, and no attention reads it in front of the current frames"
    return "nowhere", Miss(node, why, "state grids of keys and values that torch.cat puts in front of the current ones")


def _unread(node: fx.Node, stated: str, *passes: str) -> Miss:
    return Miss(node, f"{stated}, which no pass of this pipeline looks at", f"{' and '.join(passes)} would")
