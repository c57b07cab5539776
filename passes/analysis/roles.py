"""What each input is to a world model: the latent being made, context frames, cameras, text, and so on.

Inferred from shapes and from where the data flows; a name is only a tie-breaker, and the reason says so. What the user
stated (``options={"roles": {...}}``) wins. An input that fits no rule has no role, which is no error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.passes.analysis.attention_sites import AttentionSites
from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.analysis.stated_inputs import by_path, check_names
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.fake_values import Size, hinted_shape, size_of
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.op_arguments import pick_of
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten


class Role(StrEnum):
    """What an input can be; the same words as in the options."""

    LATENT = "latent"
    CONTEXT = "context"
    CAMERA = "camera"
    INTRINSICS = "intrinsics"
    TIMESTEP = "timestep"
    TEXT = "text"
    ACTION = "action"
    PARAMETER = "parameter"


@dataclass(frozen=True)
class Evidence:
    """A role and why: ``stated`` by the user, or the observation it was inferred from."""

    role: Role
    why: str
    stated: bool = False


@dataclass
class Roles:
    """The fact: evidence by input path; inputs without a role are absent."""

    evidence: dict[str, Evidence] = field(default_factory=dict)

    @classmethod
    def analyse(cls, program: Program) -> Self:
        """Infer what is not stated.

        Raises:
            OptionError: ``program.roles`` names an input that does not exist, or a role that is none.
        """
        stated = _stated(program)
        return cls({**_inferred(program, stated), **stated})

    def of(self, path: str) -> Role | None:
        """The role of an input, ``None`` when it has none."""
        found = self.evidence.get(path)
        return None if found is None else found.role

    def paths(self, role: Role) -> list[str]:
        """The inputs of a role."""
        return [path for path, evidence in self.evidence.items() if evidence.role is role]


def remarks(program: Program) -> tuple[Remark, ...]:
    """What each argument of the model was taken for, and from what; weights are left out."""
    roles = program.fact(Roles)
    said = []
    for entry in program.inputs:
        if entry.kind is not InputKind.TENSOR:
            continue
        evidence = roles.evidence.get(entry.path)
        role = str(evidence.role) if evidence else ""
        message = f"{entry.path} is {role}: {evidence.why}" if evidence else f"{entry.path} has no role"
        hint = "" if evidence else f'state one with options={{"roles": {{"{entry.path}": ...}}}} if it matters'
        args = {"input": entry.path, "role": role, "stated": bool(evidence and evidence.stated)}
        said.append(
            Remark(
                kind=RemarkKind.ANALYSIS, pass_name="roles", rule=role or "none", message=message, hint=hint, args=args
            )
        )
    return tuple(said)


def check_stated(program: Program) -> None:
    """Look up every input that a role or a grid is stated of.

    Raises:
        OptionError: a role that is none; an input that does not exist
            (:func:`~lightint_compile.passes.analysis.stated_inputs.check_names`).
    """
    for path, role in program.roles.items():
        if role not in set(Role):
            where = f"options['roles'][{path!r}]"
            raise OptionError(f"{role!r} is no role", where=where, fix=did_you_mean(role, map(str, Role)))
    check_names(program, "roles", program.roles)
    check_names(program, "grids", program.grids)


def _stated(program: Program) -> dict[str, Evidence]:
    check_stated(program)
    why = "stated in the options"
    return {path: Evidence(Role(role), why, stated=True) for path, role in by_path(program, program.roles).items()}


def _inferred(program: Program, stated: dict[str, Evidence]) -> dict[str, Evidence]:
    found = {
        entry.path: Evidence(Role.PARAMETER, f"it is a {entry.kind} of the module")
        for entry in program.inputs
        if entry.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    model = _Model(program, stated)
    for rule in _RULES:
        for name, evidence in rule(model):
            path = program.input_of(model.inputs[name]).path
            model.roles.setdefault(name, evidence.role)
            found.setdefault(path, evidence)
    return found


class _Model:
    """What the rules look at: arguments by node name, the roles found so far, and what the program makes of them."""

    def __init__(self, program: Program, stated: dict[str, Evidence]) -> None:
        tensors = {entry.name: entry for entry in program.inputs if entry.kind is InputKind.TENSOR}
        self.inputs = {node.name: node for node in program.placeholders() if node.name in tensors}
        self.roles = {name: stated[e.path].role for name, e in tensors.items() if e.path in stated}
        self.sites, self.past = program.fact(AttentionSites), program.fact(TokenGrid).past
        leaves = pytree.tree_leaves(program.graph.output_node().args[0])
        self.outputs = [shape_of(leaf) for leaf in leaves if tensor_of(leaf) is not None]
        self.seen = [hinted_shape(leaf.meta["val"]) for leaf in leaves if tensor_of(leaf) is not None]
        self.drawn = _drawn(program)

    def value(self, name: str) -> torch.Tensor:
        """The fake value of an argument."""
        value: torch.Tensor = self.inputs[name].meta["val"]
        return value

    def free(self) -> Iterator[tuple[str, fx.Node, list[Size]]]:
        """Arguments that have no role yet, with their shapes."""
        for name, node in self.inputs.items():
            if name not in self.roles:
                yield name, node, shape_of(node)

    def named(self, role: Role) -> list[fx.Node]:
        """Arguments that have this role."""
        return [self.inputs[name] for name, found in self.roles.items() if found is role]


_FRAMES = 2
"""Their axis in latents [batch, channels, frames, height, width]."""

Found = Iterator[tuple[str, Evidence]]
Finder = Callable[[_Model], Found]


def shape_of(node: fx.Node) -> list[Size]:
    """The sizes of a node's tensor."""
    return [size_of(size) for size in node.meta["val"].shape]


