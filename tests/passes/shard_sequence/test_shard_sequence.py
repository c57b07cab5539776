"""shard-sequence on graphs, as rank 0 sees them: what is dealt out, what is refused and why, and what is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rank_worlds
import torch
from differential import rewritten, trace
from rank_cases import FRONT, SPARSE
from torch import Tensor, nn
from torch.nn import functional as F
from toy_world import there_and_back

import lightint_compile
from lightint_compile.errors import OptionError, RankError
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.ranks import Ranks, ranks_of
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.testing.capturing import captured

OPS = torch.ops._c10d_functional


def program_of(model: dict[str, Any], **given: Any) -> Program:
    module = rank_worlds.World(**model).double().eval().requires_grad_(False)
    return captured(module, rank_worlds.inputs(module, **given))[0]


def shared(program: Program, ranks: int = 2, front: str = FRONT) -> tuple[Program, Remark]:
    copy, result = rewritten(program, f"{front},shard-sequence{{gpus={ranks}}}")
    (remark,) = [r for r in result.remarks if r.pass_name == "shard-sequence"]
    return copy, remark


def test_every_rank_has_its_tokens_and_its_heads() -> None:
    copy, remark = shared(program_of({"depth": 2}), 2)
    assert remark.kind is RemarkKind.APPLIED and remark.args["by"] == "frames" and remark.args["sites"] == 4
    queries = [
        node.args[0].meta["val"].shape for node in copy.calls(torch.ops.aten.scaled_dot_product_attention.default)
    ]
    tokens, heads = 4 * 4 * 8, 4
    assert queries == [(1, heads // 2, tokens, 8), (1, heads, tokens // 2, 8)] * 2  # of its own heads, then to text
    # Of each attention's queries, keys and values, and of what it gives.
    assert len(list(copy.calls(OPS.all_to_all_single.default))) == 4 == remark.args["exchanges"]
    assert len(list(copy.calls(OPS.all_gather_into_tensor.default))) == 1 == remark.args["gathers"]
    assert ranks_of(copy.graph_module) == Ranks(2)


def test_tokens_are_dealt_out_where_no_attention_of_theirs_is_dense() -> None:
    """And where there are so many that Python makes two numbers of one size."""
    copy, remark = shared(program_of({"joint": True, "depth": 2}, past=4, frames=12), front=SPARSE)
    assert remark.kind is RemarkKind.APPLIED and remark.args["sites"] == 2
    assert not list(copy.calls(torch.ops.aten.scaled_dot_product_attention.default))


def test_a_second_run_changes_nothing() -> None:
    copy, _ = shared(program_of({}))
    again = rewritten(copy, "shard-sequence{gpus=2}")[1]
    assert not again.modified and again.remarks == ()


def test_one_rank_changes_nothing() -> None:
    result = rewritten(program_of({}), "shard-sequence{gpus=1},shard-sequence")[1]
    assert not result.modified and result.remarks == ()


@pytest.mark.parametrize(
    ("sizes", "by"),
    [
        ({"frames": 4, "height": 3, "width": 5}, "frames"),
        ({"frames": 3, "height": 4, "width": 5}, "rows"),
        ({"frames": 3, "height": 3, "width": 6}, "columns"),
    ],
)
def test_tokens_are_dealt_out_along_the_first_axis_that_divides(sizes: dict[str, int], by: str) -> None:
    assert shared(program_of({}, **sizes))[1].args["by"] == by


@pytest.mark.parametrize(
    ("model", "given", "ranks", "reason"),
    [
        ({"twin": "conv"}, {}, 2, "mixes tokens: its windows lie along tokens"),
        ({"twin": "mean"}, {}, 2, "mixes tokens: it reduces over tokens"),
        ({"twin": "mask"}, {}, 2, "depends on tokens, of which every rank has a part"),
        ({"twin": "random"}, {}, 2, "draws random numbers for tokens"),
        ({}, {"frames": 3, "height": 3, "width": 5}, 2, "along no axis of the grid do 2 ranks divide the tokens 3x3x5"),
    ],
    ids=["convolution", "mean", "mask", "random", "tokens"],
)
def test_what_cannot_be_dealt_out_stays_whole(
    model: dict[str, Any], given: dict[str, Any], ranks: int, reason: str
) -> None:
    program = program_of(model, **given)
    copy, remark = shared(program, ranks)
    assert remark.kind is RemarkKind.MISSED and reason in remark.message and remark.hint
    assert not list(copy.calls(OPS.all_to_all_single.default)) and ranks_of(copy.graph_module) is None


def test_a_program_without_a_grid_is_left_alone() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    program = captured(Flat(), [torch.randn(1, 2, 8, 4)])[0]
    assert "no attention has queries of a token grid" in shared(program)[1].message


def test_the_past_is_not_sent() -> None:
    sent = {past: shared(program_of({}, past=past))[1].args["bytes_sent"] for past in (1, 8)}
    assert sent[1] == sent[8] == shared(program_of({}))[1].args["bytes_sent"]


def test_repeated_blocks_are_one_region_still() -> None:
    world, path = rank_worlds.Headed().double().eval().requires_grad_(False), there_and_back(12).double()
    latents = torch.randn(1, 4, 12, 4, 6).double()
    given = {"noise": latents[:, :, 8:], "history": latents[:, :, :8], "extrinsics": path}
    program = trace(world, {name: value.contiguous() for name, value in given.items()})
    copy, result = rewritten(program, f"{FRONT},shard-sequence{{gpus=2}},outline-regions,step-cache")
    assert ranks_of(copy.graph_module) == Ranks(2)
    calls = [r.args["calls"] for r in result.remarks if r.pass_name == "outline-regions" and r.rule == "block"]
    assert max(calls) == 8  # two blocks in four steps
    assert any(r.pass_name == "step-cache" and r.kind is RemarkKind.APPLIED for r in result.remarks)
    points = [m.spec for m in copy.graph_module.modules() if hasattr(m, "spec") and hasattr(m.spec, "step")]
    assert points and all(point.group == "0" for point in points)


def test_exchanges_stand_where_least_is_sent() -> None:
    """What is copied behind the view that makes heads is exchanged in front of the copies."""
    copy, _ = shared(program_of({"twin": "copies"}))
    sizes = [node.meta["val"].numel() for node in copy.calls(OPS.all_to_all_single.default)]
    part = 4 * 4 * 8 * 32 // 2
    assert sizes == [3 * part, part]  # three operands, and the sum of what was attended to


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["off", "exact", "sparse", "all"])
def test_the_option_puts_the_pass_in_front_of_the_regions(preset: str) -> None:
    names = [step.name for step in pipeline_of(LightintOptions(preset=preset, gpus=2)).passes]
    assert "shard-sequence" in names
    assert set(names[names.index("shard-sequence") + 1 :]) <= {"split-linears", "outline-regions", "step-cache"}
    assert "shard-sequence" not in str(pipeline_of(LightintOptions(preset=preset)))


def test_ranks_without_a_process_group_are_an_error_with_the_way_out() -> None:
    module = rank_worlds.World().eval().requires_grad_(False)
    compiled = torch.compile(module, backend="lightint", options={"gpus": 2, "delegate": "eager"})
    with torch.no_grad(), pytest.raises(Exception, match=r"torch\.distributed has no process group") as raised:
        compiled(*rank_worlds.inputs(module, dtype=torch.float32))
    assert "torchrun --nproc-per-node 2" in str(raised.value)
    assert issubclass(RankError, RuntimeError)


def test_a_report_needs_no_process_group() -> None:
    module = rank_worlds.World().eval().requires_grad_(False)
    report = lightint_compile.explain(module, *rank_worlds.inputs(module, dtype=torch.float32), options={"gpus": 2})
    assert "run on 2 ranks" in str(report)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"gpus": 0}, "cannot be taken"),
        ({"mesh": "four"}, "cannot be taken"),
        ({"gpus": 2, "mesh": "2@0"}, "cannot be set together"),
        ({"gpus": 2, "max_relative_error": 0.1}, "an error budget cannot be set for several ranks"),
    ],
)
def test_options_that_cannot_be_taken(options: dict[str, Any], what: str) -> None:
    with pytest.raises(OptionError, match=what):
        LightintOptions.from_mapping(options)


def test_a_file_is_for_one_rank(tmp_path: Path) -> None:
    module = rank_worlds.World().eval().requires_grad_(False)
    args = rank_worlds.inputs(module, dtype=torch.float32)
    with pytest.raises(OptionError, match="a file is for one rank"):
        lightint_compile.export(module, args, tmp_path / "world.pt2", options={"gpus": 2})


def test_options_come_back_from_plain_data() -> None:
    for options in (LightintOptions(gpus=4), LightintOptions(mesh="4@1")):
        assert LightintOptions.from_mapping(options.to_dict()) == options
