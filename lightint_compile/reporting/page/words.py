"""What a reader of the page may not know: passes, classes of numerics and terms of the timeline, in plain words."""

from __future__ import annotations

from collections.abc import Iterable

PASSES = {
    "canonicalize-attention": "attention that was written out became one call",
    "distinct-rows": "rows of the timestep that are equal are computed once",
    "sink-row-repeats": "what is equal for all tokens of a frame is computed once a frame",
    "narrow-linears": "linears with many rows run in the narrow dtype of their weights",
    "hoist-invariants": "equal computations run once; what hangs on the text alone is kept between calls",
    "dead-tail": "what no result needs is not computed",
    "adaptive-context": "which earlier frames are read is decided for every chunk",
    "context-reuse": "keys and values of earlier frames are kept between chunks",
    "sparse-attention": "attention leaves out the keys that matter least",
    "shard-sequence": "several devices make one chunk together, each a share of its tokens",
    "fp8-linear": "linears of the interior blocks multiply in 8 bits",
    "split-linears": "products in float32 over weights of 16 bits run on tensor cores, with all bits",
    "outline-regions": "blocks that repeat are compiled once",
    "step-cache": "a denoising step may take over what earlier steps predicted",
}
"""What a rewrite of a built-in pass means for the model, by the pass's name."""

NUMERICS = {"reassociates": "reorders"}
"""Classes of numerics that the page spells otherwise."""

_CLASSES = {
    "exact": "exact: the mathematics stays",
    "reorders": "reorders: operations run in another order, so rounding differs",
    "approximate": "approximate: results change",
}

REGIONS = (
    "A region is a piece that is compiled once and called by its name: a block repeats, glue stands between blocks, "
    "a memo is kept between calls. The lines below the phases are the regions."
)

RISE = (
    "+ stands where sizes are decided at run time: from there on the most that may be chosen is counted, before it the "
    "call that was captured. No pass adds work."
)

VARIES = "Names such as s51 are sizes that differ between calls."


def numerics(name: str) -> str:
    """The class of numerics as the page spells it."""
    return NUMERICS.get(name, name)


def classes(names: Iterable[str]) -> str:
    """What the classes mean, those that occur."""
    spelled = {numerics(name) for name in names}
    return "; ".join(said for name, said in _CLASSES.items() if name in spelled)
