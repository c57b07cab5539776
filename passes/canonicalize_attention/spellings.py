"""The spellings of attention seen in practice, as patterns: the softmax, and the steps between product and softmax."""

from __future__ import annotations

import operator

import torch

from lightint_compile.passes.canonicalize_attention.paths import SCALING
from lightint_compile.passes.ir.matching import Either, Number, Op, Pattern, Var, op

aten = torch.ops.aten

_X, _DIM = Var("x"), Number("dim")
_KEPT = Number("keepdim", bool)
_ONE = Number("alpha", lambda number: number == 1)
_ZERO = Number("zero", lambda number: number == 0)


def _less_maximum(x: Pattern) -> Either:
    """``x`` less its maximum along the softmax axis: what a careful hand writes before ``exp``, and softmax undoes."""
    maximum = op(aten.max.dim, x, _DIM, _KEPT)
    return Either(
        "maximum",
        amax=op(aten.sub.Tensor, x, op(aten.amax.default, x, _DIM, _KEPT), _ONE),
        max=op(aten.sub.Tensor, x, Op((operator.getitem,), (maximum, _ZERO)), _ONE),
    )


_EXP = op(aten.exp.default, Either("shift", maximum=_less_maximum(_X), none=_X))

#: The probabilities: binds ``x`` (the scores) and ``dim``.
SOFTMAX = Either(
    "softmax",
    softmax=op((aten.softmax.int, aten._softmax.default), _X, _DIM),
    safe_softmax=op(aten._safe_softmax.default, _X, _DIM),
    exp_log_softmax=op(aten.exp.default, op((aten.log_softmax.int, aten._log_softmax.default), _X, _DIM)),
    exp_logsumexp=op(aten.exp.default, op(aten.sub.Tensor, _X, op(aten.logsumexp.default, _X, _DIM, _KEPT), _ONE)),
    exp_over_sum=op(aten.div.Tensor, _EXP, op(aten.sum.dim_IntList, _EXP, _DIM, _KEPT)),
)

#: What a softmax may end in; the pattern is tried only there.
SOFTMAX_ENDS = frozenset(
    {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, aten.exp.default, aten.div.Tensor}
)

_MASK, _VALUE = Var("mask"), Number("value")

#: One step from the product towards the softmax: binds ``x`` (what comes before) and what the step adds to it.
SCORE_STEP = Either(
    "step",
    scale=SCALING,
    shift=_less_maximum(_X),
    bias=op(aten.add.Tensor, _X, _MASK, _ONE, commutative=True),
    penalty=op(aten.sub.Tensor, _X, _MASK, _ONE),
    fill=op((aten.masked_fill.Scalar, aten.masked_fill.Tensor), _X, _MASK, _VALUE),
    keep=op((aten.where.self, aten.where.ScalarOther), _MASK, _X, _VALUE),
    drop=op((aten.where.self, aten.where.ScalarSelf), _MASK, _VALUE, _X),
)

#: A float mask that is a boolean one in disguise: zero where kept, -inf where not.
_INFINITE = Number("value", lambda number: number == float("-inf"))
_WHERES = (aten.where.self, aten.where.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf)
BOOLEAN_MASK = Either(
    "mask",
    fill=op((aten.masked_fill.Scalar, aten.masked_fill.Tensor), _ZERO, _MASK, _INFINITE),
    keep=op(
        (aten.where.self, aten.where.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf), _MASK, _ZERO, _INFINITE
    ),
    drop=op(
        (aten.where.self, aten.where.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf), _MASK, _INFINITE, _ZERO
    ),
)

#: A mask that keeps the keys up to the query's own position.
CAUSAL_MASK = op(aten.tril.default, Number("one", lambda number: number == 1), _ZERO)
