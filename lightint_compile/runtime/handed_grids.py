"""Grids of tokens that one graph of a model hands to the next, so that a graph break hides none.

Behind a break tokens arrive as ``[batch, tokens, width]``, and no shape says how they lie in frames, rows and columns.
The graph that made them knew. It notes that of the tensors that it returns, and a graph that is compiled for such a
tensor starts from there. The note is on the tensor itself, for as long as it lives and nothing writes to it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any

import torch
import torch.fx as fx
from torch.utils.weak import WeakTensorKeyDictionary

from lightint_compile.passes.analysis.token_grid import Made
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind, clean_path
from lightint_compile.torch_compat import source_name

GridSize = tuple[int | None, int, int]
"""Frames, height and width, in tokens; ``None`` for as many frames as there are."""

Told = tuple[tuple[int, GridSize], ...]
"""Positions of tensors among values, and the grids of their tokens."""

_NOTED = WeakTensorKeyDictionary()


def note(results: Sequence[Any], made: Made, args: Sequence[Any], symbols: Mapping[str, int]) -> None:
    """Say of the results of a call that they are tokens of these grids.

    Args:
        args: of the call.
        symbols: as of :func:`symbols_of`.
    """
    for position, (frames, *plane) in made:
        result = results[position]
        height, width = (_number(size, args, symbols) for size in plane)
        if isinstance(result, torch.Tensor) and height and width:
            whole = result.shape[1] // (height * width) if frames is None else frames
            _NOTED[result] = ((whole, height, width), _version(result))


def _number(size: int | str, args: Sequence[Any], symbols: Mapping[str, int]) -> int | None:
    """A size in a call; ``None`` where a symbol of it is not known."""
    if isinstance(size, int):
        return size
    code = _code(size)
    if not all(name in symbols for name in code.co_names):
        return None
    return int(eval(code, {"__builtins__": {}}, {name: args[symbols[name]] for name in code.co_names}))


@functools.cache
def _code(text: str) -> CodeType:
    return compile(text, "<a size of a grid>", "eval")


def told(graph_module: fx.GraphModule, values: Sequence[Any]) -> Told:
    """What is noted of the inputs of a graph; of those whose tokens may change in number, how large a frame is."""
    found = ((at, _grid_of(value)) for at, value in enumerate(values) if isinstance(value, torch.Tensor))
    noted = [(at, grid) for at, grid in found if grid is not None]
    traced = _traced(graph_module) if noted else ()
    return tuple((at, _loose(grid, traced[at])) for at, grid in noted)


def tell(program: Program, others: Told) -> None:
    """Give a program what other graphs said of its inputs."""
    program.tokens = {program.inputs[position].name: grid for position, grid in others}


def symbols_of(graph_module: fx.GraphModule) -> dict[str, int]:
    """The positions of inputs that are sizes, by their symbols."""
    values = enumerate(_traced(graph_module))
    return {str(value.node.expr): position for position, value in values if isinstance(value, torch.SymInt)}


def remarks_on(told: Told, graph_module: fx.GraphModule) -> list[Remark]:
    """What the report says of what a graph was told."""
    nodes = graph_module.graph.find_nodes(op="placeholder")
    return [_remark(clean_path(source_name(nodes[at]), of_module=False), grid) for at, grid in told]


def _remark(path: str, grid: GridSize) -> Remark:
    size = "x".join(str(number or "n") for number in grid)
    message = f"{path} is the tokens of {size} frames, rows and columns: the graph that made it says so"
    return Remark(kind=RemarkKind.ANALYSIS, pass_name="backend", rule="told-grid", message=message)


def _traced(graph_module: fx.GraphModule) -> list[Any]:
    return [node.meta.get("example_value") for node in graph_module.graph.find_nodes(op="placeholder")]


def told_like(values: Sequence[Any], wanted: Told) -> Told:
    """What is noted of the inputs of which something was told before, in the same form."""
    found = ((at, form, _grid_of(values[at])) for at, form in wanted if isinstance(values[at], torch.Tensor))
    return tuple((at, (form[0] and grid[0], *grid[1:])) for at, form, grid in found if grid is not None)


def _loose(grid: GridSize, traced: Any) -> GridSize:
    counts = isinstance(traced, torch.Tensor) and traced.dim() == 3 and isinstance(traced.shape[1], torch.SymInt)
    return (None, *grid[1:]) if counts else grid


def _grid_of(tensor: torch.Tensor) -> GridSize | None:
    grid, version = _NOTED.get(tensor, (None, 0)) if _NOTED else (None, 0)
    return grid if grid is not None and version == _version(tensor) else None


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return -1 if tensor.is_inference() else tensor._version
