"""Attention over samples in a row whose lengths are data: a batch under masks, where each call is found to be one.

Text is padded, so video models for many GPUs give frames and real text as one sample and padding as another, with ends
that only the data tell. Such a call is tried as a site of a batch, folded into its tokens. Where it can be sparse, a
few numbers computed on the device say whether a call's samples are what the site takes them for: no sample lies in two
elements of the batch, and the frames of an element are all in one. Where they are not, the call that was there runs;
where they are, it gets samples without tokens, and so does nothing. No host reads which it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import ATTENTION
from lightint_compile.passes.analysis.known_numbers import known_numbers
from lightint_compile.passes.analysis.samples import Folded, folded_form, result_of
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.matching import MatchError
from lightint_compile.passes.ir.op_arguments import arguments, size_argument, sizes_of
from lightint_compile.passes.ir.op_families import Family, aten
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.size_nodes import SizeArgument
from lightint_compile.passes.ir.sizes import product, same
from lightint_compile.passes.sparse_attention.grid_sizes import (
    END,
    length_of,
    product_of,
)


@dataclass(frozen=True, eq=False)
class Samples:
    """One call, and its operands as a batch.

    Attributes:
        node, result: the call, and the node that holds its result.
        form, given: how to read the call, and its arguments.
        batch: the elements that its rows of tokens fold.
        site: attention over the batch, as if all tokens of an element were one sample; nothing reads it.
        queries, keys: tokens of queries and of keys of an element.
    """

    node: fx.Node
    result: fx.Node
    form: Folded
    given: dict[str, Any]
    batch: Size
    site: fx.Node
    queries: fx.Node
    keys: fx.Node

    @property
    def told(self) -> str:
        """What decides which keys a query sees, for a remark."""
        return "lengths of samples"

    def finish(self, found: fx.Node, fits: fx.Node, rewriter: Rewriter) -> fx.Node:
        """The call's result: ``found``, or what the call itself computes where its samples do not fit."""
        given = dict(self.given)
        for name in self.form.starts:
            given[name] = rewriter.call(aten.masked_fill.Scalar, given[name], fits, 0)
        schema = self.node.target._schema.arguments  # type: ignore[union-attr]
        args = [given[entry.name] for entry in schema if not entry.kwarg_only]
        named = {entry.name: given[entry.name] for entry in schema if entry.kwarg_only}
        itself = rewriter.call(operator.getitem, rewriter.call(self.node.target, *args, **named), 0)  # type: ignore[arg-type]
        turned = rewriter.call(aten.permute.default, found, [0, 2, 1, 3])
        flat = rewriter.call(aten.reshape.default, turned, [-1, *sizes_of(self.result)[1:]])
        return rewriter.call(aten.where.self, fits, flat, itself)


def tried(program: Program, rewriter: Rewriter) -> list[Samples]:
    """A site for each call over samples of lengths that are data, in front of the call."""
    calls = [(node, form) for node in program.graph.nodes if (form := folded_form(node)) is not None]
    found = [made for node, form in calls if (made := _tried(node, form, rewriter)) is not None]
    if found:
        program.changed()
    return found


def _tried(node: fx.Node, form: Folded, rewriter: Rewriter) -> Samples | None:
    given = arguments(node)
    try:
        result = result_of(node, form, given)
    except MatchError:
        return None
    operands = [_unfolded(given[name]) for name in (form.query, form.key, form.value)]
    if given[form.causal] or any(each is None for each in operands):
        return None
    if all(known_numbers(given[name]) is not None for name in form.starts):
        return None  # canonicalize-attention knows them, or said why it does not take them
    batch, tokens = sizes_of(operands[0])[0], [sizes_of(each)[1] for each in operands]
    long = all(_reaches(size_argument(given[name]), n) for name, n in zip(form.longest, tokens, strict=False))
    if not long or not all(same(sizes_of(each)[0], batch) for each in operands):
        return None
    with rewriter.at(node, rule="samples"):
        heads = [rewriter.call(aten.permute.default, each, [0, 2, 1, 3]) for each in operands]
        grouped = not same(sizes_of(heads[0])[1], sizes_of(heads[1])[1])
        site = rewriter.call(ATTENTION, *heads, scale=given[form.scale], enable_gqa=grouped)
    return Samples(node, result, form, given, batch, site, heads[0], heads[1])


def _unfolded(tokens: fx.Node) -> fx.Node | None:
    """``[batch, tokens, heads, head_dim]`` of which the operand is a view with the first two axes joined."""
    while tokens.target in (aten.clone.default, aten.contiguous.default, aten.detach.default):
        tokens = tokens.all_input_nodes[0]
    if tokens.target not in Family.VIEW.value:
        return None
    source = tokens.all_input_nodes[0]
    sizes, own = sizes_of(source), sizes_of(tokens)
    fits = len(sizes) == 4 and same(product(sizes[:2]), own[0]) and all(map(same, sizes[2:], own[1:]))
    return source if fits else None


def _reaches(longest: Size, length: Size) -> bool:
    return same(longest, length) or (isinstance(longest, int) and isinstance(length, int) and longest >= length)


