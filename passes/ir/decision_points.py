"""Decision points: calls in the root graph that the driver answers on the host.

A point is a module without weights or kernels. Its call is a node like any other, so that a rewritten graph prints,
prunes and snapshots; what answers it is bound when the program is lowered: state belongs to the driver.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
import torch.fx as fx

from lightint_compile.errors import StateError
from lightint_compile.passes.ir.decision_policy import Policy

PLAN = "plan"
"""The name of the one point that decides a chunk: its node and its module."""


@dataclass(frozen=True)
class PlanPoint:
    """Called once a chunk, before everything else:
    ``plan(extrinsics[, history[, frames, inputs]], first=, intrinsics=) -> (context, record, fresh, slots)``.

    ``extrinsics`` are [B, F, 4, 4] or [F, 4, 4] world-to-camera. The coming chunk's are ``policy.chunk`` of them from
    ``first`` on (a number, or int64 [chunk] of consecutive ones on a device), by default the last; those before are the
    history's, those after are not read. ``intrinsics``, [..., 3, 3] or [..., 4], set the field of view. ``history`` [B,
    C, F, h, w] is read for its latest changes. The context index is int64 [m] on the device of the history (``None``
    when context is not decided); the record is what step points are asked with.

    Where keys and values are kept (:class:`KeepPoint`), ``frames`` are the tensors that say everything of a frame,
    ``inputs`` what keys and values depend on besides, and the fresh index is the end of the context index: the frames
    to compute; ``slots``, int64 [kept], say where the values of the frames before it are. Else both are ``None``.

    Attributes:
        policy: by which rules.
        frame_axes: the frame axis of each of ``frames``.
        cameras: how many there are a latent frame, where every frame of the video has one. Only those of the coming
            frames, and the ones that are as far apart before them, are looked at.
    """

    policy: Policy
    frame_axes: tuple[int, ...] = ()
    cameras: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`point_from` takes it back."""
        more = {"frame_axes": list(self.frame_axes), "cameras": self.cameras}
        return {"kind": "plan", "policy": self.policy.to_dict(), **more}


