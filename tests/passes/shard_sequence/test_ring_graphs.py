"""Rings on graphs, as one rank sees them: what goes around and when, what is sent, what is refused and why."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import rank_worlds
import torch
import torch.fx as fx
from differential import rewritten, trace
from rank_cases import FRONT, SPARSE
from ring_worlds import Prefilling, RingWorld
from toy_world import there_and_back

import lightint_compile
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.ranks import Ranks, ranks_of
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.shard_sequence.teams import Team, heads_and_ring
from lightint_compile.testing.capturing import captured

OPS = torch.ops._c10d_functional
PARTIAL = torch.ops.lightint.partial_attention.default
BYTES = 8
"""Of a number."""
TOKENS = 4 * 4 * 8


def shared(
    model: dict[str, Any],
    ranks: int,
    front: str = FRONT,
    world: type[rank_worlds.World] = rank_worlds.World,
    **given: Any,
) -> tuple[Program, Remark]:
    module = world(**model).double().eval().requires_grad_(False)
    program = captured(module, rank_worlds.inputs(module, **given))[0]
    copy, result = rewritten(program, f"{front},shard-sequence{{gpus={ranks}}}")
    (remark,) = [r for r in result.remarks if r.pass_name == "shard-sequence"]
    return copy, remark


def heads(count: int, **more: Any) -> dict[str, Any]:
    return {"heads": count, "width": 8 * count, **more}


def sent_by(remark: Remark) -> int:
    """Bytes of rings."""
    assert remark.kind is RemarkKind.APPLIED, remark.message
    return int(remark.args["ring_bytes_sent"])


def around(graph: fx.Graph, ranks: int) -> list[fx.Node]:
    """The transfers to the next rank; exchanges of heads go to several."""
    found = graph.find_nodes(op="call_function", target=OPS.all_to_all_single.default)
    return [node for node in found if len(node.args[1]) == ranks and sum(node.args[1]) == 1]


@pytest.mark.parametrize(("ranks", "count"), [(2, 3), (4, 3), (4, 6), (8, 12), (8, 2)])
def test_the_next_part_is_on_its_way_during_attention(ranks: int, count: int) -> None:
    copy, remark = shared(heads(count), ranks, frames=8)
    assert remark.args["rings"] == 1 and ranks_of(copy.graph_module) == Ranks(ranks)
    order = {node: number for number, node in enumerate(copy.graph.nodes)}
    attended = [order[node] for node in copy.calls(PARTIAL)]
    transfers = around(copy.graph, ranks)
    rounds = len(transfers) + 1
    assert rounds == len(attended) == ranks // {(2, 3): 1, (4, 3): 1, (4, 6): 2, (8, 12): 4, (8, 2): 2}[ranks, count]
    for transfer, (attention, following) in zip(transfers, pairwise(attended), strict=True):
        (wait,) = (user for user in transfer.users if user.target is OPS.wait_tensor.default)
        assert order[transfer] < attention < order[wait] < following
    assert all(node.target is not OPS.wait_tensor.default for node in transfers[0].all_input_nodes)


def test_every_rank_has_its_tokens_and_the_heads_of_its_team() -> None:
    for count, own_heads, own_tokens in ((3, 3, TOKENS // 4), (2, 1, TOKENS // 2), (6, 3, TOKENS // 2)):
        copy, _ = shared(heads(count), 4)
        for node in copy.calls(PARTIAL):
            query, key, value = (operand.meta["val"].shape for operand in node.args[:3])
            assert query == key == value == (1, own_heads, own_tokens, 8)


def test_what_is_sent() -> None:
    """Pure: keys and values once to each other rank. In teams: four operands within them, then around the teams."""
    whole = TOKENS * 8 * BYTES  # of a head, on all ranks together
    assert sent_by(shared(heads(3), 2)[1]) == 2 * 3 * whole // 2
    assert sent_by(shared(heads(3), 4)[1]) == 3 * 2 * 3 * whole // 4
    for count in (2, 6):
        assert sent_by(shared(heads(count), 4)[1]) == (4 * count * whole // 2 + 2 * count * whole) // 4
    one = shared({"kind": "one-key-head", "heads": 6}, 4, world=RingWorld)[1]
    assert sent_by(one) == 3 * 2 * whole // 4  # where heads share keys, teams would send more than the ring


def test_what_every_rank_has_is_attended_to_once_and_not_sent() -> None:
    sent = {}
    for past, text in ((0, 5), (1, 5), (8, 5), (1, 50)):
        copy, remark = shared(heads(3, joint=True), 4, past=past, text=text)
        sent[past, text] = sent_by(remark)
        keys = [node.args[1].meta["val"].shape[2] for node in copy.calls(PARTIAL)]
        assert keys == [TOKENS // 4 + text + past * 32] + 3 * [TOKENS // 4]
    assert len(set(sent.values())) == 1


def test_a_context_goes_around_once_for_all_steps() -> None:
    """Its prefill needs it too. Further steps send what their own tokens need."""
    chunk, model = 2 * 3 * TOKENS * 8 * BYTES // 2, {"depth": 2, "heads": 3}
    for steps in (1, 3):
        copy, remark = shared({"steps": steps, **model}, 2, world=Prefilling, frames=8)
        assert sent_by(remark) == (2 + 2 * steps) * chunk
    keys = [node.args[1].meta["val"].shape[2] for node in copy.calls(PARTIAL)]
    assert keys == [5 + TOKENS] + 6 * [5 + TOKENS + TOKENS // 2, TOKENS // 2]


def test_masks_are_cut_along_queries_and_keys() -> None:
    for kind, shape in (("frames", (64, 64)), ("padding", (1, 1, 1, 64)), ("per-head", (3, 64, 64))):
        copy, _ = shared({"kind": kind, "heads": 3}, 2, world=RingWorld)
        first, second = (node.args[3].meta["val"].shape for node in copy.calls(PARTIAL))
        assert second == shape and first == (*shape[:-1], shape[-1] + 5)


def test_repeated_blocks_are_one_region_still() -> None:
    world, path = rank_worlds.Headed(heads=3, width=24).double().eval().requires_grad_(False), there_and_back(12)
    latents = torch.randn(1, 4, 12, 4, 6).double()
    given = {"noise": latents[:, :, 8:], "history": latents[:, :, :8], "extrinsics": path.double()}
    program = trace(world, {name: value.contiguous() for name, value in given.items()})
    copy, result = rewritten(program, f"{FRONT},shard-sequence{{gpus=2}},outline-regions,step-cache")
    assert ranks_of(copy.graph_module) == Ranks(2)
    calls = [r.args["calls"] for r in result.remarks if r.pass_name == "outline-regions" and r.rule == "block"]
    assert max(calls) == 8  # two blocks in four steps


@pytest.mark.parametrize("depth", [1, 3])
def test_the_rounds_of_a_site_are_no_regions_of_their_own(depth: int) -> None:
    """A compiler of one round alone would wait for its transfer at once. A block's rounds are a part of its region."""
    module = rank_worlds.World(**heads(3, depth=depth)).double().eval().requires_grad_(False)
    program = captured(module, rank_worlds.inputs(module))[0]
    copy, _ = rewritten(program, f"{FRONT},shard-sequence{{gpus=4}},outline-regions")
    regions = [each.graph for each in copy.graph_module.modules() if isinstance(each, fx.GraphModule)]
    found = [len(around(graph, 4)) for graph in regions if around(graph, 4)]
    assert found == [3]


