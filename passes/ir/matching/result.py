"""What a match attempt came to: bindings and tags, or how far it got, where it stopped, why, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx as fx

#: A sentence, or a function that makes one: most reasons are never read, so most are never formatted.
Text = str | Callable[[], str]


@dataclass(frozen=True)
class Failure:
    """Why an attempt stopped.

    Attributes:
        code: a kebab-case word for the kind of failure; equal codes at sibling modules are one remark.
        node: where it stopped, ``None`` when no node is to blame.
        reason: what is there, and what the rule needs.
        hint: the smallest change to the user's code that would make it match.
    """

    code: str
    node: fx.Node | None
    reason: Text
    hint: Text = ""

    def render(self) -> tuple[str, str]:
        """The reason and the hint as text."""
        reason, hint = (text if isinstance(text, str) else text() for text in (self.reason, self.hint))
        return reason, hint


class MatchError(Exception):
    """Raised by a verification step; whoever tries the match turns it into a :class:`MatchResult`.

    Attributes:
        depth: how many steps had been verified; of several attempts the deepest is worth telling.
    """

    def __init__(self, code: str, node: fx.Node | None, reason: Text, hint: Text = "") -> None:
        super().__init__(code)
        self.failure = Failure(code, node, reason, hint)
        self.depth = 0


@dataclass(frozen=True)
class MatchResult:
    """One attempt at one place.

    Attributes:
        bindings: the node or number that each named variable of the pattern is bound to.
        tags: which alternative was taken, by the name of the choice.
        nodes: the nodes matched so far, in the order in which they were reached.
        failure: ``None`` for a match.
    """

    bindings: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[fx.Node, ...] = ()
    failure: Failure | None = None

    def __bool__(self) -> bool:
        return self.failure is None

    def __getitem__(self, name: str) -> Any:
        return self.bindings[name]
