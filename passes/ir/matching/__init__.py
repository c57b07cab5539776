"""A small pattern matcher on FX graphs: patterns read like formulas, alternatives carry tags, a miss says why.

After onnxscript's rewriter (alternatives with tags, the best partial match is kept) and tinygrad's patterns. A pattern
only says what a graph looks like; whoever uses it verifies sizes, axes and users before acting on a match.
"""

from lightint_compile.passes.ir.matching.matcher import match, matches
from lightint_compile.passes.ir.matching.pattern import (
    Either,
    Number,
    Op,
    Pattern,
    Var,
    number_of,
    op,
)
from lightint_compile.passes.ir.matching.result import Failure, MatchError, MatchResult

__all__ = [
    "Either",
    "Failure",
    "MatchError",
    "MatchResult",
    "Number",
    "Op",
    "Pattern",
    "Var",
    "match",
    "matches",
    "number_of",
    "op",
]