def _is_float(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


def _equal(left: list[Size], right: list[Size]) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def _kept_frames(model: _Model) -> Found:
    """Keys and values of earlier frames."""
    for name in dict.fromkeys(origin.node for origin in model.past.kept):
        if name in model.inputs and name not in model.roles:
            yield name, Evidence(Role.CONTEXT, model.past.why_of(name))


def _latents(model: _Model) -> Found:
    """Carried state: the shape of an output; or, with extra condition channels, its video apart from one axis."""
    free = [(name, shape) for name, node, shape in model.free() if _is_float(node) and len(shape) >= 3]
    exact = [name for name, shape in free if any(_equal(shape, output) for output in model.outputs)]
    near = [name for name, shape in free if len(shape) == 5 and any(_differs(shape, o) == [1] for o in model.outputs)]
    if exact:
        yield exact[0], Evidence(Role.LATENT, "an output has its shape: it is the state that the model updates")
    elif near:
        yield near[0], Evidence(Role.LATENT, "an output has its shape but for the channels")
    elif seen := [name for name, shape in free if len(shape) == 5 and hinted_shape(model.value(name)) in model.seen]:
        yield seen[0], Evidence(Role.LATENT, "an output had its shape at capture, in other terms of its sizes")
    elif drawn := [name for name, shape in free if name == model.drawn and _is_video_of(shape, model.outputs)]:
        yield drawn[0], Evidence(Role.LATENT, "the denoising steps begin with it, and some of its frames come out")


def _is_video_of(shape: list[Size], outputs: list[list[Size]]) -> bool:
    """Whether a volume has the shape of an output but for the number of frames."""
    return len(shape) == 5 and any(_differs(shape, output) == [_FRAMES] for output in outputs)


def _drawn(program: Program) -> str:
    """The input whose frames are the last ones that the denoising steps begin with; empty where there is none.

    Those in front may be frames of the history, which the chunk goes on from.
    """
    steps = program.fact(DenoisingLoop).steps
    node = steps[0].carried_in if steps else None
    while node is not None and node.op != "placeholder":
        node = _last_frames_of(node)
    return node.name if node is not None else ""


def _last_frames_of(node: fx.Node) -> fx.Node | None:
    """What the last frames of a value are moved from, by one operation."""
    joins = node.target is aten.cat.default and node.args[1:] in ((_FRAMES,), (_FRAMES - 5,))
    source = node.args[0] if joins or node.target in _MOVES else None
    last = source[-1] if isinstance(source, (list, tuple)) else source
    return last if isinstance(last, fx.Node) else None


def _differs(left: list[Size], right: list[Size]) -> list[int]:
    """Axes on which two shapes of one rank differ."""
    if len(left) != len(right):
        return []
    return [axis for axis, (a, b) in enumerate(zip(left, right, strict=True)) if not same(a, b)]


def _contexts(model: _Model) -> Found:
    """Latents of other frames: the latent's shape but for the number of frames, or frames gathered by number."""
    for latent in model.named(Role.LATENT):
        frames = frame_axis(model.sites, latent)
        for name, node, shape in model.free():
            if len(shape) != 5 or not _is_float(node):
                continue
            if _differs(shape, shape_of(latent)) == [frames]:
                yield name, Evidence(Role.CONTEXT, f"it is {latent.name} but for the number of frames")
            elif _equal(shape, shape_of(latent)) and _is_patchified_alone(node):
                yield name, Evidence(Role.CONTEXT, f"it has the shape of {latent.name} and is patchified on its own")
            elif any(_picks(user, frames) for user in node.users):
                yield name, Evidence(Role.CONTEXT, "its frames are gathered by number")


def frame_axis(sites: AttentionSites, latent: fx.Node) -> int:
    """The latent's frame axis, where the grid was made by views of it; else that of [batch, channels, frames, h, w]."""
    origins = [grid.origins[0] for site in sites for grid in site.query_axis.grids]
    return next((origin.axis for origin in origins if origin and origin.node == latent.name), 2)


def _picks(user: fx.Node, axis: int) -> bool:
    pick = pick_of(user)
    return pick is not None and pick.axis == axis


def _is_patchified_alone(node: fx.Node) -> bool:
    """Whether a convolution over a volume reads it without anything joined to it first."""
    moved = _readers(node, _MOVES | {aten.pad.default, aten.constant_pad_nd.default})
    return any(user.target is aten.conv3d.default for step in moved for user in step.users)


_MATRICES = ((4, 4), (3, 4))
_MOVES: frozenset[object] = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.slice.Tensor,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.permute.default,
        aten.transpose.int,
        aten.expand.default,
        aten.index_select.default,
        aten._to_copy.default,
        aten.clone.default,
    }
)


