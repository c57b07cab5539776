"""A graph with fewer of its blocks: it is never run, and has the regions of the whole one.

Blocks that repeat fifty times give the regions that four of them give. So compiling can begin with those, while passes
still work on the graph of all.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import torch.fx as fx
from torch import nn

from lightint_compile.capture.module_stacks import Differs, cleaned
from lightint_compile.torch_compat import source_name
from lightint_compile.torch_regions import is_region_call

KEPT = 4
"""Blocks of each body that are left: the first and the last have neighbours of their own, and two alike are between."""


def with_fewer_blocks(graph_module: fx.GraphModule, places: Mapping[str, int]) -> fx.GraphModule | None:
    """A copy in which each body is called for its first blocks alone; ``None`` where most calls are left.

    A call that is left out gives what the call of its body before it gives.

    Args:
        graph_module: as Dynamo hands it over, with blocks as calls of ``invoke_subgraph``. It stays as it is.
        places: of blocks by their paths in the module that is called, each in the list that holds it.

    Raises:
        Differs: what reads a call cannot be told.
    """
    if 2 * len(_further(graph_module.graph, places)) < len(_calls(graph_module.graph)):
        return None
    smaller = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    for call, before in _further(smaller.graph, places):
        _give(call, before)
    return smaller


def places_of(root: nn.Module, blocks: Iterable[nn.Module]) -> dict[str, int]:
    """See :func:`with_fewer_blocks`."""
    wanted, before = set(blocks), Counter[str]()
    places = {}
    for path, module in root.named_modules():
        if module in wanted:
            holder = path.rpartition(".")[0]
            places[path] = before[holder]
            before[holder] += 1
    return places


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return list(filter(is_region_call, graph.nodes))


def _further(graph: fx.Graph, places: Mapping[str, int]) -> list[tuple[fx.Node, fx.Node]]:
    """Calls for further blocks than are left, each with the last call of its body that is left before it."""
    place = {call: _place(call, places) for call in _calls(graph)}
    of_body: dict[str, set[int]] = defaultdict(set)
    for call, number in place.items():
        of_body[_body(call)].add(number)
    kept = {body: sorted(numbers)[:KEPT] for body, numbers in of_body.items()}
    left: dict[str, fx.Node] = {}
    further = []
    for call, number in place.items():
        if number in kept[_body(call)] or _body(call) not in left:
            left[_body(call)] = call
        else:
            further.append((call, left[_body(call)]))
    return further


def _body(call: fx.Node) -> str:
    return str(call.args[1])


def _place(call: fx.Node, places: Mapping[str, int]) -> int:
    """Where the block is that is called: told by what of it the call reads."""
    for operand in call.args[2:]:
        path = cleaned(source_name(operand)) if isinstance(operand, fx.Node) else ""
        while path:
            if path in places:
                return places[path]
            path = path.rpartition(".")[0]
    return 0


def _give(call: fx.Node, before: fx.Node) -> None:
    """Let who reads ``call`` read ``before``, and leave the call out."""
    graph = call.graph
    parts = {reader.args[1]: reader for reader in before.users if reader.target is operator.getitem}
    for reader in list(call.users):
        if reader.target is not operator.getitem:
            raise Differs(f"{reader.name} reads all results of a block at once")
        place = reader.args[1]
        if place not in parts:
            with graph.inserting_after(before):
                parts[place] = graph.node_copy(reader, lambda _: before)
        reader.replace_all_uses_with(parts[place], propagate_meta=False)
        graph.erase_node(reader)
    graph.erase_node(call)
