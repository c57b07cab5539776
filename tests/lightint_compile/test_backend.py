"""``torch.compile(model, backend="lightint")``: the same results, one report, nothing silent."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile.compiled import CompiledGraph, report, reset
from lightint_compile.errors import LightintError, OptionError, PassError, StateError

EAGER = {"delegate": "eager", "strict": True}


class Attention(nn.Module):
    """Hand-written attention with the key permuted, which stock Inductor 2.13 gets wrong when all sizes agree."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return x + (weights @ v).transpose(1, 2).flatten(2)


class Stack(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(16) for _ in range(depth)])

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def stack() -> Stack:
    torch.manual_seed(0)
    return Stack().eval()


def _compiled(module: Any, **options: Any) -> Any:
    return torch.compile(module, backend="lightint", options={**EAGER, **options})


def test_results_and_report(stack: Stack) -> None:
    compiled, x = _compiled(stack), torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), stack(x))
    (section,) = report(compiled).sections
    assert {"canonicalize-attention", "outline-regions"} <= {row.name for row in section.passes if row.rewritten}
    assert section.measurements["distinct regions"] < section.measurements["region calls"]


def test_gradients_go_to_inductor_with_a_remark() -> None:
    layer = nn.Linear(4, 4)
    compiled, x = _compiled(layer), torch.randn(2, 4)
    compiled(x).sum().backward()
    assert layer.weight.grad is not None
    assert "gradients" in report(compiled).sections[0].untouched


def test_a_graph_that_writes_to_a_strided_part_of_its_input_is_left_alone() -> None:
    def count(buffer: Tensor, x: Tensor) -> Tensor:
        buffer[::2].add_(1)
        return x * buffer

    compiled = torch.compile(count, backend="lightint", options={"delegate": "eager"})
    buffer = torch.zeros(3)
    with torch.no_grad():
        assert compiled(buffer, torch.ones(3)).tolist() == [1, 0, 1]
        assert compiled(buffer, torch.ones(3)).tolist() == [2, 0, 2]
    assert "writes to its inputs" in report(compiled).sections[0].untouched


def test_lengths_do_not_recompile(stack: Stack) -> None:
    compiled = _compiled(stack)
    with torch.no_grad():
        for length in (5, 7, 11, 30):
            x = torch.randn(2, length, 16)
            torch._dynamo.mark_dynamic(x, 1)
            torch.testing.assert_close(compiled(x), stack(x))
    (graph,) = CompiledGraph.of(compiled)
    assert graph.driver is not None
    assert graph.driver.compilations == len(graph.driver.leaves)


def test_autocast_around_a_call_does_not_reach_a_part_that_left_it(stack: Stack) -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return self.stack(x)

    x = torch.randn(1, 5, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = _compiled(Left())
        torch.testing.assert_close(compiled(x), Left()(x))
    (graph,) = CompiledGraph.of(compiled)
    assert graph.driver is not None


def test_two_instances_do_not_share(stack: Stack) -> None:
    other = Stack().eval()
    x = torch.randn(1, 5, 16)
    with torch.no_grad():
        for module in (stack, other, stack):
            torch.testing.assert_close(_compiled(module)(x), module(x))


def test_equal_options_compile_once(stack: Stack) -> None:
    x = torch.randn(1, 5, 16)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        _compiled(stack)(x)
        _compiled(stack)(x)
    assert len(CompiledGraph.of(stack)) == 1


def test_graph_breaks_make_several_sections(stack: Stack) -> None:
    def broken(x: Tensor) -> Tensor:
        x = stack(x)
        torch._dynamo.graph_break()
        return stack(x) + 1

    compiled, x = _compiled(broken), torch.randn(1, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), broken(x))


@pytest.mark.parametrize(
    ("dtype", "context"),
    [
        (torch.bfloat16, torch.inference_mode),
        pytest.param(torch.bfloat16, torch.no_grad, marks=pytest.mark.slow),
        pytest.param(torch.float64, torch.inference_mode, marks=pytest.mark.slow),
        (torch.float64, torch.no_grad),
    ],
)
def test_modes_and_dtypes(stack: Stack, dtype: torch.dtype, context: Any) -> None:
    module = stack.to(dtype)
    x = torch.randn(1, 5, 16, dtype=dtype)
    with context():
        torch.testing.assert_close(_compiled(module)(x), module(x), rtol=2e-2, atol=2e-2)


