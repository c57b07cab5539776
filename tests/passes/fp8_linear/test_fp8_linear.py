"""fp8-linear: the product of rounded rows and nothing else, in interior blocks alone, whatever happens to weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import worldplay_tiny
from differential import feeds_of, rewritten, run, trace
from fp8_model import CHANNELS, EIGHT_BITS, WIDTH, Block, Model, error, made, product, rounded
from torch import Tensor, nn
from torch.nn import functional as F

import lightint_compile
from lightint_compile.bench.rollout_job import variant_options
from lightint_compile.errors import BudgetError, OptionError
from lightint_compile.evaluating.variants import variant_of
from lightint_compile.lowering.result_memo import Memo
from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs, fill_random
from lightint_compile.options import LightintOptions
from lightint_compile.options.ladder import ladder_of
from lightint_compile.options.pipelines import asked_passes, pipeline_of, unasked_passes
from lightint_compile.options.presets import PRESETS
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.fp8_linear import emit, fitting
from lightint_compile.passes.fp8_linear.blocks import blocks_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, RemarkKind

PASS = "fp8-linear{on-cpu=true}"
EVERY = "fp8-linear{on-cpu=true,keep-first=0,keep-last=0}"
aten = torch.ops.aten

E4M3 = 2**-4
"""The largest relative error of a number in float8_e4m3fn that is no subnormal."""

HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""The same for a result in 16 bits, twice for the rounding in front of a bias."""


def tokens(rows: int = 256, dtype: torch.dtype = torch.bfloat16, channels: int = CHANNELS) -> Tensor:
    return torch.randn(1, rows, channels, generator=torch.Generator().manual_seed(1)).to(dtype)


def model(blocks: int = 4, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    return made(Model(blocks), dtype)


def said(result: Any) -> list[tuple[str, str]]:
    return [(str(each.kind), each.message) for each in result.remarks]


def eights(program: Program) -> list[str]:
    """What is rounded to 8 bits, by the node that it comes from."""
    casts = [node for node in program.calls(aten._to_copy.default) if node.meta["val"].dtype is EIGHT_BITS]
    return [str(node.args[0].args[0].args[0]) for node in casts]  # type: ignore[union-attr]


class Chain(nn.Module):
    """Blocks of one linear, whose input and result can be told from the result of the whole."""

    def __init__(self, blocks: int = 2, width: int = WIDTH, bias: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias) for _ in range(blocks))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.turned(block(self.turned(x))) for block, x in zip(self.blocks, inputs, strict=True))

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        """Enough operations that change no value for a block to be told as one."""
        for _ in range(4):
            x = x.neg().neg()
        return x


class Two(nn.Module):
    """A chain of two blocks, each with an input of its own."""

    def __init__(self, module: Chain) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return self.module(x, y)


def chain(dtype: torch.dtype = torch.bfloat16, bias: bool = True, width: int = WIDTH) -> Chain:
    torch.manual_seed(0)
    return made(Chain(width=width, bias=bias), dtype)  # type: ignore[return-value]


