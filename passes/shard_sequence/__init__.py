"""shard-sequence: tokens of the grid are dealt out to the ranks of a process group, and attention to its heads."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.fx as fx

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.passes.analysis.token_axis import Grid
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.exchange_ways import COLLECTIVES, COPIES, EXCHANGES
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.ranks import MARK, Ranks
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind
from lightint_compile.passes.shard_sequence.emit import Emission
from lightint_compile.passes.shard_sequence.flow import Flow, Obstacle
from lightint_compile.passes.shard_sequence.following import Planned, Sharding, key_of
from lightint_compile.passes.shard_sequence.head_axes import attends, is_attention
from lightint_compile.passes.shard_sequence.places import By, cut_of


@dataclass(frozen=True, kw_only=True)
class ShardSequence(Pass):
    """Every rank computes its share of the tokens, and in attention its share of the heads.

    Each rank runs this program on the same inputs and returns the same results. See ``docs/passes/shard-sequence.md``.

    Attributes:
        gpus: how many ranks the default process group has.
        mesh: a one-dimensional ``DeviceMesh`` instead, as ``ranks@group``.
        exchanges: how tokens are exchanged for heads, one of :data:`~passes.ir.exchange_ways.EXCHANGES`.
    """

    name: ClassVar[str] = "shard-sequence"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    gpus: int | None = None
    mesh: str | None = None
    exchanges: str = COLLECTIVES

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpus < 1:
            raise OptionError(
                f"there is no group of {self.gpus} ranks", where=f"{self.name}{{gpus}}", fix="give 1 or more"
            )
        if self.exchanges not in EXCHANGES:
            fix = did_you_mean(self.exchanges, EXCHANGES)
            raise OptionError(f"there are no exchanges by {self.exchanges}", where=f"{self.name}{{exchanges}}", fix=fix)

    def run(self, program: Program) -> PassResult:
        """See :meth:`~passes.base.Pass.run`."""
        ranks = Ranks.of(self.gpus, self.mesh)
        if ranks is None or MARK in program.graph_module.meta:
            return PassResult(False)
        try:
            by, flow = _followed(program, ranks)
        except Obstacle as obstacle:
            miss = Miss(obstacle.node, f"every rank computes all of it: {obstacle.reason}", obstacle.hint)
            return PassResult(False, (miss.remark(self.name, "tokens"),))
        agreed = _fingerprint(flow, self.exchanges)
        emission = Emission(program, flow, ranks, self.name, self.exchanges == COPIES)
        emission.rewrite()
        program.graph_module.meta[MARK] = ranks
        return PassResult(True, (_applied(by, flow, emission, ranks, agreed),))


def _followed(program: Program, ranks: Ranks) -> tuple[str, Flow]:
    """The first way to deal tokens out that works, and along which axes it does.

    Raises:
        Obstacle: none does; what stood in the way of the first one.
    """
    sites = dict(_sites(program))
    grids = list(dict.fromkeys(grid for found in sites.values() for grid in found))
    if not grids:
        raise Obstacle(program.graph.output_node(), "no attention has queries of a token grid")
    first: Obstacle | None = None
    for chosen in _choices(grids, ranks.count):
        planned = {key_of(grid): entry for grid, by in chosen.items() if (entry := cut_of(grid, by, ranks.count))}
        try:
            flow = _flow_of(program, planned, ranks)
        except Obstacle as obstacle:
            first = first or obstacle
            continue
        left = next((node for node in sites if node not in flow.sites), None)
        if left is None:
            return " and ".join(dict.fromkeys(chosen.values())), flow
        first = first or Obstacle(left, f"the queries of {left.name} are not tokens of one grid that are dealt out")
    raise first or _undivided(next(iter(sites)), grids, ranks)


def _sites(program: Program) -> Iterator[tuple[fx.Node, Sequence[Grid]]]:
    """Every attention whose queries are tokens of grids, dense or sparse, with these."""
    known = program.fact(TokenGrid)
    for node in program.graph.nodes:
        axis = known.of(argument(node, "query"), -2) if attends(node) and is_attention(node) else None
        if axis is not None and axis.grids:
            yield node, axis.grids


def _flow_of(program: Program, planned: Planned, ranks: Ranks) -> Flow:
    """The flow of a program in which exchanges stand where least is sent."""
    sharding = Sharding(program, planned, ranks.count)
    flow, narrower = sharding.run(), sharding.narrower()
    return Sharding(program, planned, ranks.count, narrower).run() if narrower else flow


def _choices(grids: Sequence[Grid], ranks: int) -> Iterator[dict[Grid, By]]:
    """Axes to deal grids out along: of each the first that divides, else the same for all."""
    possible = {grid: [by for by in By if cut_of(grid, by, ranks) is not None] for grid in grids}
    if not all(possible.values()):
        return
    each = {grid: own[0] for grid, own in possible.items()}
    yield each
    for by in By:
        alike = dict.fromkeys(grids, by)
        if alike != each and all(by in own for own in possible.values()):
            yield alike


def _undivided(node: fx.Node, grids: Sequence[Grid], ranks: Ranks) -> Obstacle:
    sizes = " and ".join(dict.fromkeys(map(str, grids)))
    why = f"along no axis of the grid do {ranks.count} ranks divide the tokens {sizes}"
    return Obstacle(node, why, "use a number of ranks that divides frames, rows or columns")


def _applied(by: str, flow: Flow, emission: Emission, ranks: Ranks, agreed: str) -> Remark:
    sites = len(flow.sites)
    message = (
        f"{sites} attention site{'s' * (sites != 1)} and all between them run on {ranks.count} ranks: tokens by {by}, "
        f"{emission.exchanged} exchanges with heads, {emission.gathered} gathers, "
        f"{emission.sent / 1e6:.3g} MB sent by each{''.join(_rings(flow, ranks))}"
    )
    args = {
        "ranks": ranks.count,
        "by": by,
        "sites": sites,
        "exchanges": emission.exchanged,
        "gathers": emission.gathered,
        "bytes_sent": emission.sent,
        "rings": len(flow.rings),
        "ring_bytes_sent": emission.sent_around,
        "agreed": agreed,
    }
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=ShardSequence.name,
        rule=by,
        message=message,
        args=args,
        numerics=Numerics.EXACT,
    )


def _rings(flow: Flow, ranks: Ranks) -> Iterator[str]:
    """How many sites are rings, of which kind and why."""
    for (heads, team), count in Counter((ring.heads, ring.team) for ring in flow.rings.values()).items():
        around = f"{ranks.count} ranks" if team == 1 else f"{ranks.count // team} teams of {team} ranks"
        yield f"; {count} of the sites {'are rings' if count > 1 else 'is a ring'}, for {ranks.count} ranks do not "
        yield f"divide {heads} heads: keys and values go around {around}"


def _fingerprint(flow: Flow, exchanges: str) -> str:
    """What all ranks must have found alike, as a hash: which calls are made on which parts, and how they exchange."""
    digest = hashlib.sha256(exchanges.encode())
    for line in _lines(flow):
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def _lines(flow: Flow) -> Iterator[str]:
    for node, reads in flow.reads.items():
        operands = [(source.name, str(layout)) for source, layout in reads.items()]
        yield f"{node.name} {node.target} {operands} {flow.known.get(node)}\n"
    for node, ring in flow.rings.items():
        yield f"{node.name} {ring.team} {ring.places} {[each.start for each in ring.stretches]}\n"
