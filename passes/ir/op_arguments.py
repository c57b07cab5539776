"""Arguments of an operator's call: by name, its tensors and their sizes, the dimensions that it names."""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import Size, shape_of, size_of
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten


@cache
def _signature(target: Any) -> Mapping[str, tuple[int, Any]]:
    """Position and default value of each argument of an operator, by its name in the schema."""
    arguments = enumerate(target._schema.arguments)
    return {entry.name: (position, entry.default_value) for position, entry in arguments}


def argument(node: fx.Node, name: str) -> Any:
    """An argument by its schema name, whether it was given by position, by keyword or not at all."""
    position, default = _signature(node.target)[name]
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def takes(node: fx.Node, name: str) -> bool:
    """Whether the operator has an argument of that name."""
    return name in _signature(node.target)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by schema name, defaults filled in; by position for a target without a schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(index): value for index, value in enumerate(node.args)} | dict(node.kwargs)
    found: dict[str, Any] = {}
    for parameter, value in itertools.zip_longest(schema.arguments, node.args):
        found[parameter.name] = value if value is not None else node.kwargs.get(parameter.name, parameter.default_value)
    return found


def size_argument(value: Any) -> Size:
    """A size argument as a size: a node counts as its value."""
    return size_of(value.meta["val"] if isinstance(value, fx.Node) else value)


def sizes_of(node: Any) -> tuple[Size, ...]:
    """Sizes of a tensor node."""
    tensor = tensor_of(node)
    assert tensor is not None
    return shape_of(tensor)


def results_in(node: fx.Node) -> tuple[Any, ...]:
    """The values of a call's results, of one alone too."""
    value = node.meta.get("val")
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def rank_of(node: Any) -> int:
    """Dimensions of a tensor node."""
    tensor = tensor_of(node)
    assert tensor is not None
    return tensor.dim()


def is_tensor(value: Any) -> bool:
    """Whether an argument is a node with a tensor value."""
    return tensor_of(value) is not None


def tensors(node: fx.Node) -> list[fx.Node]:
    """The tensor operands of a call, in order and each once."""
    return [source for source in node.all_input_nodes if is_tensor(source)]


def dimension(node: fx.Node, rank: int, name: str = "dim") -> int:
    """A dimension argument, counted from the front of a tensor of ``rank`` dimensions."""
    return int(argument(node, name)) % max(rank, 1)


def dimensions(node: fx.Node, rank: int) -> list[int]:
    """What ``dim`` names, counted from the front: all dimensions for ``None`` or an empty list, none of a number."""
    given = argument(node, "dim")
    listed = [given] if isinstance(given, int) else list(given or range(rank))
    return [int(dim) % rank for dim in listed] if rank else []


def permutation(node: fx.Node) -> tuple[int, ...]:
    """The order in which a permuting operation puts its operand's dimensions."""
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    if not rank:
        return ()
    if node.target is aten.permute.default:
        return tuple(dim % rank for dim in node.args[1])  # type: ignore[union-attr, operator]
    if node.target is aten.transpose.int:
        order = list(range(rank))
        one, other = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
        order[one], order[other] = order[other], order[one]
        return tuple(order)
    probe = torch.empty(tuple(range(2, rank + 2)), device="meta")
    result = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return tuple(size - 2 for size in result.shape)


class Einsum(NamedTuple):
    """An einsum: the letters of every operand, and those of the result."""

    operands: list[tuple[str, fx.Node]]
    result: str


def einsum_of(node: fx.Node) -> Einsum:
    """The equation of an einsum or a matrix product; dots become letters, and a missing result is filled in."""
    if node.target is not aten.einsum.default:
        return _product_of(node)
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    inputs, arrow, result = equation.partition("->")
    labels = inputs.split(",")
    if not arrow:
        once = sorted(letter for letter in set(inputs) - {",", "."} if inputs.count(letter) == 1)
        result = ("..." if "..." in inputs else "") + "".join(once)
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    dots = [len(sizes_of(each)) - len(own.replace("...", "")) for own, each in zip(labels, operands, strict=True)]
    names = "".join(spare[: max([0, *(count for own, count in zip(labels, dots, strict=True) if "..." in own)])])
    written = [own.replace("...", names[len(names) - count :]) for own, count in zip(labels, dots, strict=True)]
    return Einsum(list(zip(written, operands, strict=True)), result.replace("...", names))  # type: ignore[arg-type]


def _product_of(node: fx.Node) -> Einsum:
    """Leading axes are broadcast; rows of the left (M) and columns of the right (N) are free. A vector has neither."""
    first = 1 if node.target in (aten.addmm.default, aten.baddbmm.default) else 0
    left, right = operands = list(node.args[first : first + 2])
    if node.target is aten.outer.default:
        return Einsum([("M", left), ("N", right)], "MN")  # type: ignore[list-item]
    ranks = list(map(rank_of, operands))
    names = string.ascii_lowercase[: max(*ranks, 2) - 2]
    rows, columns = "M" * (ranks[0] > 1), "N" * (ranks[1] > 1)
    leading = [names[len(names) - max(rank - 2, 0) :] for rank in ranks]
    return Einsum([(f"{leading[0]}{rows}X", left), (f"{leading[1]}X{columns}", right)], names + rows + columns)  # type: ignore[list-item]


@dataclass(frozen=True)
class Pick:
    """Entries of one axis, counted from the front, picked by their numbers [n]."""

    source: fx.Node
    axis: int
    index: fx.Node


def pick_of(node: fx.Node) -> Pick | None:
    """What ``index_select`` or ``x[:, :, index]`` picks; ``None`` for any other node, masks and several indices too.

    ``index_select`` takes a source or an index without axes as well, where there is no axis to pick along.
    """
    if node.target is aten.index_select.default:
        source, index = argument(node, "self"), argument(node, "index")
        if not sizes_of(source) or not sizes_of(index):
            return None
        return Pick(source, dimension(node, len(sizes_of(source))), index)
    if node.target is not aten.index.Tensor:
        return None
    given = [(axis, index) for axis, index in enumerate(argument(node, "indices")) if index is not None]
    numbers = tensor_of(given[0][1])
    if len(given) != 1 or numbers is None or numbers.dim() != 1 or numbers.dtype in (torch.bool, torch.uint8):
        return None
    return Pick(argument(node, "self"), *given[0])
