"""The calls that a written file is checked with: the example, another length, both sides of what is decided."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from lightint_compile.errors import told
from lightint_compile.exporting.open_decisions import DRIFT, Opened, StateInput
from lightint_compile.torch_marks import eager_calls

log = logging.getLogger(__name__)

GROWTH = (4, 1, 8, 2, 16)
"""By how much sizes may grow for a call of another length; the first that the module takes is used."""

Sizes = dict[sympy.Symbol, int]


@dataclass(frozen=True)
class Call:
    """One call of the module, with what is decided in it.

    Attributes:
        name: what it shows, for the line that tells of the check.
        args, kwargs: of the module.
        decided: further arguments by name.
        sizes: what the symbols of the captured program are in it.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sizes: Sizes
    decided: Mapping[str, Tensor]

    @property
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments."""
        return self.args, {**self.kwargs, **self.decided}


def example_call(
    program: ExportedProgram, opened: Opened, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str = "example"
) -> Call:
    """The call with these arguments, in which nothing is reused."""
    sizes = _sizes_of(program, args, kwargs)
    return Call(name, args, kwargs, sizes, _undecided(opened, sizes))


def grown_calls(program: ExportedProgram, call: Call) -> Iterator[Call]:
    """The call with more of every size that is a symbol, by one growth after another; the last rows are repeated."""
    for growth in GROWTH if call.sizes else ():
        sizes = {symbol: value + growth for symbol, value in call.sizes.items()}
        flat, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
        longer = [_resized(value, node.meta["val"], sizes) for value, node in zip(flat, _user_inputs(program))]  # noqa: B905
        args, kwargs = pytree.tree_unflatten(longer, spec)
        yield replace(call, name=f"{growth} more of every size", args=args, kwargs=kwargs, sizes=sizes)


def sides_of(opened: Opened, calls: Sequence[Call]) -> list[Call]:
    """The calls, each with its decisions; and the first with everything reused that may be."""
    every = [replace(call, decided=_undecided(opened, call.sizes, fewer=number)) for number, call in enumerate(calls)]
    flags = {each.name: torch.tensor(True) for each in opened.inputs if each.default is False}
    if not flags:
        return every
    if any(each.name == DRIFT for each in opened.inputs):
        flags[DRIFT] = torch.tensor(float("inf"))
    return [*every, replace(every[0], name="every step reused", decided={**every[0].decided, **flags})]


def is_dynamic(call: Call) -> bool:
    """Whether some size of the call is a symbol."""
    return bool(call.sizes)


def accepted(module: Any, calls: Iterator[Call]) -> Call | None:
    """The first of ``calls`` that the module takes."""
    for call in calls:
        try:
            with eager_calls():
                module(*call.args, **call.kwargs)
        except Exception as error:
            log.debug("%s: %s", call.name, told(error))
        else:
            return call
    return None


def _user_inputs(program: ExportedProgram) -> list[torch.fx.Node]:
    kinds = [spec.kind for spec in program.graph_signature.input_specs]
    nodes = program.graph.find_nodes(op="placeholder")
    return [node for node, kind in zip(nodes, kinds, strict=True) if kind is InputKind.USER_INPUT]


def _sizes_of(program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sizes:
    spec = program.call_spec.in_spec
    named = pytree.tree_unflatten([0] * spec.num_leaves, spec)[1]
    flat = pytree.tree_leaves((args, {name: kwargs[name] for name in named if name in kwargs}))
    found: Sizes = {}
    for value, node in zip(flat, _user_inputs(program), strict=False):
        fake = node.meta.get("val")
        if isinstance(value, Tensor) and isinstance(fake, Tensor):
            pairs: Any = zip(fake.shape, value.shape, strict=True)
            symbolic = [(size.node.expr, int(real)) for size, real in pairs if isinstance(size, torch.SymInt)]
            found |= {symbol: real for symbol, real in symbolic if symbol.is_Symbol}
    return found


def _resized(value: Any, fake: Any, sizes: Sizes) -> Any:
    """A tensor with rows of its own repeated at the end, or cut off, until it has ``sizes``."""
    if not isinstance(value, Tensor) or not isinstance(fake, Tensor):
        return value
    for axis, size in enumerate(fake.shape):
        wanted = size_in(size, sizes)
        missing = wanted - value.shape[axis]
        if missing > 0 and value.shape[axis]:
            last = value.narrow(axis, value.shape[axis] - 1, 1)
            value = torch.cat([value, last.repeat_interleave(missing, axis)], axis)
        elif missing < 0:
            value = value.narrow(axis, 0, max(wanted, 0)).contiguous()
    return value


def size_in(size: int | torch.SymInt, sizes: Sizes) -> int:
    """A size of the program as a number, in a call whose symbols are ``sizes``."""
    return int(size.node.expr.subs(sizes)) if isinstance(size, torch.SymInt) else int(size)


def _undecided(opened: Opened, sizes: Sizes, fewer: int = 0) -> dict[str, Tensor]:
    """The decision to read the newest context, ``fewer`` frames less than may be, and to reuse nothing."""
    if opened.policy is None:
        return {}
    frames = opened.policy.memory if opened.history is None else size_in(opened.history.shape[2], sizes)
    context = torch.arange(frames)[-max(min(frames, opened.policy.memory) - fewer, 2) :]
    known = {"context_frames": context, "fresh_frames": context, "kept_slots": context[:0]}
    known |= {"asked_places": torch.arange(opened.policy.asked_frames)}
    for each in opened.inputs:
        if each.name in known:
            shape: Any = each.value.shape[0]
            if isinstance(shape, torch.SymInt) and shape.node.expr.is_Symbol:
                sizes = {**sizes, shape.node.expr: len(known[each.name])}
    return {each.name: _value(each, known, sizes) for each in opened.inputs}


def _value(state: StateInput, known: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
    device, dtype = state.value.device, state.value.dtype
    if state.name in known:
        return known[state.name].to(device, dtype)
    if state.default is not None:
        return torch.tensor(state.default, dtype=dtype, device=device)
    return torch.zeros([size_in(size, sizes) for size in state.value.shape], dtype=dtype, device=device)
