"""The online softmax of a warpgroup: tree reductions in a thread, a maximum that moves rarely, rescaling on demand."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

SLACK = gl.constexpr(8.0)
"""Powers of two by which weights may exceed one before the running maximum follows (fp16 weights stay below 65504)."""

LIMIT = gl.constexpr(2.0**64)
"""Row sums below this are as exact as any: bfloat16 and float32 keep their relative precision, nothing overflowed."""


@gluon.jit
def _halves(matrix):
    # The left and the right half of the columns; a matrix accumulator holds both in the same thread.
    return matrix.reshape([matrix.shape[0], 2, matrix.shape[1] // 2]).permute([0, 2, 1]).split()


@gluon.jit
def _folded_max(matrix):
    # 128 columns down to 8 by a tree: a thread's chain of dependent operations is 5 long instead of 31.
    for _ in gl.static_range(4):
        left, right = _halves(matrix)
        matrix = gl.maximum(left, right)
    return matrix


@gluon.jit
def folded_sum(matrix):
    """Partial row sums: 128 columns folded to 8, so that no lane waits for another inside the loop."""
    for _ in gl.static_range(4):
        left, right = _halves(matrix)
        matrix = left + right
    return matrix


@gluon.jit
def weigh(scores, peak, norm, scale, dtype: gl.constexpr, layout: gl.constexpr):
    """One step: weights as an operand of ``P V``, the factor by which earlier sums fade, the new maximum and sums.

    ``norm`` holds partial sums in the layout of :func:`folded_sum`; ``peak`` is in unscaled scores.
    """
    rows: gl.constexpr = gl.SliceLayout(1, scores.type.layout)
    highest = gl.convert_layout(gl.max(_folded_max(scores), 1), rows)
    higher = gl.where((highest - peak) * scale > SLACK, highest, peak)
    weights = gl.exp2(scores * scale - (higher * scale)[:, None])
    fade = gl.exp2((peak - higher) * scale)
    norm = norm * gl.convert_layout(fade, gl.SliceLayout(1, norm.type.layout))[:, None] + folded_sum(weights)
    return gl.convert_layout(weights.to(dtype), layout), fade, higher, norm


@gluon.jit
def weigh_below(scores, peak, norm, scale, dtype: gl.constexpr, layout: gl.constexpr):
    """:func:`weigh` against a maximum that stays: weights may exceed one, the row sums tell whether by too much."""
    weights = gl.exp2(scores * scale - (peak * scale)[:, None])
    return gl.convert_layout(weights.to(dtype), layout), norm + folded_sum(weights)


@gluon.constexpr_function
def _fade_code(count):
    # Registers of a thread alternate between its two rows in pairs; one vote decides for the warp.
    first, second = 2 * count, 2 * count + 2
    vote = (
        f"{{ .reg .pred p, q; setp.neu.f32 p, ${first}, 0f3F800000; setp.neu.or.f32 p, ${second}, 0f3F800000, p; "
        "vote.sync.any.pred q, p, 0xffffffff; @!q bra KEEP_${:uid}; "
    )
    return vote + " ".join(f"mul.f32 ${i}, ${count + i}, ${2 * count + i};" for i in range(count)) + " KEEP_${:uid}: }"


@gluon.constexpr_function
def _fade_constraints(count):
    return ",".join(["=f"] * count + [str(i) for i in range(count)] + ["f"] * count)


@gluon.jit
def faded(total, fade):
    """``total * fade`` by rows; a warp all of whose factors are one does nothing."""
    COUNT: gl.constexpr = total.shape[0] * total.shape[1] // (gl.num_warps() * 32)
    wide, total = gl.broadcast(fade[:, None], total)
    code: gl.constexpr = _fade_code(COUNT)
    return gl.inline_asm_elementwise(
        code, _fade_constraints(COUNT), [total, wide], gl.float32, is_pure=True, pack=COUNT
    )