def through(module: Chain, x: Tensor, text: str = EVERY, **options: Any) -> tuple[Program, Any, Tensor]:
    """A linear of a chain under the pass: the program, what the pass says, and the first result."""
    called, feeds = Two(module), {"x": x, "y": x.clone()}
    copy, result = rewritten(trace(called, feeds, **options), text)
    return copy, result, run(copy, feeds_of(called, feeds))[0]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_product_of_rounded_rows(dtype: torch.dtype, bias: bool) -> None:
    module, x = chain(dtype, bias), tokens(300, dtype, WIDTH)
    copy, result, ours = through(module, x)
    first = module.blocks[0]
    exact = F.linear(x.double(), first.weight.double(), None if first.bias is None else first.bias.double())
    assert [kind for kind, _ in said(result)] == ["applied"] * 2
    assert all(remark.numerics is Numerics.APPROXIMATE for remark in result.remarks)
    assert ours.dtype is dtype and ours.shape == exact.shape
    assert error(ours, product(x, first.weight, first.bias)) < HALF[dtype]
    assert HALF[dtype] < error(ours, exact) < 0.04
    reach = 1.01 * (2 * E4M3 + E4M3**2) * F.linear(x.double().abs(), first.weight.double().abs())
    assert ((ours.double() - exact).abs() <= reach + HALF[dtype] * exact.abs() + 1e-3).all()
    assert not rewritten(copy, EVERY)[1].modified


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stored", ["rows", "columns"])
def test_the_form_for_cuda_is_the_same_product(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bias: bool, stored: str
) -> None:
    monkeypatch.setattr(emit.Emitter, "_on_cpu", emit.Emitter._on_cuda)
    module, x = chain(dtype, bias), tokens(272, dtype, WIDTH)
    x = x.mT.contiguous().mT if stored == "columns" else x
    called, feeds = Two(module), {"x": x, "y": x.clone()}
    copy, result = rewritten(trace(called, feeds), EVERY)
    products = list(copy.calls(aten._scaled_mm.default))
    assert result.modified and len(products) == 2
    for node in products:
        left, right, rows, columns = (each.meta["val"] for each in node.args[:4])  # type: ignore[union-attr]
        assert left.stride() == (WIDTH, 1) and right.stride() == (1, WIDTH)  # what tensor cores of Hopper take
        assert rows.shape == (272, 1) and columns.shape == (1, WIDTH) and node.meta["val"].dtype is torch.bfloat16
    if torch.__version__ < "2.12":
        return  # its CPU knows one scale for the whole product only
    first = module.blocks[0]
    assert error(run(copy, feeds_of(called, feeds))[0], product(x, first.weight, first.bias)) < 2**-8


def test_the_first_and_last_block_and_what_is_outside_stay() -> None:
    module, x = model(), tokens()
    copy, result = rewritten(trace(module, {"x": x}), PASS)
    applied = [each for each in result.remarks if each.kind is RemarkKind.APPLIED]
    assert {each.module_path.split(".")[1] for each in applied} == {"1", "2"} and len(applied) == 12
    missed = {(each.module_path, each.message) for each in result.remarks if each.kind is RemarkKind.MISSED}
    outside = "it is in no block that repeats: embeddings and final layers keep 16 bits"
    assert {path for path, why in missed if why == outside} == {"embed", "final"}
    assert {path.split(".")[1] for path, why in missed if why == "it is in the first 1 of 4 blocks"} == {"0"}
    assert {path.split(".")[1] for path, why in missed if why == "it is in the last 1 of 4 blocks"} == {"3"}
    feeds = feeds_of(module, {"x": x})
    assert 0 < error(run(copy, feeds)[0], module(x)) < 0.04
    assert len(list(copy.calls(aten.scaled_dot_product_attention.default))) == 4


def test_an_input_of_several_linears_is_rounded_once() -> None:
    copy, _ = rewritten(trace(model(3), {"x": tokens()}), PASS)
    sources = eights(copy)
    assert len(sources) == 6 + 4  # weights; the inputs of attention, of its projection, and of the two that follow
    assert len(set(sources)) == len(sources)


def test_few_blocks_leave_nothing() -> None:
    _, result = rewritten(trace(model(2), {"x": tokens()}), PASS)
    told = [each for each in result.remarks if "there are 2 blocks" in each.message]
    assert not result.modified and len(told) == 12 and "keep-first=0" in told[0].hint


class Derived(nn.Linear):
    """A linear whose weight is made in the call."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2, self.bias)


def edited(kind: type[nn.Linear] = nn.Linear, features: int = WIDTH, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Four blocks, in which ``wide`` and ``narrow`` are of another kind or size."""
    torch.manual_seed(0)
    whole = Model(4)
    for block in whole.blocks:
        assert isinstance(block, Block)
        block.wide, block.narrow = kind(WIDTH, features), kind(features, WIDTH)
    return made(whole, dtype)


