"""A program that was written down is made again as it was, whatever was done to it."""

from __future__ import annotations

import pytest
import torch

from lightint_compile import capture
from lightint_compile.passes.ir.saved import Interface, Saved
from lightint_compile.passes.ir.verify import verify
from lightint_compile.passes.pipeline import Pipeline


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(3)])
        self.register_buffer("table", torch.arange(8.0))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x).softmax(-1) * self.table
        return x, x.mean(), torch.tensor([1.0, 2.0])


def _erased(program) -> None:
    program.graph.output_node().args = ((),)
    for node in reversed(list(program.graph.nodes)):
        if node.op not in ("placeholder", "output"):
            program.graph.erase_node(node)


def _outlined(program) -> None:
    assert Pipeline.parse("outline-regions").run(program, strict=True).modified


def _renamed(program) -> None:
    for node in program.graph.nodes:
        node.meta.clear()
        node.name = f"other_{node.name}"


def _attributes_gone(program) -> None:
    program.graph_module.__dict__["_buffers"].clear()
    program.graph_module.__dict__["_modules"].clear()


CHANGES = {"erased": _erased, "outlined": _outlined, "renamed": _renamed, "attributes gone": _attributes_gone}


@pytest.mark.parametrize("outlined", [False, True], ids=["whole", "outlined"])
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_whatever_is_done_to_it(change, outlined) -> None:
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(2, 8)
    program = capture.trace(model, (x,), dynamic={"x": 0})
    if outlined:
        _outlined(program)
    before, code, inputs = Saved(program), str(program.graph), program.inputs
    expected = program.graph_module(*[t for t in _arguments(program, model, x)])
    metas = [{key: id(value) for key, value in node.meta.items()} for node in program.graph.nodes]
    if not (outlined and change == "outlined"):
        CHANGES[change](program)
    before.put_back(program)
    assert str(program.graph) == code and program.inputs == inputs
    assert [{key: id(value) for key, value in node.meta.items()} for node in program.graph.nodes] == metas
    assert Interface.of(program.graph) == before.interface
    verify(program, before)
    torch.testing.assert_close(program.graph_module(*_arguments(program, model, x)), expected)


def _arguments(program, model, x):
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [weights.get(entry.path, x.shape[0] if entry.kind == "symbol" else x) for entry in program.inputs]
