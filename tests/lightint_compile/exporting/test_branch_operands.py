"""Branches of AOTInductor packages read their operands with the strides that these were captured with."""

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


class Transposed(torch.nn.Module):
    """What the page on export shows first: Inductor chooses another order of axes."""

    def forward(self, x: Tensor, upper: Tensor) -> Tensor:
        turned = (x.mT * 2).clone(memory_format=torch.contiguous_format)
        return torch.cond(upper, lambda y: (y.cos(),), lambda y: (y.sin(),), (turned,))[0]


class Joined(torch.nn.Module):
    """What it shows second: the order of axes stays, and the operand lies inside of a concatenation."""

    def forward(self, x: Tensor, upper: Tensor) -> Tensor:
        part = x * 2
        joined = torch.cat([part, x], -1)
        return torch.cond(upper & (joined.sum() < 9), lambda y: (y.cos(),), lambda y: (y.sin(),), (part,))[0]


class Strided(torch.nn.Module):
    """Every second number of a vector has no memory of its own."""

    def forward(self, x: Tensor, upper: Tensor) -> Tensor:
        return torch.cond(upper, lambda y: (y.cos(),), lambda y: (y.sin(),), ((x.flatten() * 2)[::2],))[0]


def difference(module: torch.nn.Module, path: Path, kept: bool) -> float:
    """Of a package compiled by AOTInductor itself, with strides kept or as it is, from the module."""
    (args,) = calls(4)
    program = torch.export.export(module, args)
    assert not kept or keep_strides(program.graph_module)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return relative_difference(torch._inductor.aoti_load_package(package)(*args), module(*args))


@pytest.mark.slow
@pytest.mark.parametrize("module", [Transposed(), Joined(), Strided()], ids=lambda module: type(module).__name__)
def test_a_package_is_right_with_strides_kept(module: torch.nn.Module, tmp_path: Path) -> None:
    assert difference(module, tmp_path / "m.pt2", kept=True) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("module", [Transposed(), Joined()], ids=lambda module: type(module).__name__)
def test_the_minimal_cases_are_still_wrong_without(module: torch.nn.Module, tmp_path: Path) -> None:
    assert difference(module, tmp_path / "m.pt2", kept=False) > 0.1


def test_the_operator_copies_into_memory_of_the_strides_asked_for() -> None:
    given = torch.randn(3, 4)
    copy = torch.ops.lightint_export.with_strides(given, [1, 3])
    assert copy.stride() == (1, 3) and copy.data_ptr() != given.data_ptr()
    torch.testing.assert_close(copy, given)
    torch.library.opcheck(torch.ops.lightint_export.with_strides.default, (given, [1, 3]))