@pytest.mark.parametrize(
    ("make", "rows", "text", "reason"),
    [
        (lambda: edited(dtype=torch.float32), 256, PASS, "it computes in float32"),
        (lambda: edited(features=72), 256, PASS, "both have to be multiples of 16"),
        (lambda: edited(Derived), 256, PASS, "it is no parameter"),
        (edited, 255, PASS, "it has 255 rows, fewer than 256"),
        (edited, 256, "fp8-linear", "a CPU gains nothing"),
    ],
)
def test_one_edit_away_a_linear_stays(make: Callable[[], nn.Module], rows: int, text: str, reason: str) -> None:
    module = make()
    dtype = next(module.parameters()).dtype
    program = trace(module, {"x": tokens(rows, dtype)})
    _, result = rewritten(program, text)
    paths = {each.module_path for each in result.remarks if reason in each.message}
    assert {"blocks.1.wide", "blocks.2.narrow"} <= paths
    changed = {each.module_path for each in result.remarks if each.kind is RemarkKind.APPLIED}
    assert not changed & paths and bool(changed) == ("multiples" in reason or "parameter" in reason)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (fitting.Device("cuda", (9, 0)), ""),
        (fitting.Device("cuda", (8, 9)), ""),
        (fitting.Device("cuda", (8, 6)), "compute capability 8.6"),
        (fitting.Device("cuda"), "not known"),
        (fitting.Device("mps"), "not known"),
        (fitting.Device("cpu"), "gains nothing"),
    ],
)
def test_devices(device: fitting.Device, reason: str) -> None:
    why, _ = fitting.objection_of_device(device, on_cpu=False)
    assert reason in why and bool(why) == bool(reason)


def test_sizes_may_be_any_and_none() -> None:
    module = Two(chain())
    x = tokens(300, channels=WIDTH)
    program = trace(module, {"x": x, "y": x.clone()}, dynamic={"x": 1, "y": 1})
    copy, result = rewritten(program, EVERY)
    first = module.module.blocks[0]
    assert result.modified
    for rows in (300, 1, 1025, 0):
        x = tokens(rows, channels=WIDTH)
        ours = run(copy, feeds_of(module, {"x": x, "y": x.clone()}))[0]
        assert ours.shape == (1, rows, WIDTH)
        assert not rows or error(ours, product(x, first.weight, first.bias)) < 2**-8


def test_rows_of_zeros_are_the_bias_and_what_is_not_finite_stays_in_its_row() -> None:
    module, x = chain(), tokens(channels=WIDTH)
    x[0, 3], x[0, 4, 5], x[0, 6, 7], x[0, 8] = 0, float("inf"), float("nan"), 2.0**-130
    _, _, ours = through(module, x)
    bias = module.blocks[0].bias
    assert torch.equal(ours[0, 3], bias) and torch.equal(ours[0, 8], bias)
    finite = ours.isfinite().all(-1)[0]
    assert not finite[4] and not finite[6] and finite.sum() == 254


