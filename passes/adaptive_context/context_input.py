"""Context that arrives as an input: latents of earlier frames, their cameras, other inputs with one entry a frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.analysis.cameras import is_camera_shaped
from lightint_compile.passes.analysis.coming_frames import denoised, windows_read
from lightint_compile.passes.analysis.roles import Role, Roles
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.analysis.world import FRAMES, chunk_frames
from lightint_compile.passes.ir.fake_values import hint_at, hint_of, size_of
from lightint_compile.passes.ir.fresh_sizes import bounds
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.input_writes import written_buffers
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss
from lightint_compile.passes.ir.world_spec import StatedWorld, WorldSpec

aten = torch.ops.aten

UNBOUNDED = 1 << 20
"""Context frames of a capture that states no largest number."""


class PerFrame(NamedTuple):
    """An input with one entry a context frame.

    Attributes:
        node: the input.
        axis: its frame axis.
        chunk: whether the frames of the coming chunk follow on the same axis.
    """

    node: fx.Node
    axis: int
    chunk: bool


@dataclass(frozen=True)
class ContextInput:
    """Context frames that a caller chose.

    Attributes:
        context: the latents [B, C, n, h, w].
        cameras: world-to-camera of the context [B, n, 4, 4], or of context and chunk [B, n + chunk, 4, 4].
        coming: world-to-camera of the chunk [B, chunk, 4, 4] where ``cameras`` has the context's alone.
        per_frame: every input to be selected from, ``context`` and ``cameras`` among them.
        lengths: the symbols of the capture that follow n, and by how many frames each is more.
        world: the chunk, and as memory the largest n.
    """

    context: fx.Node
    cameras: fx.Node
    coming: fx.Node | None
    per_frame: tuple[PerFrame, ...]
    lengths: Lengths
    world: WorldSpec


class Lengths(dict[sympy.Symbol, int]):
    """Symbols by how many more than the number of context frames they count."""

    def beyond(self, size: int | torch.SymInt) -> int | None:
        """By how much a size is more than the number of context frames; ``None`` when it does not follow that."""
        found = _affine(size)
        return self[found[0]] + found[1] if found is not None and found[0] in self else None


def find_context_input(program: Program, stated: StatedWorld) -> ContextInput | Miss | None:
    """The context that is an input of ``program``, in the world as far as it is ``stated``; ``None`` without one."""
    roles = program.fact(Roles)
    inputs = {program.input_of(node).path: node for node in program.placeholders()}
    cameras = [node for path in roles.paths(Role.CAMERA) if is_camera_shaped(node := inputs[path])]
    contexts = [inputs[path] for path in roles.paths(Role.CONTEXT)]
    past = program.fact(TokenGrid).past
    found = [_examine(program, stated, node, cameras) for node in contexts if not past.why_of(node.name)]
    given = [each for each in found if isinstance(each, ContextInput)]
    written = written_buffers(program.graph)
    for each in given:
        if any(entry.node in written for entry in each.per_frame):
            return Miss(each.context, "the call writes to an input that holds a value for each frame", "")
    return given[0] if given else next((each for each in found if each is not None), None)


def _examine(
    program: Program, stated: StatedWorld, context: fx.Node, cameras: list[fx.Node]
) -> ContextInput | Miss | None:
    latents = tensor_of(context)
    if latents is None or latents.dim() != 5 or not context.users:
        return None
    frames = latents.shape[FRAMES]
    if isinstance(frames, int) and frames == 1:  # an image: there is nothing to choose from
        return None
    affine = _affine(frames)
    if affine is None or not isinstance(frames, torch.SymInt):
        hint = f"mark its frame axis dynamic: torch._dynamo.mark_dynamic({context.name}, {FRAMES})"
        return Miss(context, f"{frames} context frames are fixed in the captured graph", hint) if cameras else None
    if not cameras:
        return Miss(context, "no input holds the cameras", 'name it: options={"roles": {"<input>": "camera"}}')
    least, most = bounds(frames)
    world = stated.world(
        chunk=chunk_frames(stated, _denoised_besides(program, context)), memory=UNBOUNDED if most is None else most
    )
    chunk = world.chunk
    if least is None or least > world.fewest:
        why = f"the graph was captured for at least {least} context frames, and holds for no fewer"
        return Miss(context, why, "leave conditions on the number of context frames out of the module")
    lengths = Lengths({affine[0]: -affine[1]})
    pair = _pair(cameras, frames, lengths, chunk)
    if pair is None:
        reason = f"no cameras belong to the {hint_of(frames)} context frames and one chunk of {chunk} latent frames"
        return Miss(cameras[0], reason, "give the cameras of the context and of the coming chunk")
    astray = _read_elsewhere(program, context, pair[0], chunk) if pair[1] is None else ""
    if astray:
        return Miss(pair[0], astray, "give the cameras and latents of the context first, then those of the chunk")
    if _returned(program, lengths):
        return Miss(context, "the module returns something for every context frame", "return the chunk alone")
    return ContextInput(context, *pair, tuple(_per_frame(program, lengths, chunk)), lengths, world)


def _returned(program: Program, lengths: Lengths) -> bool:
    """Whether a size of a result follows the number of context frames."""
    values = [node.meta.get("val") for node in program.graph.output_node().all_input_nodes]
    sizes = [size for value in values for size in (value.shape if isinstance(value, torch.Tensor) else (value,))]
    return any(isinstance(size, torch.SymInt) and size.node.expr.has(*lengths) for size in sizes)


def _affine(size: int | torch.SymInt) -> tuple[sympy.Symbol, int] | None:
    """(s, k) of a size s + k."""
    if not isinstance(size, torch.SymInt) or len(size.node.expr.free_symbols) != 1:
        return None
    (symbol,) = size.node.expr.free_symbols
    more = size.node.expr - symbol
    return (symbol, int(more)) if more.is_Integer else None


def _denoised_besides(program: Program, context: fx.Node) -> fx.Node | None:
    """The input that is denoised, and is not the context."""
    inputs = {program.input_of(node).path: node for node in program.placeholders()}
    latents = (inputs[path] for path in program.fact(Roles).paths(Role.LATENT))
    return next((node for node in latents if node is not context), None)


def _read_elsewhere(program: Program, context: fx.Node, cameras: fx.Node, chunk: int) -> str:
    """Why the last of ``cameras`` are not those that what is denoised reads; empty where nothing speaks against it."""
    starts = denoised(program)
    frames = hint_of(context.meta["val"].shape[FRAMES])
    for window in windows_read(program, cameras, starts) if starts else ():
        if window.first is None or window.count != chunk:
            continue
        if hint_at(cameras, window.first) != frames:
            return f"the steps read the cameras of {window}, and those of the chunk are taken to be the last"
    steps = {*starts, *reached(starts, _readers)}
    given = {context, *reached([context], _readers)} - steps
    for node in program.calls(aten.cat.default):
        places = [[at for at, part in enumerate(node.args[0]) if part in group] for group in (given, steps)]  # type: ignore[arg-type]
        if all(places) and max(places[1]) < min(places[0]):
            return f"{node.name} puts the chunk in front of its context, and its cameras are taken to be the last"
    return ""


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    return (user for user in node.users if user.op != "output")


def _pair(
    cameras: list[fx.Node], frames: torch.SymInt, lengths: Lengths, chunk: int
) -> tuple[fx.Node, fx.Node | None] | None:
    """The cameras of context and chunk in one input, or in two; a symbol of their own is added to ``lengths``."""
    by_length = {_beyond(node, frames, lengths): node for node in reversed(cameras)}
    coming = next((node for node in cameras if size_of(node.meta["val"].shape[-3]) == chunk), None)
    beyond = chunk if chunk in by_length else 0
    if beyond not in by_length or (beyond == 0 and coming is None):
        return None
    chosen = by_length[beyond]
    own = _affine(chosen.meta["val"].shape[-3])
    assert own is not None
    lengths.setdefault(own[0], beyond - own[1])
    return chosen, None if beyond else coming


def _beyond(node: fx.Node, frames: torch.SymInt, lengths: Lengths) -> int | None:
    """How many frames more than the context cameras have: as the capture knows it, else as it saw it."""
    size = node.meta["val"].shape[-3]
    known = lengths.beyond(size)
    return known if known is not None or _affine(size) is None else hint_of(size) - hint_of(frames)


def _per_frame(program: Program, lengths: Lengths, chunk: int) -> Iterator[PerFrame]:
    """Inputs that have an axis as long as the context, or as context and chunk."""
    for node in program.placeholders():
        tensor = tensor_of(node)
        if tensor is None or program.input_of(node).kind is not InputKind.TENSOR:
            continue
        found = [
            (axis, beyond) for axis, size in enumerate(tensor.shape) if (beyond := lengths.beyond(size)) in (0, chunk)
        ]
        if found:
            axis, beyond = found[0]
            yield PerFrame(node, axis, beyond == chunk)
