"""The FX graphs behind a section of a report, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch.fx as fx

if TYPE_CHECKING:
    from lightint_compile.pipeline_run import Rewritten


@dataclass(frozen=True)
class Graphs:
    """One graph as it was captured, and as the passes left it.

    Attributes:
        before, after: in normal form; ``after`` calls regions where there are any.
        removed: names of nodes of ``before`` that a pass erased, each with the pass.
    """

    before: fx.GraphModule
    after: fx.GraphModule
    removed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rewritten: Rewritten) -> Self:
        """Those of a rewritten program."""
        return cls(rewritten.original.graph_module, rewritten.program.graph_module, rewritten.removed)
