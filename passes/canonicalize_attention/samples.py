"""Attention over samples of known lengths that lie one behind the other becomes attention over a batch.

Flash attention packages take samples of different lengths in one row of tokens, with the places where they begin as
tensors. Most models give them samples of one length, with places that follow from sizes: that is a batch, folded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.known_numbers import known_numbers
from lightint_compile.passes.analysis.samples import Folded, result_of
from lightint_compile.passes.canonicalize_attention.build import SDPA
from lightint_compile.passes.canonicalize_attention.guard import reshape_views
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.matching import MatchError
from lightint_compile.passes.ir.op_arguments import arguments, size_argument, sizes_of
from lightint_compile.passes.ir.program import fake_mode_of
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, at
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.size_conditions import is_never_negative
from lightint_compile.passes.ir.sizes import product, same

aten = torch.ops.aten

MOST_SAMPLES = 8
"""Samples of different lengths become a call each; more of them are better off in one."""


def unfold_samples(node: fx.Node, form: Folded, rewriter: Rewriter) -> Remark:
    """Replace the call by calls on batches.

    Raises:
        MatchError: it does what plain attention does not, or the lengths are data.
    """
    given = arguments(node)
    result = result_of(node, form, given)
    query, key, value = given[form.query], given[form.key], given[form.value]
    lengths = _lengths(node, form, given)
    with rewriter.at(result, rule="samples"):
        build = _Build(rewriter, form, given)
        if _is_even(lengths):
            new = build.batch(query, key, value, len(lengths[0]))
        else:
            new = build.each(query, key, value, lengths)
    remark = _remark(result, lengths)
    rewriter.replace(result, new)
    reshape_views(new)
    return remark


def _lengths(node: fx.Node, form: Folded, given: dict[str, Any]) -> tuple[list[Size], list[Size]]:
    """The lengths of the samples of queries and of keys."""
    found: list[list[Size]] = []
    for name, longest, rows in zip(form.starts, form.longest, (form.query, form.key), strict=True):
        starts = known_numbers(given[name])
        if starts is None:
            why = f"the lengths of its samples ({name}) are data"
            raise MatchError("samples", node, why, "make them from sizes, or pass a batch and a mask")
        lengths = [_minus(end, start) for start, end in itertools.pairwise(starts)]
        tokens = sizes_of(given[rows])[0]
        if not lengths or starts[0] != 0 or not same(starts[-1], tokens):
            raise MatchError(
                "samples", node, f"its samples end at {starts[-1:]} of {tokens} tokens", "cover all tokens"
            )
        env, most = fake_mode_of([given[rows]]).shape_env, size_argument(given[longest])
        if not all(is_never_negative(_minus(most, length), env) for length in lengths):
            raise MatchError("samples", node, f"{longest} is shorter than a sample", "pass the longest sample")
        found.append(lengths)
    queries, keys = found
    if len(queries) != len(keys):
        raise MatchError("samples", node, f"{len(queries)} samples of queries meet {len(keys)} of keys")
    if given[form.causal] and not all(map(same, queries, keys)):
        raise MatchError("causal-at-end", node, "the causal triangle ends at the last key", "pass a mask instead")
    if not (_is_even(found) or (len(queries) <= MOST_SAMPLES and all(isinstance(n, int) for n in (*queries, *keys)))):
        raise MatchError("samples", node, f"its {len(queries)} samples have different lengths", "use one length")
    return queries, keys


def _minus(end: Any, start: Any) -> Size:
    difference: Size = end - start
    return difference


def _is_even(lengths: Iterable[Sequence[Size]]) -> bool:
    return all(same(each[0], other) for each in lengths for other in each)


@dataclass
class _Build:
    """Makes the new nodes of a call with the arguments ``given``."""

    rewriter: Rewriter
    form: Folded
    given: dict[str, Any]

    def batch(self, query: fx.Node, key: fx.Node, value: fx.Node, samples: int) -> fx.Node:
        """All samples of one length: the row of tokens is a batch of them."""
        heads = [self._heads_first(each, samples) for each in (query, key, value)]
        grouped = {} if same(sizes_of(query)[1], sizes_of(key)[1]) else {"enable_gqa": True}
        scale = {"scale": self.given[self.form.scale]} if self.given[self.form.scale] is not None else {}
        causal = (None, 0.0, True) if self.given[self.form.causal] else ()
        out = self.rewriter.call(SDPA, *heads, *causal, **scale, **grouped)
        row = [product([samples, sizes_of(heads[0])[2]]), *sizes_of(out)[1::2]]
        turned = self.rewriter.call(aten.permute.default, out, [0, 2, 1, 3])
        return self.rewriter.call(aten.reshape.default, turned, [size if isinstance(size, int) else -1 for size in row])

    def each(self, query: fx.Node, key: fx.Node, value: fx.Node, lengths: Sequence[Sequence[Size]]) -> fx.Node:
        """Samples of different lengths, a call each."""
        queries, keys = lengths
        rows = zip(self._cut(query, queries), self._cut(key, keys), self._cut(value, keys), strict=True)
        return self.rewriter.call(aten.cat.default, [self.batch(*row, 1) for row in rows])

    def _cut(self, tokens: fx.Node, lengths: Sequence[Size]) -> Iterator[fx.Node]:
        start = 0
        for length in lengths:
            assert isinstance(length, int)
            yield self.rewriter.call(aten.slice.Tensor, tokens, 0, start, start + length)
            start += length

    def _heads_first(self, tokens: fx.Node, samples: int) -> fx.Node:
        _, heads, width = sizes_of(tokens)
        rows = self.rewriter.call(aten.reshape.default, tokens, [samples, -1, heads, width])
        return self.rewriter.call(aten.permute.default, rows, [0, 2, 1, 3])


def _remark(result: fx.Node, lengths: tuple[list[Size], list[Size]]) -> Remark:
    samples = len(lengths[0])
    told = f"a batch of {samples}" if _is_even(lengths) else f"{samples} calls"
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name="canonicalize-attention",
        rule="samples",
        message=f"attention over {samples} sample{'s' * (samples > 1)} of known length in a row becomes {told}",
        args={"samples": samples},
        numerics=Numerics.EXACT,
        **at(result),
    )
