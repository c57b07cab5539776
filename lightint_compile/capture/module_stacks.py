"""Which modules a node is in, where the trace of one call stands for other calls."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from lightint_compile.passes.ir.remarks import clean_path

Stack = Mapping[str, tuple[str, Any]]
"""Modules around a node, outermost first: path and class by the module's identity, with ``@n`` from call 1 on."""


class Differs(Exception):  # noqa: N818 - control flow, not an error
    """What was traced once may not be what tracing every call gives."""


class ModuleStacks:
    """Numbers the calls of every module in a graph, whose nodes are asked for from the first to the last.

    Dynamo numbers the calls that it traces. Those that another call stands for it does not see.

    Args:
        root: the module whose call was traced.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._calls: defaultdict[str, dict[Any, str]] = defaultdict(dict)
        self._traced: Counter[str] = Counter()

    def traced(self, stack: Stack) -> Stack:
        """The stack of a node that Dynamo traced, its calls counted anew.

        Raises:
            Differs: an earlier call of one of the modules left no node to count.
        """
        return {self._traced_key(key, cleaned(path)): entry for key, entry in stack.items() for path in entry[:1]}

    def copied(self, stack: Stack, call: object, renamed: Mapping[str, str]) -> Stack:
        """The stack of a node that was traced elsewhere.

        Args:
            call: what the node was copied for.
            renamed: prefixes of the paths of modules, as they were where it was traced to as they are here.

        Raises:
            Differs: a renamed path leads to no module.
        """
        made: dict[str, tuple[str, Any]] = {}
        for key, (path, kind) in stack.items():
            here = with_prefix(cleaned(path), renamed)
            made[self._copied_key(here, (call, key))] = (here, kind)
        return made

    def _traced_key(self, key: str, path: str) -> str:
        calls = self._calls[path]
        if key not in calls:
            identity, _, number = key.partition("@")
            if int(number or 0) != self._traced[path]:
                raise Differs(f"a call of {path} left nothing in the graph")
            self._traced[path] += 1
            calls[key] = _numbered(identity, len(calls))
        return calls[key]

    def _copied_key(self, path: str, call: object) -> str:
        calls = self._calls[path]
        if call not in calls:
            try:
                module = self._root.get_submodule(path)
            except AttributeError as error:
                raise Differs(str(error)) from error
            calls[call] = _numbered(str(id(module)), len(calls))
        return calls[call]


def _numbered(identity: str, call: int) -> str:
    return f"{identity}@{call}" if call else identity


@cache
def cleaned(path: str) -> str:
    """:func:`clean_path`, for the few paths that many nodes have."""
    return clean_path(path)


def with_prefix(path: str, renamed: Mapping[str, str]) -> str:
    """``path`` with the prefix that is renamed, if there is one."""
    for old, new in renamed.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return path