@dataclass(frozen=True)
class StepPoint:
    """Asked before one denoising step: ``step(record[, now, before]) -> bool``, true when the step may be reused.

    Attributes:
        step: its number in the loop.
        drift: largest relative change, tile by tile, from ``before`` to ``now`` (one activation [B, tokens, channels]
            of this step and of the latest computed one) at which the step is still reused; ``None`` checks nothing.
        each: whether the answer is a tuple with one entry for each element of the batch; else all must agree.
        group: the process group of whose ranks each is asked with its part of the tokens; empty where there is one.
    """

    step: int
    drift: float | None = None
    each: bool = False
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`point_from` takes it back."""
        return {"kind": "step", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class KeepPoint:
    """Called with what was computed for fresh frames: ``keep(record, values) -> None``; later chunks can recall it.

    Attributes:
        site: which of the kept values this is, from 0.
        sites: how many there are; a chunk's values count as kept when all of them are there.
        axis: the token axis of ``values``.
        frame_tokens: tokens of a frame.
    """

    site: int
    sites: int
    axis: int
    frame_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`point_from` takes it back."""
        return {"kind": "keep", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class RecallPoint:
    """Called for what was kept: ``recall(record, *sizes) -> values`` in all slots, contiguous and for reading.

    Only slots that the plan names hold anything. They are read from their slots without a copy into one piece; no chunk
    writes to slots that it reads.

    Attributes:
        site: as of :class:`KeepPoint`.
        shape: the shape of the values, ``None`` for the slots, ``-1`` for each of ``sizes``.
        slots: how many there are.
        dtype, device: of the values, as text.
    """

    site: int
    shape: tuple[int | None, ...]
    slots: int
    dtype: str
    device: str

    def sized(self, sizes: Sequence[int]) -> list[int]:
        """The shape of the values with the ``sizes`` of a call."""
        given = iter(sizes)
        return [self.slots if size is None else next(given) if size < 0 else size for size in self.shape]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`point_from` takes it back."""
        return {"kind": "recall", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class RowsPoint:
    """Called for inputs with a row a token, few of which differ: two results for each,
    ``rows(*inputs) -> (first, number, ...)``.

    ``first``, int64 [rows], is where each run of equal rows of an input begins; ``number``, int64 [tokens], is the run
    that each row belongs to. There are two runs at least; one that has no rows of its own repeats the one before.

    Attributes:
        axes: of each input the axis of its rows.
    """

    axes: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`point_from` takes it back."""
        return {"kind": "rows", "axes": list(self.axes)}


@dataclass(frozen=True)
class VisitPoint:
    """Called in a program that is one step of a loop outside:
    ``visit(latent, timestep, cameras[, first], intrinsics=) -> (reused, visit, latest, previous, weight)``.

    The runtime tells from call to call which chunk and step this is: ``lightint_compile/runtime/followed_loop.py``.
    The last of ``cameras`` are those of the latent's frames, ``first`` is the first block's output [B, N, C]. Where
    ``reused``, the prediction is ``latest + (latest - previous) * weight``; else the three are ``None``, the step
    computes, and a :class:`PredictedPoint` is told what came of the ``visit``.

    Attributes:
        policy: by which rules; its steps are known once a chunk has been seen.
        drift: as of :class:`StepPoint`.
        extrapolates: whether the line goes through two predictions; else it holds the latest.
        group: as of :class:`StepPoint`.
    """

    policy: Policy
    drift: float | None = None
    extrapolates: bool = True
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`point_from` takes it back."""
        return {"kind": "visit", **dataclasses.asdict(self), "policy": self.policy.to_dict()}


@dataclass(frozen=True)
class PredictedPoint:
    """Called with what a step gave: ``predicted(visit, prediction) -> None``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`point_from` takes it back."""
        return {"kind": "predicted"}


PointSpec: TypeAlias = PlanPoint | StepPoint | KeepPoint | RecallPoint | VisitPoint | PredictedPoint | RowsPoint


def point_from(data: Mapping[str, Any]) -> PointSpec:
    """The inverse of ``to_dict`` of any point, also after a way through JSON."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    kind = str(fields.pop("kind"))
    if kind == "plan":
        return PlanPoint(Policy.from_dict(data["policy"]), fields["frame_axes"], fields["cameras"])
    if kind == "visit":
        return VisitPoint(**{**fields, "policy": Policy.from_dict(data["policy"])})
    kinds: dict[str, Any] = {
        "step": StepPoint,
        "keep": KeepPoint,
        "recall": RecallPoint,
        "rows": RowsPoint,
        "predicted": PredictedPoint,
    }
    return cast(PointSpec, kinds[kind](**fields))


class DecisionPoint(torch.nn.Module):
    """The module that a decision node calls.

    Attributes:
        spec: what is decided.
    """

    def __init__(self, spec: PointSpec) -> None:
        super().__init__()
        self.spec = spec
        # A decision is written down even if nothing reads its value; which rows differ is no decision.
        self._is_impure = not isinstance(spec, RowsPoint)

    def forward(self, *args: Any) -> Any:
        """Nothing: a graph with decisions runs through its driver."""
        raise StateError(
            "a decision was asked of the graph",
            why="decisions are bound when the program is lowered",
            fix="run the compiled module; to run the bare graph, leave adaptive-context and step-cache out",
        )


def point_of(module: torch.nn.Module, node: fx.Node) -> PointSpec | None:
    """The point that ``node`` calls; ``None`` for every other node."""
    if node.op != "call_module":
        return None
    called = module.get_submodule(str(node.target))
    return called.spec if isinstance(called, DecisionPoint) else None


def is_region_call(module: torch.nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` calls an outlined region."""
    return node.op == "call_module" and point_of(module, node) is None


def is_outlined(module: torch.nn.Module, graph: fx.Graph) -> bool:
    """Whether a graph calls regions, so that it is a root already."""
    return any(is_region_call(module, node) for node in graph.nodes)
