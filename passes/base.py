"""What a pass is: a frozen value with a name, typed options and a ``run``."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lightint_compile.errors import OptionError
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, Remark


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        modified: whether the graph changed; the pipeline verifies the graph and drops facts only when it did.
        remarks: what was applied, missed, or found out.
    """

    modified: bool
    remarks: tuple[Remark, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """A rewrite of a program. Options are dataclass fields, so a pass compares, hashes, prints and parses.

    Contract: ``run`` edits ``program.graph_module`` in place and says so in the result. New nodes carry ``meta["val"]``
    and the ``stack_trace`` and ``nn_module_stack`` of the nodes they replace (use ``passes.ir.rewriter``).
    Placeholders and the output's arity stay. Running a pass twice changes nothing the second time. A pass that raises
    changes nothing: the pipeline restores the graph.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics]

    @abstractmethod
    def run(self, program: Program) -> PassResult:
        """Rewrite ``program`` in place."""

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, by name."""
        return {
            option.name: getattr(self, option.name)
            for option in dataclasses.fields(self)
            if getattr(self, option.name) != option.default
        }

    def check_not_negative(self, *options: str) -> None:
        """Raise :class:`OptionError` where one of these numbers is below 0, or is not a number; ``None`` is none."""
        for option in options:
            value = getattr(self, option)
            if value is not None and not value >= 0:
                raise OptionError(
                    f"there is no {option} of {value}", where=f"{self.name}{{{spelt(option)}}}", fix="give 0 or more"
                )

    def __str__(self) -> str:
        given = ",".join(f"{spelt(key)}={option_text(value)}" for key, value in self.options().items())
        return f"{self.name}{{{given}}}" if given else self.name


def spelt(option: str) -> str:
    """The name of an option as a pipeline text has it."""
    return option.replace("_", "-")


def option_text(value: Any) -> str:
    """The value of an option as a pipeline text has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "+".join(":".join(map(option_text, pair)) for pair in value)
    if isinstance(value, tuple):
        return "x".join(option_text(item) for item in value)
    return str(value)


def pairs_of(text: str) -> tuple[tuple[str, float], ...]:
    """``name:number+name:number`` as sorted pairs, as :func:`option_text` writes them.

    Raises:
        ValueError: the text is not written so, or names one thing twice.
    """
    pairs = [item.rpartition(":") for item in text.split("+")]
    found = {name.strip(): float(number) for name, _, number in pairs if name.strip()}
    if len(found) < len(pairs):
        raise ValueError(text)
    return tuple(sorted(found.items()))
