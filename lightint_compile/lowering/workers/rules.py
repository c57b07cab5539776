"""What decides how Inductor compiles an operator: rules, patterns and kernels, of which anybody may add some.

A worker has those that come with torch and this project. So a region is compiled in this process where there are
others, or where one stands for another operator than in the worker.
"""

from __future__ import annotations

import functools
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch._inductor.decomposition import decompositions
from torch._inductor.lowering import lowerings
from torch._inductor.pattern_matcher import PatternMatcherPass
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

_TABLES: Mapping[str, Mapping[Any, Any]] = {"lowerings": lowerings, "decompositions": decompositions}

_PASSES = "torch._inductor.fx_passes."
"""Where torch keeps its patterns."""

_OURS = ("torch.", "lightint_compile.", "functools", "_operator")
"""Modules of rules that every process has; the last two are named by rules that take the name of what they wrap."""

_LEFT = "torch._inductor.lowering.fallback_handler."
"""Where the rules are defined by which an operator is called as it is."""

_CORE = ("aten/", "prims/")
"""How the names of kernels of torch's own operators begin."""

_OF_VMAP = "/FuncTorch"
"""Is in the names of kernels that torch registers once there is a ``vmap``; none is in a region."""


@dataclass(frozen=True)
class Rules:
    """What a process has, as short hashes.

    Attributes:
        told: each rule, by its operator and where it is defined.
        ruled: the operators that they are for.
        left: the operators that Inductor calls as they are. It notes so of every one that it meets and has no rule for.
        kernels: those that Python has registered for operators of torch's own.
    """

    told: frozenset[bytes]
    ruled: frozenset[bytes]
    left: frozenset[bytes]
    kernels: frozenset[bytes]

    @classmethod
    def now(cls) -> Rules:
        """Those of this process."""
        return cls(*map(_hashed, _texts()))

    def beyond(self, other: Rules) -> list[str]:
        """What is done here with an operator and not in ``other``; empty where that does all as here.

        These are hashes; :func:`named` says what they are in the process that they come from.
        """
        beyond = (self.told - other.told) | (self.kernels - other.kernels) | (self.left & other.ruled)
        return sorted(each.hex() for each in beyond)


def named(text: str) -> str:
    """A text with what hashes of this process's rules stand for."""
    known = {_hash(each).hex(): each for texts in _texts() for each in texts}
    return _HASH.sub(lambda found: known.get(found[0], found[0]), text)


def _texts() -> tuple[list[str], list[str], list[str], list[str]]:
    """What the fields of :class:`Rules` are made of."""
    every = [
        (f"{table} {_operator(op)}", _name(rule)) for table, rules in _TABLES.items() for op, rule in rules.items()
    ]
    rules = {operator: name for operator, name in every if not name.startswith(_LEFT)}
    return (
        [f"{operator} {name}" for operator, name in rules.items()],
        list(rules),
        [operator for operator, name in every if name.startswith(_LEFT)],
        [key for key in torch.library._impls if key.startswith(_CORE) and _OF_VMAP not in key],
    )


_HASH = re.compile(r"\b[0-9a-f]{16}\b")


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def _hashed(texts: Iterable[str]) -> frozenset[bytes]:
    return frozenset(map(_hash, texts))


def of_others() -> str | None:
    """A rule or a pattern that neither torch nor this project has told Inductor."""
    for table, rules in _TABLES.items():
        for operator, rule in rules.items():
            if _is_strange(rule):
                return f"{table} of {operator}"
    return next((f"the pattern {function.__name__}" for function in _in_patterns() if _is_strange(function)), None)


def _in_patterns() -> Iterator[types.FunctionType]:
    """The functions that all patterns call; those that torch's own functions were given as well."""
    for module in [module for name, module in list(sys.modules.items()) if name.startswith(_PASSES)]:
        for held in list(vars(module).values()):
            for one in held if isinstance(held, (list, tuple)) else [held]:
                if isinstance(one, PatternMatcherPass):
                    yield from _of_pass(one)


def _of_pass(patterns: PatternMatcherPass) -> Iterator[types.FunctionType]:
    for entries in list(patterns.patterns.values()):
        for entry in entries:
            for value in vars(entry).values():
                if isinstance(value, types.FunctionType):
                    yield value
                    cells = value.__closure__ or ()
                    yield from (cell.cell_contents for cell in cells if _holds_a_function(cell))


def _holds_a_function(cell: types.CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, types.FunctionType)
    except ValueError:  # nothing yet
        return False


def _is_strange(rule: Any) -> bool:
    return not str(getattr(_unwrapped(rule), "__module__", "")).startswith(_OURS)


def _operator(operator: Any) -> str:
    """Its name in every process; functions of C say where they are in this one."""
    if isinstance(operator, HigherOrderOperator):
        return str(operator.name())
    return str(operator) if isinstance(operator, (OpOverload, OpOverloadPacket)) else _name(operator)


def _name(rule: Any) -> str:
    rule = _unwrapped(rule)
    return f"{getattr(rule, '__module__', '')}.{getattr(rule, '__qualname__', '')}"


def _unwrapped(rule: Any) -> Any:
    while isinstance(rule, functools.partial):
        rule = rule.func
    return rule