def test_autocast(stack: Stack) -> None:
    compiled, x = _compiled(stack), torch.randn(1, 5, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = stack(x)
        got = compiled(x)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_an_unknown_option_names_the_nearest(stack: Stack) -> None:
    with pytest.raises(Exception, match="did you mean 'preset'") as caught, torch.no_grad():
        torch.compile(stack, backend="lightint", options={"presett": "exact"})(torch.randn(1, 5, 16))
    assert isinstance(
        caught.value.__cause__ or getattr(caught.value, "inner_exception", None), (OptionError, type(None))
    )


def test_require_raises_when_nothing_matches() -> None:
    with pytest.raises(Exception, match="required pass canonicalize-attention") as caught, torch.no_grad():
        _compiled(nn.Linear(4, 4), require=["canonicalize-attention"])(torch.randn(2, 4))
    inner = getattr(caught.value, "inner_exception", caught.value)
    assert isinstance(inner, (PassError, LightintError))


def test_a_report_before_the_first_call_says_so(stack: Stack) -> None:
    with pytest.raises(StateError, match="no compiled graph"):
        report(_compiled(Stack()))


def test_drivers_refuse_pickling_and_copy_without_state(stack: Stack) -> None:
    compiled = _compiled(stack)
    with torch.no_grad():
        compiled(torch.randn(1, 5, 16))
    driver = CompiledGraph.of(compiled)[0].driver
    assert driver is not None
    with pytest.raises(StateError, match="cannot be pickled"):
        pickle.dumps(driver)
    twin = copy.deepcopy(driver)
    assert twin.leaves == driver.leaves
    assert all(twin.memos[name] is not driver.memos[name] for name in driver.memos)
    reset(compiled)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.layers(x), -1)


def test_off_is_inductor_bit_for_bit() -> None:
    torch.manual_seed(0)
    module, x = Mlp().eval(), torch.randn(3, 8)
    with torch.no_grad():
        expected = torch.compile(module, backend="inductor")(x)
        torch._dynamo.reset()
        got = torch.compile(module, backend="lightint", options={"preset": "off"})(x)
    assert torch.equal(got, expected)


_CHILD = """
import sys, torch
sys.path.insert(0, {folder!r})
import torch._inductor.config
from test_backend import Stack
from lightint_compile.compiled import CompiledGraph, report
torch.manual_seed(0)
module = Stack().eval()
compiled = torch.compile(module, backend="lightint")
x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
torch._dynamo.mark_dynamic(x, 1)
with torch.no_grad():
    error = (compiled(x) - module(x)).abs().max().item()
    longer = torch.randn(2, 9, 16)
    error = max(error, (compiled(longer) - module(longer)).abs().max().item())
(graph,) = CompiledGraph.of(compiled)
print(graph.driver.compilations, graph.section.measurements["warm start"], error < 1e-5, len(graph.section.remarks) > 0)
"""


@pytest.mark.slow  # by default test_second_process.py and test_shipped_programs.py start a second process
def test_a_second_process_starts_warm_with_its_remarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    script = _CHILD.format(folder=str(Path(__file__).parent))
    lines = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    cold, warm = lines
    assert int(cold[0]) > 0
    assert cold[1:] == ["0.0", "True", "True"]
    assert warm == ["0", "1.0", "True", "True"]


@torch.no_grad()
def test_the_graphs_of_a_module_that_is_gone_are_nobody_else_s() -> None:
    """A new parameter may get the address of an old one, while Dynamo still holds what was compiled for that."""
    torch._dynamo.reset()
    module, other = nn.Linear(3, 3), nn.Linear(3, 3)
    compiled = torch.compile(module, backend="lightint", options={"delegate": "eager"})
    compiled(torch.randn(1, 3))
    (graph,) = CompiledGraph.of(compiled)
    assert graph.serves(module) and not graph.serves(other)
    graph._parameters.add(id(other.weight))  # so it is where an address is used again
    del module, compiled
    gc.collect()
    assert not graph.serves(other)
