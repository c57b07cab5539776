"""What is put into a memo while Dynamo traces (``memos``), and whether it is as good when it is computed again.

It is where it is made of tensors that modules have, and of numbers: what the call is given differs from one call to the
next, whatever the key says. Nothing in it is random. It is no room for what is written later, as caches of keys and
values begin, and the graph writes to none of it. Tensors count writes themselves, fake ones and all that share memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.source import GlobalSource, LocalSource
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.lists import BaseListVariable
from torch._dynamo.variables.tensor import TensorVariable
from torch._guards import ChainedSource
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

_RANDOM = re.compile(r"rand|normal(?!i)|bernoulli|multinomial|dropout|poisson|exponential|uniform|geometric|cauchy")
_FILLED = re.compile(r"(new_)?(zeros|ones|empty|full)(_like)?|empty_strided")
_MOVED = frozenset(
    {
        *("to", "type", "float", "double", "half", "bfloat16", "cuda", "detach", "clone", "contiguous", "pin_memory"),
        *("view", "reshape", "expand", "repeat", "unsqueeze", "squeeze", "transpose", "permute", "stack", "cat"),
    }
)
"""What is room still when it was moved."""


class NotAgainError(Exception):
    """Why something is not as good when it is computed again."""


def are_tensors(value: Any) -> bool:
    """Whether a value is of tensors alone."""
    if isinstance(value, (tuple, list)):
        return all(map(are_tensors, value))
    return value is None or isinstance(value, torch.Tensor)


def watched_in(value: VariableTracker, tx: Any) -> list[tuple[torch.Tensor, int]]:
    """The tensors that no graph may write to for the sake of an entry, with how often they are written to by now.

    These are those of the entry, and those of modules that it is made of, since the graph's beginning.

    Args:
        value: the entry, as Dynamo's variable.
        tx: Dynamo's translator, which traces what puts it into the memo.

    Raises:
        NotAgainError: it is not as good when it is computed again.
    """
    found = []
    for tensor in _tensors(value):
        node = tensor.as_proxy().node
        found.append((_held(node), _held(node)._version))
        found += [(_held(each), 0) for each in _given_to(node, tx)]
    return found


def _tensors(value: VariableTracker) -> Iterator[TensorVariable]:
    value = value.realize()
    if type(value) is TensorVariable:
        yield value
    elif isinstance(value, BaseListVariable):
        for each in value.items:
            yield from _tensors(each)
    elif not (value.is_python_constant() and value.as_python_constant() is None):
        raise NotAgainError("it keeps more than tensors")


def _given_to(node: fx.Node, tx: Any) -> list[fx.Node]:
    """The tensors of modules that a node is made of."""
    made_of = _made_of(node)
    given = [each for each in made_of if each.op == "placeholder"]
    names = {str(getattr(each.target, "__name__", each.target)) for each in made_of if each.op != "placeholder"}
    if any(map(_RANDOM.search, names)):
        raise NotAgainError("what it keeps is random")
    if not all(_is_of_a_module(each, tx) for each in given):
        raise NotAgainError("what it keeps is made of an argument of the call, or of what is no module's")
    if not given and all(name in _MOVED or _FILLED.fullmatch(name) for name in names):
        raise NotAgainError("it keeps room for what is written later")
    return given


def _made_of(node: fx.Node) -> set[fx.Node]:
    """A node and what it is made of, down to numbers that are known when a call begins."""
    waiting, found = [node], {node}
    while waiting:
        fresh = {each for each in waiting.pop().all_input_nodes if not _is_number(each)} - found
        waiting += fresh
        found |= fresh
    return found


def _held(node: fx.Node) -> torch.Tensor:
    held: torch.Tensor = node.meta["example_value"]
    return held


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("example_value")
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return not free_unbacked_symbols(value)
    return isinstance(value, (int, float)) or getattr(node.meta.get("grapharg"), "pass_arg_as_tensor", False)


def _is_of_a_module(node: fx.Node, tx: Any) -> bool:
    source = getattr(node.meta.get("grapharg"), "source", None)
    while isinstance(source, ChainedSource):
        source = source.base
    if isinstance(source, LocalSource):
        return isinstance(tx.output.root_tx.f_locals.get(source.local_name), torch.nn.Module)
    return isinstance(source, GlobalSource) and isinstance(tx.f_globals.get(source.global_name), torch.nn.Module)
