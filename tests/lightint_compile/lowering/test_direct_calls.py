"""Operators that the driver calls as functions: the same results, and seen by whoever watches operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightint_compile.kernels import ops
from lightint_compile.lowering import direct_calls
from lightint_compile.lowering.direct_calls import DIRECT, SPELLED
from lightint_compile.lowering.driver import driver_source

GRIDS = ([2, 8, 8], [6, 8, 8], 0, [1, 4, 4], 0.4, None, 0, 1, None, None, 1, 0)


def heads() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 2, frames * 64, 32) for frames in (2, 6, 6)]


def window() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return torch.zeros(1, 12, 4), torch.randn(1, 3, 4), [1], [2], [5], []


CALLS = {"sparse_attention": (*heads(), *GRIDS), "write_window": window()}


class Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_a_function_gives_what_its_operator_gives(name: str) -> None:
    operator = getattr(torch.ops.lightint, name).default
    assert torch.equal(DIRECT[name](*CALLS[name]), operator(*CALLS[name]))


def test_a_mode_sees_the_operator() -> None:
    with Watching() as watching:
        DIRECT["sparse_attention"](*CALLS["sparse_attention"])
    assert watching.seen == ["lightint.sparse_attention.default"]


def test_without_one_the_function_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(ops.planning, "run", lambda query, *rest: found.append(len(rest)) or query)
    DIRECT["sparse_attention"](*CALLS["sparse_attention"])
    assert found == [4]


def test_fake_tensors_give_a_fake_one() -> None:
    mode = FakeTensorMode()
    fake = [mode.from_tensor(each) for each in heads()]
    result = DIRECT["sparse_attention"](*fake, *GRIDS)
    assert isinstance(result, FakeTensor) and result.shape == fake[0].shape


def test_arguments_by_name_are_the_operators() -> None:
    query, key, value = heads()
    names = ("query_grid", "key_grid", "prefix", "tile", "density", "coverage", "protect_frames", "neighbours", "scale")
    named = dict(zip(names, GRIDS, strict=False))
    result = DIRECT["sparse_attention"](query, key, value, **named)
    assert torch.equal(result, torch.ops.lightint.sparse_attention(query, key, value, **named))


def test_the_driver_names_functions_where_the_graph_names_operators() -> None:
    graph = torch.fx.Graph()
    cache, value = graph.placeholder("cache"), graph.placeholder("value")
    graph.output(graph.call_function(torch.ops.lightint.write_window.default, (cache, value, [1], [2], [5], [])))
    source = driver_source(torch.fx.GraphModule({}, graph))
    assert "= write_window(cache, value, [1], [2], [5], [])" in source
    assert all(spelled not in source for spelled in SPELLED)
    assert direct_calls.DIRECT.keys() == {spelled.split(".")[3] for spelled in SPELLED}
