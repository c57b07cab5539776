"""Attention over samples of known lengths that lie one behind the other becomes attention over a batch.

Flash attention packages take samples of different lengths in one row of tokens, with the places where they begin as
tensors. Most models give them samples of one length, with places that follow from sizes: that is a batch, folded.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.known_numbers import known_numbers
from lightint_compile.passes.canonicalize_attention.build import SDPA
from lightint_compile.passes.canonicalize_attention.guard import reshape_views
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.matching import MatchError
from lightint_compile.passes.ir.op_arguments import arguments, size_argument, sizes_of
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind, at
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.sizes import product, same

aten = torch.ops.aten

MOST_SAMPLES = 8
"""Samples of different lengths become a call each; more of them are better off in one."""


@dataclass(frozen=True)
class Folded:
    """Where an operator on samples in a row keeps what; argument names are those of its schema.

    Attributes:
        starts: where samples of queries and of keys begin, and the last ends.
        longest: the longest sample of queries and of keys.
        neutral: what else must be left out, or have one of these values.
    """

    query: str = "q"
    key: str = "k"
    value: str = "v"
    starts: tuple[str, str] = ("cu_seqlens_q", "cu_seqlens_k")
    longest: tuple[str, str] = ("max_seqlen_q", "max_seqlen_k")
    scale: str = "softmax_scale"
    causal: str = "causal"
    neutral: dict[str, tuple[Any, ...]] = field(default_factory=dict)


_WINDOW = {"window_size_left": (-1,), "window_size_right": (-1,), "softcap": (0.0,)}

#: By qualified name; a package's operator counts when the package has registered it.
FOLDED: dict[str, Folded] = {
    "flash_attn::_flash_attn_varlen_forward": Folded(
        neutral={"dropout_p": (0.0,), **_WINDOW, **dict.fromkeys(("alibi_slopes", "block_table", "leftpad_k"), ())}
        | {"seqused_k": ()}
    ),
    "flash_attn_3::_flash_attn_forward": Folded(
        neutral=dict.fromkeys(
            ("k_new", "v_new", "qv", "out_", "cu_seqlens_k_new", "seqused_q", "seqused_k", "page_table"), ()
        )
        | dict.fromkeys(("leftpad_k", "rotary_cos", "q_descale", "k_descale", "v_descale"), ())
        | {**_WINDOW, "attention_chunk": (0,)}
    ),
    "torch_attn::_varlen_attn": Folded(
        *("query", "key", "value", ("cu_seq_q", "cu_seq_k"), ("max_q", "max_k"), "scale", "is_causal"),
        neutral={"window_size": ([-1, -1],), "seqused_k": (), "block_table": ()},
    ),
}


def folded_form(node: fx.Node) -> Folded | None:
    """How to read ``node``, if it calls attention over samples in a row."""
    schema = getattr(node.target, "_schema", None)
    form = FOLDED.get(schema.name) if schema is not None and node.op == "call_function" else None
    if schema is None or form is None or not {form.query, *form.starts} <= {entry.name for entry in schema.arguments}:
        return None
    return form if arguments(node)[form.starts[0]] is not None else None


def unfold_samples(node: fx.Node, form: Folded, rewriter: Rewriter) -> Remark:
    """Replace the call by calls on batches.

    Raises:
        MatchError: it does what plain attention does not, or the lengths are data.
    """
    given = arguments(node)
    result = _checked(node, form, given)
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


def _checked(node: fx.Node, form: Folded, given: dict[str, Any]) -> fx.Node:
    """The node that holds the attention's result, of a call that does nothing else."""
    for name, allowed in form.neutral.items():
        is_causal_window = name == "window_size" and given[form.causal] and given.get(name) == [-1, 0]
        if given.get(name) is not None and given[name] not in allowed and not is_causal_window:
            raise MatchError(name.replace("_", "-"), node, f"the fused call has {name}={given[name]}", "leave it out")
    first = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    if len(first) != 1 or any(user.users for user in node.users if user is not first[0]):
        raise MatchError("probabilities-escape", node, "the log-sum-exp of the call is read", "use its result only")
    return first[0]


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
        if not all(_reaches(size_argument(given[longest]), length) for length in lengths):
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


def _reaches(longest: Size, length: Size) -> bool:
    return same(longest, length) or (isinstance(longest, int) and isinstance(length, int) and longest >= length)


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
