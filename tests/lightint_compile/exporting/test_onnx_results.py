"""Results and dtypes of an ONNX model: each result has an output of its own, by the name of its place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from quick_variants import mostly_slow
from torch import Tensor, nn

import lightint_compile
from lightint_compile.errors import ExportError
from lightint_compile.exporting.check import relative_difference
from lightint_compile.exporting.writing import Exported

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

Form = Callable[[Tensor, Tensor, Tensor], Any]


class Returns(nn.Module):
    """Returns what ``form`` makes of the result of a layer, its input and its weight."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.lin = form, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return self.form(self.lin(x), x, self.lin.weight)


FORMS: dict[str, tuple[Form, list[str], list[str]]] = {
    "one": (lambda y, x, w: y, ["result"], []),
    "a number alone": (lambda y, x, w: 7, ["result"], []),
    "a number last": (lambda y, x, w: (y, 7), ["0", "1"], []),
    "numbers first": (lambda y, x, w: (7, True, 0.1, y), ["0", "1", "2", "3"], []),
    "a size": (lambda y, x, w: {"y": y, "rows": x.shape[0]}, ["y", "rows"], []),
    "None last": (lambda y, x, w: (y, None), ["0"], ["1"]),
    "None and a text first": (lambda y, x, w: [None, "text", y], ["2"], ["0", "1"]),
    "nested": (lambda y, x, w: {"a": (y, [None, 3]), "b": {"c": x}}, ["a.0", "a.1.1", "b.c"], ["a.1.0"]),
    "twice": (lambda y, x, w: {"sample": y, "x0": y}, ["sample", "x0"], []),
    "thrice": (lambda y, x, w: (y, y, y), ["0", "1", "2"], []),
    "the input": (lambda y, x, w: (x, y, x), ["0", "1", "2"], []),
    "views of the input": (lambda y, x, w: (x.view(8, 2), x[:], x.detach()), ["0", "1", "2"], []),
    "a weight": (lambda y, x, w: (w, y), ["0", "1"], []),
    "the name of a weight": (lambda y, x, w: {"lin.weight": y, "w": w}, ["lin.weight", "w"], []),
    "names of an input": (lambda y, x, w: {"x": x, "x_": y}, ["x_", "x__"], []),
    "names of values inside": (lambda y, x, w: {"mul": y + 1, "add": y * 2, "linear": x}, ["mul", "add", "linear"], []),
    "places with one name": (lambda y, x, w: {"a.0": y, "a": [x]}, ["a.0", "a.0_"], []),
}


def outputs_of(written: Exported, x: Tensor) -> dict[str, Tensor]:
    """Every output of a model, asked for by its name alone."""
    session = onnxruntime.InferenceSession(written.path)
    names = [each.name for each in session.get_outputs()]
    return {name: torch.from_numpy(np.asarray(session.run([name], {"x": x.numpy()})[0])) for name in names}


#: A number, a place left out, places in places, one tensor twice, a view, a weight, and a name that is taken.
QUICK = {
    "numbers first",
    "None and a text first",
    "nested",
    "views of the input",
    "the name of a weight",
    "places with one name",
}


@pytest.mark.parametrize("name", mostly_slow(FORMS, quick=QUICK))
def test_each_result_has_an_output_with_the_name_of_its_place(name: str, tmp_path: Path) -> None:
    form, names, left_out = FORMS[name]
    module, x = Returns(form).eval().requires_grad_(False), torch.randn(2, 8)
    written = lightint_compile.export(module, (x,), tmp_path / "m.onnx")
    found = outputs_of(written, x)
    assert list(found) == names and list(written.left_out) == left_out
    assert not left_out or f"no outputs: {', '.join(left_out)}" in str(written)
    leaves = pytree.tree_leaves(module(x))
    expected = [torch.as_tensor(each) for each in leaves if each is not None and not isinstance(each, str)]
    torch.testing.assert_close(list(found.values()), expected)


def test_numbers_of_symbolic_sizes_and_constants_stand_side_by_side(tmp_path: Path) -> None:
    module, x = Returns(lambda y, x, w: (None, x.shape[0], 7, y, x.shape[0] / 2)).eval(), torch.randn(4, 8)
    written = lightint_compile.export(module, (x,), tmp_path / "m.onnx", dynamic={"x": 0})
    found = outputs_of(written, torch.randn(9, 8))
    assert list(found) == ["1", "2", "3", "4"] and [found[name].item() for name in "124"] == [9, 7, 4.5]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda y, x, w: None, "no result is a tensor or a number"),
        (lambda y, x, w: (None, "text"), "no result is a tensor or a number"),
        (lambda y, x, w: (y, 2**70), "has no tensor form"),
    ],
)
def test_results_without_a_form_are_one_error_and_no_file(form: Form, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        lightint_compile.export(Returns(form).eval(), (torch.randn(2, 8),), tmp_path / "m.onnx")
    assert caught.value.fix and not list(tmp_path.iterdir())


class Converts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float() * 2
        return x, wide, wide.to(x.dtype)


SMALL = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]
SHAPES = {"matrix": torch.randn(2, 8), "transposed": torch.randn(3, 5).mT, "scalar": torch.tensor(1.5)}


NARROW = list(itertools.product([torch.bfloat16, torch.float16, *SMALL], SHAPES))
#: Each shape, each width, and an eighth of each kind.
SHOWN = {
    (torch.bfloat16, "matrix"),
    (torch.float16, "transposed"),
    (torch.float8_e4m3fn, "scalar"),
    (torch.float8_e5m2fnuz, "matrix"),
}


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        pytest.param(*each, marks=() if each in SHOWN else pytest.mark.slow, id=f"{each[0]}-{each[1]}")
        for each in NARROW
    ],
)
def test_narrow_dtypes_are_given_and_returned(dtype: torch.dtype, shape: str, tmp_path: Path) -> None:
    written = lightint_compile.export(Converts(), (SHAPES[shape].to(dtype),), tmp_path / "m.onnx")
    assert written.difference == 0 and written.path.exists()


@pytest.mark.parametrize(
    ("module", "x", "said"),
    [
        (nn.Linear(8, 8).bfloat16().eval(), torch.randn(2, 8, dtype=torch.bfloat16), "does not run"),
        (Converts(), torch.ones(2, 8).to(torch.float8_e8m0fnu), "no ONNX form"),
    ],
)
def test_a_dtype_that_cannot_be_run_is_one_error_and_no_file(
    module: nn.Module, x: Tensor, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        lightint_compile.export(module, (x,), tmp_path / "m.onnx")
    assert caught.value.why and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, *SMALL], ids=str)
def test_differences_of_narrow_dtypes_are_told(dtype: torch.dtype) -> None:
    one, other = torch.tensor([1.0, 2.0]).to(dtype), torch.tensor([1.0, 3.0]).to(dtype)
    assert relative_difference(one, other) == pytest.approx(0.1**0.5)
    assert relative_difference(one, torch.tensor([1.0, torch.nan]).to(dtype)) == torch.inf