@dataclass(frozen=True)
class SampleMask:
    """Which keys a query sees: those of its own sample.

    Attributes:
        number: the sample of every query and of every key, ``[batch, tokens]``, int32.
        own: that of the frames of each element of the batch, ``[batch, 1]``.
        fits: bool, whether this call's samples are what the site takes them for.
    """

    number: tuple[fx.Node, fx.Node]
    own: fx.Node
    fits: fx.Node

    def key_row(self, rewriter: Rewriter) -> fx.Node:
        """``[batch, keys]``."""
        return rewriter.call(aten.eq.Tensor, self.number[1], self.own)

    def query_column(self, rewriter: Rewriter) -> None:
        """Every query of a frame sees what the mask of keys leaves."""

    def of_queries(self, start: Any, stop: Any, rewriter: Rewriter) -> fx.Node:
        """The mask of some of the queries, as ``scaled_dot_product_attention`` takes it."""
        some = rewriter.call(aten.slice.Tensor, self.number[0], 1, start, stop)
        column = rewriter.call(aten.unsqueeze.default, some, 2)
        pairs = rewriter.call(aten.eq.Tensor, column, rewriter.call(aten.unsqueeze.default, self.number[1], 1))
        return rewriter.call(aten.unsqueeze.default, pairs, 1)


class SampleMasks:
    """Masks of calls, made once for all that share their lengths."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter = rewriter
        self._made: dict[Any, SampleMask] = {}

    def of(self, samples: Samples, frames: tuple[SizeArgument, SizeArgument]) -> SampleMask:
        """The mask of a call whose queries from ``frames[0]`` to ``frames[1]`` are those of frames."""
        starts = tuple(samples.given[name] for name in samples.form.starts)
        sizes = tuple(sizes_of(each)[2] for each in (samples.queries, samples.keys))
        key = (*starts, samples.batch, *sizes, *frames)
        if key not in self._made:
            self._made[key] = self._numbers(samples, starts, frames)
        return self._made[key]

    def _numbers(
        self, samples: Samples, starts: tuple[fx.Node, ...], frames: tuple[SizeArgument, SizeArgument]
    ) -> SampleMask:
        call = self._rewriter.call
        lengths = [length_of(each, 2, self._rewriter) for each in (samples.queries, samples.keys)]
        queries, keys = (self._number(start, length, samples) for start, length in zip(starts, lengths, strict=True))
        of_frames = call(aten.slice.Tensor, queries, 1, *frames)
        own = call(aten.slice.Tensor, of_frames, 1, 0, 1)
        one = call(aten.all.default, call(aten.eq.Tensor, of_frames, own))
        count = length_of(starts[0], 0, self._rewriter)
        known = call(aten.all.default, call(aten.lt.Scalar, call(aten.add.Tensor, own, 1), count))
        apart = call(aten.all.default, self._apart(starts, lengths))
        fits = call(aten.logical_and.default, call(aten.logical_and.default, one, known), apart)
        return SampleMask((queries, keys), own, fits)

    def _number(self, starts: fx.Node, length: SizeArgument, samples: Samples) -> fx.Node:
        """The sample of every token, ``[batch, tokens]``; behind the last sample, the number of samples."""
        call = self._rewriter.call
        rows = product_of([length_of(samples.queries, 0, self._rewriter), length], self._rewriter)
        device, dtype = starts.meta["val"].device, starts.meta["val"].dtype
        places = call(aten.arange.default, rows, dtype=dtype, device=device)
        ends = call(aten.slice.Tensor, starts, 0, 1, END)
        number = call(aten.searchsorted.Tensor, ends, places, out_int32=True, right=True)
        return call(aten.reshape.default, number, [-1, length])

    def _apart(self, starts: tuple[fx.Node, ...], lengths: list[SizeArgument]) -> fx.Node:
        """For every sample whether its queries and keys, if there are any of both, lie in one element of the batch."""
        call = self._rewriter.call
        first, last = zip(*(self._ends(start) for start in starts), strict=True)
        element = call(aten.div.Tensor_mode, first[0], lengths[0], rounding_mode="floor")
        after = call(aten.add.Tensor, element, 1)
        inside = [
            call(aten.le.Tensor, last[0], call(aten.mul.Tensor, after, lengths[0])),
            call(aten.ge.Tensor, first[1], call(aten.mul.Tensor, element, lengths[1])),
            call(aten.le.Tensor, last[1], call(aten.mul.Tensor, after, lengths[1])),
        ]
        together = call(aten.logical_and.default, call(aten.logical_and.default, *inside[:2]), inside[2])
        empty = [call(aten.ge.Tensor, one, other) for one, other in zip(first, last, strict=True)]
        return call(aten.logical_or.default, together, call(aten.logical_or.default, *empty))

    def _ends(self, starts: fx.Node) -> Iterator[fx.Node]:
        yield self._rewriter.call(aten.slice.Tensor, starts, 0, 0, -1)
        yield self._rewriter.call(aten.slice.Tensor, starts, 0, 1, END)
