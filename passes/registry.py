"""The passes by name. A pass is imported when a pipeline names it, so that listing them costs nothing."""

from __future__ import annotations

import importlib

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.passes.base import Pass

#: Pass name to ``module:class``, in the order in which a pipeline normally runs them.
PASSES: dict[str, str] = {
    "canonicalize-attention": "canonicalize_attention:CanonicalizeAttention",
    "sink-row-repeats": "sink_row_repeats:SinkRowRepeats",
    "hoist-invariants": "hoist_invariants:HoistInvariants",
    "dead-tail": "dead_tail:DeadTail",
    "adaptive-context": "adaptive_context:AdaptiveContext",
    "context-reuse": "context_reuse:ContextReuse",
    "sparse-attention": "sparse_attention:SparseAttention",
    "outline-regions": "outline_regions:OutlineRegions",
    "step-cache": "step_cache:StepCache",
}


def pass_class(name: str) -> type[Pass]:
    """The class of the pass called ``name``; an unknown name is an :class:`OptionError` with a hint."""
    if name not in PASSES:
        raise OptionError(f"there is no pass called {name!r}", where="passes", fix=did_you_mean(name, PASSES))
    module, _, attribute = PASSES[name].partition(":")
    found: type[Pass] = getattr(importlib.import_module(f"lightint_compile.passes.{module}"), attribute)
    return found
