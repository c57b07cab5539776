"""Attention over samples that lie one behind the other in a row of tokens: operators of flash attention packages."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch.fx as fx

from lightint_compile.passes.ir.matching import MatchError
from lightint_compile.passes.ir.op_arguments import arguments


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


def result_of(node: fx.Node, form: Folded, given: dict[str, Any]) -> fx.Node:
    """The node that holds the attention's result, of a call that does nothing else.

    Raises:
        MatchError: it does what plain attention does not, or another of its results is read.
    """
    for name, allowed in form.neutral.items():
        is_causal_window = name == "window_size" and given[form.causal] and given.get(name) == [-1, 0]
        if given.get(name) is not None and given[name] not in allowed and not is_causal_window:
            raise MatchError(name.replace("_", "-"), node, f"the fused call has {name}={given[name]}", "leave it out")
    first = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    if len(first) != 1 or any(user.users for user in node.users if user is not first[0]):
        raise MatchError("probabilities-escape", node, "the log-sum-exp of the call is read", "use its result only")
    return first[0]
