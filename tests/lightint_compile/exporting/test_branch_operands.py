"""Branches of AOTInductor packages read their operands in the order of axes that these were captured with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import lightint_compile
from lightint_compile.exporting.branch_operands import keep_strides
from lightint_compile.exporting.check import relative_difference


class Turned(torch.nn.Module):
    """A branch over a matrix that was turned and then copied, and one over rows that are one row."""

    def forward(self, x: Tensor, upper: Tensor) -> Tensor:
        turned = (x.mT * 2).clone(memory_format=torch.contiguous_format)
        repeated = (x[:, :1] * 3).expand(x.shape)

        def cosine(a: Tensor, b: Tensor) -> tuple[Tensor]:
            return (a.cos() + b.transpose(0, 1),)

        def sine(a: Tensor, b: Tensor) -> tuple[Tensor]:
            return (a.sin() + b.transpose(0, 1),)

        return torch.cond(upper, cosine, sine, (turned, repeated))[0]


def calls(*rows: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 6, generator=generator), torch.tensor(n % 2 == 0)) for n in rows]


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_operand_is_told_its_strides_and_results_stay(dynamic: bool) -> None:
    shapes = ({0: torch.export.Dim.DYNAMIC}, None) if dynamic else None
    program = torch.export.export(Turned(), calls(4)[0], dynamic_shapes=shapes, strict=False)
    assert keep_strides(program.graph_module)
    (branch,) = program.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
    kept = [node for node in branch.args[3] if getattr(node, "op", "") == "call_function" and "val" in node.meta]
    tensors = [node.meta["val"] for node in kept if isinstance(node.meta["val"], Tensor)]
    assert len(tensors) == 2 and all(value.is_contiguous() for value in tensors)
    for args in calls(4, 8) if dynamic else calls(4):
        torch.testing.assert_close(program.module()(*args), Turned()(*args))


def test_a_program_without_branches_stays() -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.randn(1, 2),))
    before = str(program.graph)
    assert not keep_strides(program.graph_module) and str(program.graph) == before


@pytest.mark.slow
def test_a_package_with_branches_computes_what_the_module_does(tmp_path: Path) -> None:
    first, *others = calls(4, 5, 8)
    written = lightint_compile.export(
        Turned(), first, tmp_path / "m.aoti.pt2", dynamic={"x": 0}, checks=[(args, {}) for args in others]
    )
    assert written.difference < 1e-6 and len(written.checks) == 3


class Minimal(torch.nn.Module):
    """What the page on export shows."""

    def forward(self, x: Tensor, upper: Tensor) -> Tensor:
        turned = (x.mT * 2).clone(memory_format=torch.contiguous_format)
        return torch.cond(upper, lambda y: (y.cos(),), lambda y: (y.sin(),), (turned,))[0]


@pytest.mark.slow
def test_the_minimal_case_is_still_wrong_without_it(tmp_path: Path) -> None:
    args = (torch.randn(4, 4), torch.tensor(True))
    program = torch.export.export(Minimal(), args)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    assert relative_difference(torch._inductor.aoti_load_package(path)(*args), Minimal()(*args)) > 0.1
