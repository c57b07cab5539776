"""What is decided for one chunk, and what is found while the chunk runs."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from lightint_compile.runtime.decision import Decision

if TYPE_CHECKING:
    from lightint_compile.runtime.kv_store import Use

log = logging.getLogger("lightint_compile.runtime")


@dataclass(eq=False)
class ChunkRecord:
    """One chunk's decision while the chunk runs. It belongs to the call, so two threads do not meet in it.

    The planner makes it and lists it in its rollout. What runs later writes into it, so nothing is handed back to the
    planner; a record that was taken back is in no list any more.

    Attributes:
        decision: what holds for all of the batch, as far as it is known by now.
        own: the decision of every element of the batch, or one that all of them share.
        use: the values of context frames that the chunk recalls and keeps, where any are kept.
    """

    decision: Decision
    own: tuple[Decision, ...] = ()
    use: Use | None = None

    def state(self) -> dict[str, Any]:
        """What is left of the chunk once it ran, as plain data; :meth:`from_state` takes it back."""
        return {"decision": self.decision.to_dict(), "own": [each.to_dict() for each in self.own]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`state`."""
        return cls(Decision.from_dict(state["decision"]), tuple(map(Decision.from_dict, state["own"])))

    def keeps(self, use: Use) -> None:
        """The chunk recalls and keeps values from now on."""
        self.use = use
        known = dataclasses.replace(self.decision, kept_frames=len(use.share.kept))
        self.decision = known.with_elements(self.decision.elements)

    def each(self, count: int) -> tuple[Decision, ...]:
        """The decision of each of ``count`` elements; all share one where cameras do not tell them apart."""
        return self.own if len(self.own) == count else (self.own[0] if len(self.own) == 1 else self.decision,) * count

    def refused(self, step: int, why: str) -> None:
        """``step`` may not be reused, by something else than a drift."""
        self.decision = self.decision.refusing(step)
        log.info("chunk %d: step %d is computed: %s", self.decision.chunk, step, why)

    def checked(self, step: int, drift: float, most: float) -> bool:
        """Record what the drift check of ``step`` measured; whether the step may be reused. NaN refuses."""
        may = drift <= most
        self.decision = self.decision.after_check(step, drift, refused=not may)
        verdict = "reused" if may else "computed"
        log.info("chunk %d: step %d is %s, it drifted by %.3f of %.3f", self.decision.chunk, step, verdict, drift, most)
        return may

    def checked_each(self, step: int, drifts: Sequence[float], most: float) -> tuple[bool, ...]:
        """:meth:`checked` of a batch, for those of its elements that may reuse ``step`` by their own decision."""
        each, chunk = self.each(len(drifts)), self.decision.chunk
        asked = [step in own.reused_steps for own in each]
        may = tuple(ask and drift <= most for ask, drift in zip(asked, drifts, strict=True))
        self.own = tuple(
            own.after_check(step, drift, refused=not reused) if ask else own
            for own, drift, ask, reused in zip(each, drifts, asked, may, strict=True)
        )
        measured = [drift for drift, ask in zip(drifts, asked, strict=True) if ask]
        largest = max(measured, key=lambda drift: (math.isnan(drift), drift))
        known = self.decision.after_check(step, largest, refused=may != tuple(asked))
        self.decision = known.with_elements(self.own)
        text = ", ".join(f"{drift:.3f}" for drift in measured)
        verdict = f"{sum(may)} of {len(may)} elements reuse step {step}"
        log.info("chunk %d: %s, those that may drifted by %s of %.3f", chunk, verdict, text, most)
        return may