def _cameras(model: _Model) -> Found:
    """Rigid poses: 4x4 (or 3x4) matrices, one a frame, as they come or after a view."""
    for name, node, shape in model.free():
        if not _is_float(node) or len(shape) not in (3, 4):
            continue
        if tuple(shape[-2:]) in _MATRICES:
            yield name, Evidence(Role.CAMERA, f"its last two axes are a {shape[-2]}x{shape[-1]} matrix for every frame")
        elif any(
            tuple(shape_of(user)[-2:]) == (4, 4) for user in _readers(node, _MOVES) if tensor_of(user) is not None
        ):
            yield name, Evidence(Role.CAMERA, "the model views part of it as a 4x4 matrix for every frame")


def _readers(node: fx.Node, through: frozenset[object]) -> set[fx.Node]:
    """``node``, and what reads it through operations of one kind only."""
    return reached([node], lambda known: (user for user in known.users if user.target in through))


def _intrinsics(model: _Model) -> Found:
    """Focal lengths: a 3x3 matrix, or four numbers, for every camera."""
    for camera in model.named(Role.CAMERA):
        leading = hinted_shape(camera.meta["val"])[:-2]
        for name, node, shape in model.free():
            seen = hinted_shape(node.meta["val"])
            if _is_float(node) and (tuple(shape[-2:]) == (3, 3) or seen == (*leading, 4)):
                yield name, Evidence(Role.INTRINSICS, f"3x3 or four numbers for each matrix of {camera.name}")


def _conditions(model: _Model) -> Found:
    """Numbers that become sines and cosines: one for each camera is an action, otherwise a timestep."""
    waves = [(name, node) for name, node, _ in model.free() if len(_long_axes(node)) <= 2 and _makes_waves(node)]
    cameras = {hinted_shape(camera.meta["val"])[-3] for camera in model.named(Role.CAMERA) if _rank(camera) >= 3}
    for name, node in waves:
        shape = hinted_shape(node.meta["val"])
        if cameras.intersection(shape) and not _says(name, _TIME_WORDS):
            yield name, Evidence(Role.ACTION, "one number for each camera, embedded as sines and cosines")
        elif len(waves) == 1 or _says(name, _TIME_WORDS):
            named = "" if len(waves) == 1 else ", and its name says time"
            yield name, Evidence(Role.TIMESTEP, f"it is embedded as sines and cosines{named}")


def _rank(node: fx.Node) -> int:
    return len(node.meta["val"].shape)


def _long_axes(node: fx.Node) -> list[int]:
    return [size for size in hinted_shape(node.meta["val"]) if size != 1]


def _makes_waves(node: fx.Node) -> bool:
    """Whether a sine of it is taken before any product or reduction."""
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if user.target in (aten.sin.default, aten.cos.default):
                return True
            if user not in seen and (_is_elementwise(user) or user.target in _MOVES):
                seen.add(user)
                pending.append(user)
    return False


def _is_elementwise(node: fx.Node) -> bool:
    wide = (aten.outer.default, aten.einsum.default, aten.repeat_interleave.self_int)
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.target in wide


_TIME_WORDS = ("time", "sigma", "noise_level")
_ACTION_WORDS = ("action", "keyboard", "mouse", "button")


def _says(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)


def _texts(model: _Model) -> Found:
    """Tokens that are attended to as keys and are on no grid."""
    sources = {name for site in model.sites for span in site.key_spans if span.grid is None for name in span.sources}
    for name, node, shape in model.free():
        if name in sources and _is_float(node) and len(shape) >= 3:
            yield name, Evidence(Role.TEXT, "its tokens are attended to as keys, and have no grid")


def _named_actions(model: _Model) -> Found:
    """What only a name tells."""
    for name, _, _ in model.free():
        if _says(name, _ACTION_WORDS):
            yield name, Evidence(Role.ACTION, "only its name says so")


_RULES: tuple[Finder, ...] = (
    _kept_frames,
    _latents,
    _contexts,
    _cameras,
    _intrinsics,
    _conditions,
    _texts,
    _named_actions,
)
