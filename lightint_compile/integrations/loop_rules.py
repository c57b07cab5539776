"""How a loop outside of the module is decided: as the passes of the same options decide one inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.adaptive_context import AdaptiveContext
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.world_spec import PUBLISHED_FRAMES
from lightint_compile.passes.step_cache import StepCache
from lightint_compile.runtime.frame_memory import rules_in_world
from lightint_compile.runtime.rules import Rules, rules_of

REUSABLE = (1, 2)
"""Denoising steps that may be reused: the first ones behind the first, never the last."""


@dataclass(frozen=True)
class LoopRules:
    """What of a loop is decided.

    Attributes:
        context: how context frames are chosen; ``None`` leaves the pipeline's choice.
        cache: how steps are reused; ``None`` computes all.
    """

    context: AdaptiveContext | None = None
    cache: StepCache | None = None

    @classmethod
    def of(cls, options: LightintOptions) -> Self:
        """What the passes of these options would decide. Under an error budget nothing is: no one calibrates a loop."""
        passes = pipeline_of(options).passes
        return cls(
            next((step for step in passes if isinstance(step, AdaptiveContext)), None),
            next((step for step in passes if isinstance(step, StepCache)), None),
        )

    def __bool__(self) -> bool:
        """Whether anything is decided."""
        return self.context is not None or self.cache is not None

    @property
    def has_view(self) -> bool:
        """Whether a field of view is stated, which intrinsics do not change."""
        return any(step is not None and step.fov is not None for step in (self.context, self.cache))

    def __str__(self) -> str:
        named = {"context frames": self.context, "reused steps": self.cache}
        return " and ".join(name for name, step in named.items() if step is not None)

    def of_chunks(self, chunk: int, steps: int) -> Rules:
        """The rules for chunks of ``chunk`` latent frames that are denoised in ``steps`` steps."""
        return rules_of(self._policy(steps, chunk=chunk))

    def of_frames(self, steps: int, **facts: Any) -> Rules:
        """The rules for a memory of single frames, of which ``facts`` are known.

        Args:
            steps: denoising steps of a chunk.
            facts: of a :class:`~lightint_compile.passes.ir.world_spec.WorldSpec`, by name.
        """
        seen = {name: getattr(PUBLISHED_FRAMES, name) for name in ("clip", "fov", "view_depth")}
        counted = min(steps, REUSABLE[-1] + 2)  # the rules reuse every step between the first and the last
        return rules_in_world(self._policy(steps, **seen, **facts, denoising_steps=counted))

    def _policy(self, steps: int, **facts: Any) -> Policy:
        step = self.context or self.cache
        assert step is not None
        reusable = tuple(number for number in REUSABLE if number < steps - 1) if self.cache else ()
        return Policy.of(
            step.world(**facts),
            rules=step.rules,
            adapt_context=self.context is not None,
            steps=reusable,
            overlap=step.overlap,
        )
