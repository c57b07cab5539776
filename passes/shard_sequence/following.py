"""Which part of every value a rank has: tokens are dealt out where their grid begins, heads in front of attention.

From front to end, by the movements of axes that all analyses share. A call runs on what a rank has of its operands as
they are, on a run of heads (in front of attention, and from there to the next product over heads), or on whole values,
where tokens become a video again. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple, TypeAlias

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import ATTENTION
from lightint_compile.passes.analysis.axes.factors import Axis, Layout, count, shared
from lightint_compile.passes.analysis.axes.plans import Blocked, Plan
from lightint_compile.passes.analysis.batch_elements.rules import rowwise
from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.analysis.token_axis import Grid
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.effects import draws_random
from lightint_compile.passes.ir.fake_values import Size, shape_of
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.node_queries import is_element
from lightint_compile.passes.ir.op_arguments import argument, results_in, sizes_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.sizes import replaced
from lightint_compile.passes.shard_sequence.flow import Flow, Obstacle
from lightint_compile.passes.shard_sequence.head_axes import attends, head_axes, head_axis, headed, is_attention
from lightint_compile.passes.shard_sequence.narrowest import early
from lightint_compile.passes.shard_sequence.places import cut, heads_of, is_cut, whole
from lightint_compile.passes.shard_sequence.ring import TOKENS, Ring, candidates, ring_of
from lightint_compile.passes.shard_sequence.supposing import supposed

Planned: TypeAlias = Mapping[tuple[object, ...], Axis]
"""How the tokens of a grid are dealt out, by :func:`key_of`."""


def key_of(grid: Grid) -> tuple[object, ...]:
    """What tells one grid from another: its shape, and where its axes came from."""
    return grid.shape, grid.origins


class Cut(StrEnum):
    """What a rank has of a value: some of its tokens, or some of its heads."""

    TOKENS = "tokens"
    HEADS = "heads"


class _Way(NamedTuple):
    """One way to make a call: the layouts of operands that ranks have parts of, and what its results are then."""

    reads: Mapping[fx.Node, Layout]
    result: Cut


class _Lost(NamedTuple):
    """Tokens that became whole values in front of a value: where and why, and what they were cut by until then."""

    node: fx.Node
    why: str
    was: Cut


class Sharding:
    """Follows tokens through a program.

    Args:
        planned: how the tokens of each grid are dealt out.
        ranks: to how many.
        heads_at: calls that read heads where they could read tokens.
    """

    def __init__(
        self, program: Program, planned: Planned, ranks: int, heads_at: Container[fx.Node] = frozenset()
    ) -> None:
        self._early = heads_at
        self._program, self._by_grid, self._ranks = program, planned, ranks
        self._grids = program.fact(TokenGrid)
        self._updates = {node for step in program.fact(DenoisingLoop).steps for node in step.update}
        self._heads = head_axes(program.graph)
        self._candidates = candidates(program.graph, ranks)
        self._joins = frozenset[fx.Node]().union(*(found.joins for found in self._candidates.values()))
        self._cuts: dict[fx.Node, Cut] = {}
        self._origins: dict[fx.Node, frozenset[fx.Node]] = {}
        self._lost: dict[fx.Node, dict[fx.Node, _Lost]] = {}
        self._left: set[fx.Node] = set()
        self._no_ring: dict[fx.Node, str] = {}
        self._flow = Flow()

    def run(self) -> Flow:
        """The flow of the program.

        Raises:
            Obstacle: a call can neither run on parts nor be where tokens become a video again.
        """
        for node in self._program.graph.nodes:
            if node.op not in ("placeholder", "get_attr"):
                self._visit(node)
            if node.op == "call_function" and node not in self._cuts:
                self._enter(node)
        return self._flow

    def _enter(self, node: fx.Node) -> None:
        """Deal out the tokens of a whole value, where an axis of it is a grid and nothing else."""
        found = next(((axis, by) for axis in range(_rank(node)) if (by := self._tokens_on(node, axis))), None)
        if found is not None:
            self._flow.entries.add(node)
            self._flow.known[node] = (cut(node, *found),)
            self._cuts[node], self._origins[node] = Cut.TOKENS, frozenset({node})
            self._lost.pop(node, None)

    def narrower(self) -> frozenset[fx.Node]:
        """Calls in front of attention that are to read heads already, so that less is sent; known after a run."""
        return early(self._program.graph, self._flow, self._heads, lambda node: self._cuts.get(node) is Cut.TOKENS)

    def _visit(self, node: fx.Node) -> None:
        ring = self._ring(node) if node in self._candidates else None
        self._inherit_lost(node, node.all_input_nodes if ring is None else ring.operands(node))
        if ring is not None:
            self._go_around(node, ring)
            return
        sources = [source for source in node.all_input_nodes if source in self._cuts]
        if node in self._joins and any(source in self._left for source in node.all_input_nodes):
            self._left.add(node)
        elif not sources:
            return
        elif is_element(node):
            layout = self._flow.known[node.args[0]][node.args[1]]  # type: ignore[index]
            self._learn(node, [layout], self._cuts[sources[0]], sources)
        elif node.op != "call_function" or is_write(node) or node in self._updates:
            self._exit(node, sources, f"{node.name} takes values that are whole")
        elif not any(map(torch.is_tensor, results_in(node))):
            self._number(node, sources)
        else:
            self._call(node, sources)

    def _inherit_lost(self, node: fx.Node, sources: Iterable[fx.Node]) -> None:
        lost = [self._lost[source] for source in sources if source in self._lost]
        if lost:
            self._lost[node] = {origin: how for each in lost for origin, how in each.items()}

    def _number(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        parts = [source for source in sources if source not in self._flow.entries]
        if parts:
            raise Obstacle(node, f"{node.name} reads a number from {parts[0].name}, of which every rank has a part")
        self._exit(node, sources, "")

    def _call(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        if draws_random(node):
            raise Obstacle(node, f"{node.name} draws random numbers for tokens", "draw them in front of the model")
        if node.target is ATTENTION:
            self._check_mask(node)
        why = ""
        for way in self._ways(node, sources):
            found = self._planned(node, way)
            if isinstance(found, Plan):
                self._accept(node, found, way.result)
                return
            why = why or (found.reason if found is not None else "no rule says what it does to tokens")
        if node in self._joins:
            self._left.add(node)
            return
        self._exit(node, sources, f"{node.name} ({node.target}) mixes tokens: {_of_tokens(why)}")

    # --- ways to make a call -------------------------------------------------------------------------------------

    def _ways(self, node: fx.Node, sources: Sequence[fx.Node]) -> Iterator[_Way]:
        """As operands are, by heads, by tokens."""
        kinds = {self._cuts[source] for source in sources}
        if node in self._early:
            yield _Way(self._by_heads(node), Cut.HEADS)
        own = {source: self._flow.layout(source) for source in sources}
        if len(kinds) == 1 and not (is_attention(node) and Cut.HEADS in kinds):
            yield _Way(own, *kinds)
        heads = self._by_heads(node)
        if heads and node not in self._early:
            yield _Way(heads, Cut.HEADS)
        if Cut.HEADS in kinds and not is_attention(node):
            yield _Way({source: self._by_tokens(source) for source in sources}, Cut.TOKENS)

    def _planned(self, node: fx.Node, way: _Way) -> Plan | Blocked | None:
        if is_attention(node) and way.result is Cut.HEADS:
            return self._attention(node, way.reads)
        fitting = supposed(node, way.reads)
        if isinstance(fitting, Blocked):
            return fitting
        found = rowwise(node, lambda source: fitting.get(source) or whole(source))
        if not isinstance(found, Plan):
            return found
        if any(count(layout) > 1 for layout in found.results):
            return Blocked("tokens meet tokens")
        args = found.args if any(map(is_cut, found.results)) else None
        return replace(found, operands={**found.operands, **fitting}, args=args)

    def _accept(self, node: fx.Node, plan: Plan, result: Cut) -> None:
        changed = {}
        for source, layout in plan.operands.items():
            if source in self._flow.entries or layout != self._flow.layout(source):
                changed[source] = layout
            if source in self._cuts and not is_cut(layout):
                self._lose(node, source, f"{node.name} reads all of {source.name}")
        self._flow.reads[node], self._flow.plans[node] = changed, plan
        if attends(node):
            self._flow.sites.append(node)
        if any(map(is_cut, plan.results)):
            self._learn(node, plan.results, result, node.all_input_nodes)

    def _learn(self, node: fx.Node, layouts: Sequence[Layout], cut_by: Cut, sources: Iterable[fx.Node]) -> None:
        if not any(map(is_cut, layouts)):
            return
        self._flow.known[node], self._cuts[node] = tuple(layouts), cut_by
        origins = (self._origins.get(source, frozenset()) for source in sources)
        self._origins[node] = frozenset[fx.Node]().union(*origins)
        for origin, lost in self._lost.get(node, {}).items():
            if origin in self._origins[node] and Cut.TOKENS in (lost.was, cut_by):
                raise Obstacle(lost.node, lost.why, "keep tokens apart between attention and attention")

    # --- rings ---------------------------------------------------------------------------------------------------

    def _ring(self, node: fx.Node) -> Ring | None:
        """How a dense attention whose heads the ranks do not divide runs as a ring; ``None`` where nothing goes around.

        Raises:
            Obstacle: it cannot, and its keys are parts that only a ring reads.
        """
        stretches = self._candidates[node].stretches
        if not any(piece.node in self._cuts for each in stretches for piece in (each.key, each.value)):
            return None
        query = argument(node, "query")
        cut_by = self._by_tokens(query) if query in self._cuts else whole(query)
        found = ring_of(node, stretches, self._ranks, cut_by, self._parts_of)
        if isinstance(found, Ring):
            return found
        if any(argument(node, name) in self._left for name in ("key", "value")):
            raise self._undivided(node, sizes_of(node)[-3], found)
        self._no_ring[node] = found
        return None

    def _parts_of(self, source: fx.Node) -> Layout:
        """How ranks have keys or values by tokens; what is dealt out here all have yet."""
        parted = source in self._cuts and source not in self._flow.entries
        return self._by_tokens(source) if parted else whole(source)

    def _go_around(self, node: fx.Node, ring: Ring) -> None:
        self._check_mask(node)
        self._flow.rings[node], self._flow.reads[node] = ring, {argument(node, "query"): ring.query}
        self._flow.sites.append(node)
        self._learn(node, [cut(node, TOKENS, ring.query[TOKENS])], Cut.TOKENS, ring.operands(node))

    # --- heads ---------------------------------------------------------------------------------------------------

    def _by_heads(self, node: fx.Node) -> dict[fx.Node, Layout]:
        """The operands of a call as runs of heads; empty where it has none."""
        if is_attention(node):
            return {source: self._headed(node, source, head_axis(source)) for source in headed(node)}
        if node not in self._heads:
            return {}
        sources = [(source, self._heads[source]) for source in node.all_input_nodes if source in self._heads]
        sources = [(source, axis) for source, axis in sources if sizes_of(source)[axis] != 1]
        if any(heads_of(sizes_of(source)[axis], self._ranks) is None for source, axis in sources):
            return {}
        return {source: self._headed(node, source, axis) for source, axis in sources}

    def _headed(self, node: fx.Node, source: fx.Node, axis: int) -> Layout:
        size = sizes_of(source)[axis]
        return whole(source) if size == 1 else cut(source, axis, self._run_of(node, size))

    def _run_of(self, node: fx.Node, heads: Size) -> Axis:
        """The heads that a call reads, cut into runs."""
        entry = heads_of(heads, self._ranks)
        if entry is None:
            why = self._no_ring.get(node, "ring attention is for dense attention of batches, heads and tokens")
            raise self._undivided(node, heads, why)
        return entry

    def _undivided(self, node: fx.Node, heads: Size, why: str) -> Obstacle:
        reason = f"the {heads} heads of {node.name} do not divide by {self._ranks} ranks, and no ring runs: {why}"
        instead = "" if node.target is ATTENTION else ", or a preset without sparse attention"
        return Obstacle(node, reason, f"use a number of ranks that divides the heads{instead}")

    def _attention(self, node: fx.Node, reads: Mapping[fx.Node, Layout]) -> Plan:
        """Attention on a run of heads; key heads that are shared are those of the rank's query heads."""
        operands = dict(reads)
        mask = argument(node, "attn_mask") if node.target is ATTENTION else None
        if mask is not None and len(sizes_of(mask)) > 2:
            operands[mask] = self._headed(node, mask, head_axis(mask))
        shape = shape_of(node.meta["val"])
        axis = len(shape) - 3
        return Plan((replaced(shared(shape), axis, self._run_of(node, shape[axis])),), operands)

    def _check_mask(self, node: fx.Node) -> None:
        mask = argument(node, "attn_mask")
        if mask is not None and (mask in self._cuts or self._lost.get(mask)):
            reason = f"the mask {mask.name} depends on tokens, of which every rank has a part"
            raise Obstacle(node, reason, "make the mask from sizes, or from inputs that every rank has")

    # --- tokens, and whole values --------------------------------------------------------------------------------

    def _by_tokens(self, source: fx.Node) -> Layout:
        """A value that is cut by heads cut by tokens, where it has some, and whole where it has none."""
        layout = self._flow.layout(source)
        if self._cuts[source] is Cut.TOKENS:
            return layout
        for axis in range(len(layout)):
            found = self._tokens_on(source, axis)
            if found is not None:
                return cut(source, axis, found)
        return whole(source)

    def _tokens_on(self, source: fx.Node, axis: int) -> Axis | None:
        """How an axis is cut that is the tokens of a grid; they must be alone on it."""
        if not any(len(atoms) == 3 for atoms in self._grids.axes.get(source, ())[axis : axis + 1]):
            return None
        tokens = self._grids.of(source, axis)
        grid = None if tokens is None else tokens.grid
        return None if grid is None else self._by_grid.get(key_of(grid))

    def _exit(self, node: fx.Node, sources: Sequence[fx.Node], why: str) -> None:
        """A call that reads whole values: the end of a stretch, where tokens become a video again."""
        self._flow.reads[node] = {source: whole(source) for source in sources}
        for source in sources:
            if source not in self._flow.entries and not is_write(node):
                self._lose(node, source, why)

    def _lose(self, node: fx.Node, source: fx.Node, why: str) -> None:
        """Nothing that comes of a value that became whole may meet the tokens that went on in parts."""
        if source in self._flow.entries:
            return
        self._flow.exits.append(source)
        gone = {origin: _Lost(node, why, self._cuts[source]) for origin in self._origins[source]}
        self._lost[node] = {**self._lost.get(node, {}), **gone}


def _of_tokens(why: str) -> str:
    """What an analysis says of a batch, said of tokens."""
    for word, instead in (("elements of the batch", "tokens"), ("the batch", "tokens"), ("no element", "no rank")):
        why = why.replace(word, instead)
    return why


def _rank(node: fx.Node) -> int:
    tensor = tensor_of(node)
    return 0 if tensor is None else tensor.dim()