def test_a_report_says_what_goes_around_without_ranks_or_memory() -> None:
    with torch.device("meta"):
        module = rank_worlds.World(heads=12, width=96).eval().requires_grad_(False)
        inputs = torch.empty(1, 4, 8, 8, 16), torch.empty(1, 5, 96)
    report = lightint_compile.explain(module, *inputs, options={"gpus": 8})
    (remark,) = [r for s in report.sections for r in s.remarks if r.pass_name == "shard-sequence"]
    told = "1 of the sites is a ring, for 8 ranks do not divide 12 heads: keys and values go around 2 teams of 4 ranks"
    assert told in remark.message and told in " ".join(str(report).split())
    part = 12 * 8 * 4 * 2 * TOKENS // 8  # of one operand in float32
    assert remark.args["rings"] == 1 and remark.args["ring_bytes_sent"] == 4 * part * 3 // 4 + 2 * part
    assert f"{remark.args['bytes_sent'] / 1e6:.3g} MB sent by each" in remark.message


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "given", "ranks", "front", "reason"),
    [
        ({"twin": "conv"}, {}, 2, FRONT, "mixes tokens: its windows lie along tokens"),
        ({"twin": "mean"}, {}, 2, FRONT, "mixes tokens: it reduces over tokens"),
        ({"twin": "mask"}, {}, 2, FRONT, "depends on tokens, of which every rank has a part"),
        ({"twin": "random"}, {}, 2, FRONT, "draws random numbers for tokens"),
        ({"joint": True}, {"past": 4}, 2, SPARSE, "the 3 heads of sparse_attention"),
        ({}, {"frames": 3, "height": 3, "width": 5}, 2, FRONT, "along no axis of the grid do 2 ranks divide"),
    ],
    ids=["convolution", "mean", "mask", "random", "sparse", "tokens"],
)
def test_what_cannot_go_around_stays_whole(
    model: dict[str, Any], given: dict[str, Any], ranks: int, front: str, reason: str
) -> None:
    copy, remark = shared(heads(3, **model), ranks, front, **given)
    assert remark.kind is RemarkKind.MISSED and reason in remark.message
    assert not list(copy.calls(PARTIAL)) and ranks_of(copy.graph_module) is None


def test_keys_that_are_changed_behind_their_concatenation_stay_whole() -> None:
    remark = shared({"kind": "changed", "heads": 3}, 2, world=RingWorld, past=2)[1]
    assert remark.kind is RemarkKind.MISSED and "(aten.cat.default) mixes tokens" in remark.message
    assert shared({"kind": "changed", "heads": 4}, 2, world=RingWorld, past=2)[1].kind is RemarkKind.APPLIED


def test_sparse_attention_says_what_would_help() -> None:
    remark = shared(heads(3, joint=True), 2, SPARSE, past=4)[1]
    assert "do not divide by 2 ranks, and no ring runs: ring attention is for dense attention" in remark.message
    assert "a preset without sparse attention" in remark.hint


# --- teams ----------------------------------------------------------------------------------------------------------


def test_teams_cover_all_ranks() -> None:
    for count, size in ((4, 2), (8, 2), (8, 4), (6, 3), (3, 1)):
        pairs = [heads_and_ring(Ranks(count, rank), size) for rank in range(count)]
        for rank, (neighbours, ring) in enumerate(pairs):
            assert neighbours.members[neighbours.own] == ring.members[ring.own] == rank
            assert set(neighbours.members) & set(ring.members) == {rank}
            assert neighbours.count == size and ring.count == count // size


def test_who_sends_is_received_from() -> None:
    for count, size in ((4, 2), (6, 3), (3, 1), (2, 1)):
        rings = [heads_and_ring(Ranks(count, rank), size)[1] for rank in range(count)]
        for rank, ring in enumerate(rings):
            for other, asked in enumerate(rings):
                assert ring.rows(ring.own - 1)[other] == asked.rows(asked.own + 1)[rank]
    assert Team.of_all(Ranks(3, 1)).rows(0, 1, 2) == [1, 1, 1]