@pytest.mark.parametrize("keep", ["true", "false"])
def test_weights_that_change_between_calls(one_thread: None, keep: str) -> None:
    module, x = model(3), tokens()
    text = f"hoist-invariants,fp8-linear{{on-cpu=true,keep-weights={keep}}},outline-regions"
    options = {"passes": text, "delegate": "eager", "strict": True}
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="lightint", options=options)
    plain, _ = rewritten(trace(module, {"x": x}), PASS)

    def expected() -> Tensor:
        return run(plain, feeds_of(module, {"x": x}))[0]

    weight, other = module.blocks[1].query.weight, torch.randn(WIDTH, WIDTH).bfloat16()  # type: ignore[union-attr]
    state = {name: value + 0.125 for name, value in module.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(compiled(x), expected()) and torch.equal(compiled(x), expected())
        weight.data.copy_(other)
        assert torch.equal(compiled(x), expected())
        weight.data = other.flip(0).contiguous()
        assert torch.equal(compiled(x), expected())
        weight.view(torch.int16).numpy()[:] += 1
        assert torch.equal(compiled(x), expected())
        module.load_state_dict(state)
        assert torch.equal(compiled(x), expected())
    weight.requires_grad_().grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()
    with torch.no_grad():
        assert torch.equal(compiled(x), expected()) and torch.equal(compiled(x), expected())


def test_weights_are_rounded_when_they_change_and_not_in_every_call(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, keep = [], Memo._keep
    monkeypatch.setattr(Memo, "_keep", lambda memo, entry: (left.append(memo.name), keep(memo, entry)))
    module, x = model(4), tokens()
    options = {"passes": f"{PASS},outline-regions", "delegate": "eager", "strict": True}
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="lightint", options=options)

    with torch.no_grad():
        compiled(x)
        assert len(left) == 2  # one for the weights of each block
        compiled(x)
        module.blocks[2].query.weight.data += 1  # type: ignore[union-attr, operator]
        compiled(x)
        compiled(x)
    assert len(left) == 3


def test_blocks_of_one_kind_are_compiled_once_and_so_is_what_rounds_their_weights() -> None:
    for blocks in (6, 12):
        copy, _ = rewritten(trace(model(blocks), {"x": tokens()}), f"{PASS},outline-regions")
        calls = [str(node.target) for node in copy.graph.nodes if node.op == "call_module"]
        assert len(set(calls)) <= 5  # of interior blocks, of their weights, and around them
        assert max(map(calls.count, calls)) == calls.count("memo_0") == blocks - 2


def test_steps_share_blocks() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model(4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = x - 0.25 * self.model(x)
            return x

    module = made(Steps())
    program = trace(module, {"x": tokens()})
    assert {(each.index, each.count) for each in blocks_of(program).values()} == {(i, 4) for i in range(4)}
    copy, result = rewritten(program, PASS)
    assert len([each for each in result.remarks if each.kind is RemarkKind.APPLIED]) == 3 * 12
    assert len(eights(copy)) == 12 + 3 * 2 * 4  # weights once, inputs in each step


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("bias", [True, False])
def test_on_a_gpu_it_is_the_product_of_rounded_rows(dtype: torch.dtype, bias: bool) -> None:
    if fitting.objection_of_device(fitting.Device("cuda", torch.cuda.get_device_capability()), on_cpu=False)[0]:
        pytest.skip("the device has no 8-bit products")
    called = Two(chain(dtype, bias)).cuda()
    first = called.module.blocks[0]
    program = trace(called, dict.fromkeys("xy", tokens(300, dtype, WIDTH).cuda()), dynamic={"x": 1, "y": 1})
    copy, result = rewritten(program, "fp8-linear{keep-first=0,keep-last=0}")
    assert result.modified and len(list(copy.calls(aten._scaled_mm.default))) == 2
    for rows in (300, 1, 1025, 0):
        x = tokens(rows, dtype, WIDTH).cuda()
        ours = run(copy, feeds_of(called, {"x": x, "y": x.clone()}))[0]
        assert ours.dtype is dtype and ours.shape == (1, rows, WIDTH)
        if rows:
            exact = F.linear(x.double(), first.weight.double(), first.bias.double() if bias else None)
            assert error(ours, product(x, first.weight, first.bias)) < 2**-7
            assert error(ours, exact) < 0.04


@pytest.mark.gpu
@pytest.mark.parametrize("fast", ["true", "false"])
def test_on_a_gpu_a_model_is_as_on_a_cpu(fast: str) -> None:
    if fitting.objection_of_device(fitting.Device("cuda", torch.cuda.get_device_capability()), on_cpu=False)[0]:
        pytest.skip("the device has no 8-bit products")
    module, x = model(4), tokens(512)
    plain, _ = rewritten(trace(module, {"x": x}), PASS)
    expected, exact = run(plain, feeds_of(module, {"x": x}))[0], module(x)
    torch._dynamo.reset()
    options = {"preset": "exact", "also": f"fp8-linear{{fast-accumulation={fast}}}", "require": ["fp8-linear"]}
    compiled = torch.compile(module.cuda(), backend="lightint", options={**options, "strict": True})
    with torch.no_grad():
        for _ in range(2):
            assert error(compiled(x.cuda()).cpu(), exact) < 0.04
            assert error(compiled(x.cuda()).cpu(), expected) < 0.04
        module.blocks[1].query.weight.data.mul_(-1)  # type: ignore[union-attr, operator]
        assert error(compiled(x.cuda()), module(x.cuda())) < 0.04


def test_with_inductor_it_is_the_same_product(one_thread: None) -> None:
    called, x = Two(chain()), tokens(300, channels=WIDTH)
    torch._dynamo.reset()
    options = {"preset": "exact", "also": EVERY, "require": ["fp8-linear"], "strict": True}
    compiled = torch.compile(called, backend="lightint", options=options)
    with torch.no_grad():
        for ours, linear in zip(compiled(x, x.clone()), called.module.blocks, strict=True):
            assert error(ours, product(x, linear.weight, linear.bias)) < 2**-8


@pytest.mark.slow
def test_with_inductor_a_model_is_near_what_it_is(one_thread: None) -> None:
    module, x = model(3), tokens()
    torch._dynamo.reset()
    options = {"preset": "exact", "also": PASS, "require": ["fp8-linear"], "strict": True}
    compiled = torch.compile(module, backend="lightint", options=options)
    with torch.no_grad():
        assert HALF[torch.bfloat16] < error(compiled(x), module(x)) < 0.04
        module.blocks[1].query.weight.data.mul_(-1)  # type: ignore[union-attr, operator]
        assert HALF[torch.bfloat16] < error(compiled(x), module(x)) < 0.04
    assert "fp8-linear [linear]" in str(lightint_compile.report(compiled))


def test_no_preset_runs_it_and_also_does() -> None:
    assert not any("fp8-linear" in preset.passes for preset in PRESETS.values())
    options = LightintOptions(also="fp8-linear{min-rows=512}")
    names = [step.name for step in pipeline_of(options).passes]
    assert names[names.index("fp8-linear") + 1 :][:2] == ["split-linears", "outline-regions"]
    assert "fp8-linear{min-rows=512}" in str(pipeline_of(options))
    assert "fp8-linear" in asked_passes(options) and "fp8-linear" not in unasked_passes(options)
    shared = [step.name for step in pipeline_of(LightintOptions(also="fp8-linear", gpus=2)).passes]
    assert shared.index("shard-sequence") < shared.index("fp8-linear") < shared.index("outline-regions")


def test_a_pass_behind_a_plus_on_the_command_line() -> None:
    options = variant_options("all+fp8-linear{min-rows=512}+narrow-linears:drift=0.2")
    assert options == {"preset": "all", "also": "fp8-linear{min-rows=512},narrow-linears", "drift": 0.2}
    assert LightintOptions.from_mapping(options).also == "fp8-linear{min-rows=512},narrow-linears"
    stated = variant_options('sparse:min_tokens=0,site_density={"*": 1, "blocks.0.*": 0.3},drift=0.2')
    assert stated["site_density"] == {"*": 1, "blocks.0.*": 0.3}
    assert stated["min_tokens"] == 0 and stated["drift"] == 0.2
    with pytest.raises(OptionError, match="there is no pass called 'fp8-liner'"):
        variant_of("all+fp8-liner")
    with pytest.raises(OptionError, match="takes no options"):
        variant_of("eager+fp8-linear")


def test_also_gives_a_pass_of_the_preset_other_options() -> None:
    plain, options = (
        LightintOptions(preset="sparse"),
        LightintOptions(preset="sparse", also="sparse-attention{density=0.4}"),
    )
    assert [each.name for each in pipeline_of(options).passes] == [each.name for each in pipeline_of(plain).passes]
    assert "sparse-attention{density=0.4}" in str(pipeline_of(options))


@pytest.mark.slow
def test_worldplay_changes_in_all_steps_and_keeps_both_ends() -> None:
    config = dataclasses.replace(WorldPlayConfig.tiny(), depth=4)
    module = made(fill_random(WorldPlayChunk(config)))
    feeds = dict(zip(worldplay_tiny.NAMES, example_inputs(config, 8, dtype=torch.bfloat16)[0], strict=True))
    program = trace(module, feeds)
    copy, result = rewritten(program, "canonicalize-attention,hoist-invariants,fp8-linear{on-cpu=true,min-rows=16}")
    changed = [each for each in result.remarks if each.kind is RemarkKind.APPLIED and each.pass_name == "fp8-linear"]
    applied = [each.module_path for each in changed]
    assert {path.split(".")[2] for path in applied} == {"1", "2"}
    assert applied.count("transformer.double_blocks.2.img_mlp.fc2") >= 4  # denoising steps
    ours, theirs = (run(each, feeds_of(module, feeds)) for each in (copy, program))
    assert all(0 < error(*pair) < 0.04 for pair in zip(ours, theirs, strict=True))


def test_scales_of_a_product_go_where_its_rows_and_columns_do() -> None:
    graph = torch.fx.Graph()
    nodes = []
    for name, size in {"left": (32, 64), "right": (64, 48), "rows": (32, 1), "columns": (1, 48), "bias": (48,)}.items():
        nodes.append(graph.placeholder(name))
        nodes[-1].meta["val"] = torch.empty(size, device="meta")
    call = graph.call_function(aten._scaled_mm.default, tuple(nodes), {"out_dtype": torch.bfloat16})
    call.meta["val"] = torch.empty(32, 48, device="meta", dtype=torch.bfloat16)
    movement = movement_of(call)
    assert movement is not None
    along = [{(str(ref.node), ref.axis) for ref in way.refs} for way in movement.outputs[0]]  # type: ignore[union-attr]
    assert along == [{("left", 0), ("rows", 0)}, {("right", 1), ("columns", 1), ("bias", 0)}]


def test_a_budget_runs_it_behind_reused_steps_and_before_less_context() -> None:
    options = LightintOptions(also="fp8-linear{min-rows=64}", max_relative_error=0.1)
    ladder = [{name for name, _ in rung.runs} for rung in ladder_of(options)]
    first = next(number for number, names in enumerate(ladder) if "fp8-linear" in names)
    assert all("fp8-linear" in names for names in ladder[first:]) and not ladder[0]
    assert ladder[first] - ladder[first - 1] == {"fp8-linear"} and "step-cache" in ladder[first - 1]
    assert ladder[first + 1] - ladder[first] == {"adaptive-context"}
    for rung, names in zip(ladder_of(options), ladder, strict=True):
        steps = {step.name: step for step in pipeline_of(rung.applied_to(options)).passes}
        assert ("fp8-linear" in steps) == ("fp8-linear" in names)
        assert "fp8-linear" not in steps or vars(steps["fp8-linear"])["min_rows"] == 64, "its own options stay"
    none = LightintOptions(also="fp8-linear", max_relative_error=0.0)
    assert "fp8-linear" not in [step.name for step in pipeline_of(none).passes]
    plain = [{name for name, _ in rung.runs} for rung in ladder_of(LightintOptions(max_relative_error=0.1))]
    assert plain == [*ladder[:first], *(names - {"fp8-linear"} for names in ladder[first + 1 :])]


@pytest.mark.parametrize(("budget", "runs"), [(0.2, True), (1e-4, False)])
def test_a_calibrated_budget_decides_whether_it_runs(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float, runs: bool
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    called, x = model(), tokens()
    options = {"also": PASS, "max_relative_error": budget, "delegate": "eager", "strict": True}
    compiled = torch.compile(called, backend="lightint", options=options)
    with torch.no_grad():
        exact = called(x)
        assert torch.equal(compiled(x), exact), "nothing is rounded before it is calibrated"
        with nullcontext() if runs else pytest.raises(BudgetError, match="nothing approximate keeps"):
            made = lightint_compile.calibrate(compiled, lambda: compiled(x))
            assert made.setting == "fp8-linear" and 0 < made.table.rows[made.chosen - 1].deviation.relative < budget
        off = error(compiled(x), exact)
        assert (1e-3 < off < budget) if runs else off == 0


def test_rounding_reaches_the_largest_number_and_no_further() -> None:
    rows = torch.randn(64, 512).bfloat16() * torch.logspace(-30, 30, 64).unsqueeze(1)
    scales = rows.float().abs().amax(-1, keepdim=True)
    assert torch.allclose(rounded(rows).abs().amax(-1, keepdim=True), scales.double(), rtol=1e-6)
