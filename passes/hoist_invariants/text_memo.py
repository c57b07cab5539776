"""Values that depend on text inputs alone, marked so that they can be kept from call to call."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch.fx as fx
from torch._ops import HigherOrderOperator

from lightint_compile.passes.analysis.roles import Role, Roles
from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.flops import flops_of, program_flops
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.input_writes import written_buffers
from lightint_compile.passes.ir.memo_cost import objection
from lightint_compile.passes.ir.memory_sharing import output_memory
from lightint_compile.passes.ir.node_queries import MEMO
from lightint_compile.passes.ir.program import InputKind, Program, ProgramInput, tensor_of
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind

TEXT = Role.TEXT.value

#: Words, and words in a row, in the names of arguments without a role of their own that belong to the prompt or the
#: first image, such as masks. "byt" is what is left of "byt5" without its digit.
_TEXT_WORDS = (
    ("text",),
    ("txt",),
    ("prompt",),
    ("caption",),
    ("encoder", "hidden", "states"),
    ("encoder", "attention", "mask"),
    ("byt",),
    ("glyph",),
    ("vision",),
    ("image", "embeds"),
    ("pooled", "projections"),
)

#: Words in the names of what changes from chunk to chunk or from step to step, whatever else the name says.
_CHANGING = frozenset(
    (
        *("context", "camera", "cam", "pose", "extrinsic", "intrinsic", "viewmat", "trajectory", "ray", "plucker"),
        *("action", "keyboard", "mouse", "control", "latent", "noise", "noisy", "sample", "video", "frame"),
        *("history", "memory", "cache", "past", "timestep", "step", "sigma", "time", "chunk"),
    )
)

_WITH_S = frozenset(word for phrase in _TEXT_WORDS for word in phrase if word.endswith("s"))

WORTH = 1e-4
"""Below this part of the program's FLOPs a value is not worth being kept."""


def mark_text(program: Program, pass_name: str) -> Iterator[Remark]:
    """Set ``meta["memo"] = "text"`` on what depends on text inputs and parameters only; nothing when nothing is new.

    A miss says that keeping it would not pay.

    The set is closed: every producer of a marked node is marked, or an input that is text, a parameter or a buffer. A
    program output, or what shares memory with one, is not marked: the caller may write to it.
    """
    nodes = _text_nodes(program)
    flops = sum(map(flops_of, nodes))
    if flops <= WORTH * program_flops(program)["total"] or all(node.meta.get(MEMO) == TEXT for node in nodes):
        return
    names = [entry.path for entry in _text_inputs(program)]
    weights, prompt = (_read_by(nodes, kind, program) for kind in _sources(program))
    why, hint = objection(nodes, weights, prompt)
    if why:
        yield Remark(
            kind=RemarkKind.MISSED,
            pass_name=pass_name,
            rule="memo",
            message=f"what depends on {', '.join(names)} alone is {why}",
            hint=hint,
            flops_before=flops,
        )
        return
    for node in nodes:
        node.meta[MEMO] = TEXT
    yield Remark(
        kind=RemarkKind.APPLIED,
        pass_name=pass_name,
        rule="memo",
        message=f"kept between calls for as long as these hold the same: {', '.join(names)}",
        args={"inputs": names, "operations": len(nodes)},
        flops_before=flops,
        flops_after=0,
        numerics=Numerics.EXACT,
    )


def text_weights(program: Program) -> list[str]:
    """The parameters and buffers that make what depends on the prompt alone, by path."""
    constant, _ = _sources(program)
    return [program.input_of(node).path for node in _read_by(_text_nodes(program), constant, program)]


def _read_by(nodes: Sequence[fx.Node], inputs: set[fx.Node], program: Program) -> list[fx.Node]:
    read = inputs.intersection(producer for node in nodes for producer in node.all_input_nodes)
    return [node for node in program.placeholders() if node in read]


def is_text(program: Program, entry: ProgramInput, node: fx.Node) -> bool:
    """Whether an input holds the prompt: by its role, and where it has none by its name and a rank below a video's.

    A size has the role of the tensor it is a size of.
    """
    if entry.kind not in (InputKind.TENSOR, InputKind.SYMBOL):
        return False
    path = entry.path.partition(".size()")[0]
    role = program.fact(Roles).of(path)
    if role is not None:
        return role is Role.TEXT
    tensor = tensor_of(node)
    return (tensor is None or tensor.dim() < 4) and says_text(path)


def says_text(path: str) -> bool:
    """Whether a name's words say that it holds the prompt: whole words, and none of what changes all the time."""
    words = words_of(path)
    if not _CHANGING.isdisjoint(words):
        return False
    return any(_follow(phrase, words) for phrase in _TEXT_WORDS)


def words_of(path: str) -> list[str]:
    """``encoderHiddenStates_2`` as ``encoder``, ``hidden``, ``states``: lower case, without digits, in the singular.

    A word of a phrase that ends in s keeps it.
    """
    found = (word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", path))
    return [word if word in _WITH_S else word.removesuffix("s") for word in found]


def _follow(phrase: tuple[str, ...], words: list[str]) -> bool:
    return any(tuple(words[start : start + len(phrase)]) == phrase for start in range(len(words)))


def _text_inputs(program: Program) -> list[ProgramInput]:
    pairs = zip(program.inputs, program.placeholders(), strict=True)
    return [entry for entry, node in pairs if entry.kind is InputKind.TENSOR and is_text(program, entry, node)]


def _text_nodes(program: Program) -> list[fx.Node]:
    """Nodes computed from text, and what they need of what is computed from parameters alone, in graph order."""
    constant, text = _sources(program)
    return nodes_from(program, text, constant)


def nodes_from(program: Program, steady: set[fx.Node], constant: set[fx.Node]) -> list[fx.Node]:
    """Nodes computed from ``steady`` placeholders, and what they need of what is computed from ``constant`` ones.

    Both sets grow by what is computed from them. An output, and what shares memory with one, is left out.
    """
    outputs = output_memory(program.graph)
    for node in program.graph.nodes:
        if node.op != "call_function" or isinstance(node.target, HigherOrderOperator):
            continue
        producers = node.all_input_nodes
        if node in outputs or not all(p in constant or p in steady for p in producers) or not is_pure(node):
            continue
        (steady if any(p in steady for p in producers) else constant).add(node)
    return _closed(program.graph, steady, constant)


def _sources(program: Program) -> tuple[set[fx.Node], set[fx.Node]]:
    """Placeholders that never change, and placeholders that change with the prompt."""
    constant, text = set(), set()
    written = written_buffers(program.graph)
    for entry, node in zip(program.inputs, program.placeholders(), strict=True):
        if node in written:
            continue
        if is_text(program, entry, node):
            text.add(node)
        elif entry.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            constant.add(node)
    return constant, text


def _closed(graph: fx.Graph, text: set[fx.Node], constant: set[fx.Node]) -> list[fx.Node]:
    needed = reached(text, lambda node: (producer for producer in node.all_input_nodes if producer in constant))
    return [node for node in graph.nodes if node in needed and node.op == "call_function"]
