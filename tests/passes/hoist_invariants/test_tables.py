"""Tables that follow from sizes and constants are made once for each size; what else they could hang on is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.compiled import CompiledGraph
from lightint_compile.passes.hoist_invariants import HoistInvariants
from lightint_compile.passes.hoist_invariants.tables import TABLE

WIDTH = 64


def angles(tokens: int, host: dict | None = None) -> Tensor:
    """As models make them: positions by frequencies, in double precision, on the host."""
    given = {"dtype": torch.float64, **(host or {})}
    return torch.outer(torch.arange(tokens, **given), 1.0 / 1e4 ** (torch.arange(0, WIDTH, 2, **given) / WIDTH))


def rotary(model: Rotated, video: Tensor) -> Tensor:
    table = angles(video.shape[1])
    return torch.cat([table.cos(), table.sin()], 1).float().to(video.device)


def from_a_buffer(model: Rotated, video: Tensor) -> Tensor:
    return torch.outer(torch.arange(video.shape[1]), model.scales).cos().to(video.device)


def of_two_axes(model: Rotated, video: Tensor) -> Tensor:
    ends = torch.linspace(-1, 1, video.shape[1] // 4)[:, None], torch.linspace(-1, 1, 4)[None]
    plane = (ends[0] * ends[1]).reshape(-1, 1)
    return torch.polar(torch.ones_like(plane), plane).real.to(video.device).expand(-1, WIDTH)


FOUND: dict[str, Callable] = {
    "rotary": rotary,
    "from a buffer": from_a_buffer,
    "of two axes": of_two_axes,
}


def _read(model: Rotated, video: Tensor) -> Tensor:
    return rotary(model, video) * video.mean()


def _random(model: Rotated, video: Tensor) -> Tensor:
    return torch.rand(video.shape[1], WIDTH).to(video.device)


def _made_there(model: Rotated, video: Tensor) -> Tensor:
    return angles(video.shape[1], {"device": video.device}).cos().float().repeat(1, 2)


def _large(model: Rotated, video: Tensor) -> Tensor:
    return torch.arange(80 << 10).reshape(-1, 1).expand(-1, WIDTH).contiguous().to(video.device)[: video.shape[1]]


def _of_weights(model: Rotated, video: Tensor) -> Tensor:
    return model.heavy.cos().to(video.device)[: video.shape[1]]


NOT_FOUND = {  # one edit away each: what it hangs on, or what it would cost
    "draws random numbers": _random,
    "is made on the device": _made_there,
    "is larger than what is kept": _large,
    "comes from a buffer whose check takes long": _of_weights,
}


class Rotated(nn.Module):
    def __init__(self, table: Callable[[Rotated, Tensor], Tensor], *, hand_out: bool = False) -> None:
        super().__init__()
        self.table, self.hand_out = table, hand_out
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("scales", torch.randn(WIDTH))
        self.register_buffer("heavy", torch.randn(8192, WIDTH))

    def forward(self, video: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        table = self.table(self, video)
        for layer in self.layers:
            video = video + torch.tanh(layer(video) * table)
        return (video, table) if self.hand_out else video


def hoisted(table: Callable[[Rotated, Tensor], Tensor], **given: bool):
    """Marked nodes and remarks for a model whose video is on a device, tables and buffers on the host."""
    model = Rotated(table, **given).eval().requires_grad_(False)
    model.layers.to("meta")
    program = capture.trace(model, (torch.randn(1, 256, WIDTH, device="meta"),))
    result = HoistInvariants().run(program)
    marked = [node for node in program.graph.nodes if node.meta.get("memo") == TABLE]
    return marked, [remark for remark in result.remarks if remark.rule == "table"]


@pytest.mark.parametrize("name", FOUND)
def test_what_is_made_on_the_host_and_copied_over_is_marked_with_all_it_comes_from(name: str) -> None:
    marked, (remark,) = hoisted(FOUND[name])
    assert remark.args["copies"] == 1 and remark.args["operations"] == len(marked) > 2
    for node in marked:
        assert all(source in marked or source.op in ("placeholder", "get_attr") for source in node.all_input_nodes)


@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_hangs_on_more_or_costs_more_is_not(name: str) -> None:
    assert hoisted(NOT_FOUND[name]) == ([], [])


def test_what_reads_the_video_is_not_but_the_table_in_front_of_it_is() -> None:
    marked, _ = hoisted(_read)
    assert marked and not any("mean" in str(node.target) for node in marked)


def test_a_table_that_is_handed_out_is_the_callers() -> None:
    marked, _ = hoisted(rotary, hand_out=True)
    assert not any("meta" in str(node.meta["val"].device) for node in marked)


def session(table: Callable[[Rotated, Tensor], Tensor], *, dynamic: bool | None = None, device: str = "cpu"):
    torch._dynamo.reset()
    model = Rotated(table).eval().requires_grad_(False)
    model.layers.to(device)
    options = {"preset": "exact", "delegate": "eager", "strict": True}
    return model, torch.compile(model, backend="lightint", dynamic=dynamic, options=options)


def same(model: nn.Module, compiled: Callable, tokens: int, device: str = "cpu") -> None:
    video = torch.randn(1, tokens, WIDTH, device=device)
    with torch.no_grad():
        torch.testing.assert_close(compiled(video), model(video), rtol=0, atol=0)


def found(compiled: object) -> tuple[int, int]:
    memos = [memo for graph in CompiledGraph.of(compiled) if graph.driver for memo in graph.driver.memos.values()]
    return sum(memo.hits for memo in memos), sum(memo.misses for memo in memos)


@pytest.mark.parametrize("name", FOUND)
def test_sizes_that_come_again_find_their_tables(name: str) -> None:
    model, compiled = session(FOUND[name], dynamic=True)
    sizes = (1024, 1024, 2048, 1024, 4096, 2048)
    for tokens in sizes:
        same(model, compiled, tokens)
    if name != "of two axes":  # too little to compute on the CPU
        assert found(compiled) == (3, 3)


@pytest.mark.parametrize("name", ["rotary", *(pytest.param(name, marks=pytest.mark.slow) for name in [*FOUND][1:])])
def test_tables_of_changing_sizes_compile(name: str) -> None:
    """Their region is given sizes and no tensor; Inductor finds their symbols all the same."""
    torch._dynamo.reset()
    model = Rotated(FOUND[name]).eval().requires_grad_(False)
    compiled = torch.compile(model, backend="lightint", dynamic=True, options={"preset": "exact", "strict": True})
    for tokens in (1024, 2048, 1024):
        video = torch.randn(1, tokens, WIDTH)
        with torch.no_grad():
            torch.testing.assert_close(compiled(video), model(video), rtol=1e-5, atol=1e-5)


def test_a_buffer_that_a_table_comes_from_is_checked_by_content() -> None:
    model, compiled = session(from_a_buffer)
    for write in (lambda: None, lambda: model.scales.data.add_(1), lambda: model.scales.numpy().fill(0.5)):
        write()
        same(model, compiled, 512)
        same(model, compiled, 512)
    assert found(compiled) == (3, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FOUND)
def test_on_a_gpu_later_calls_copy_nothing_from_the_host(name: str) -> None:
    model, compiled = session(FOUND[name], device="cuda")
    for _ in range(2):
        same(model, compiled, 512, "cuda")
    video = torch.randn(1, 512, WIDTH, device="cuda")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.no_grad(), torch.profiler.profile(activities=activities) as profile:
        compiled(video)
        torch.cuda.synchronize()
    assert not [event for event in profile.events() if "HtoD" in event.name]
    assert [event for event in profile.events() if "mm" in event.name]
