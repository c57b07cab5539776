"""Export of calls with plain values, of results that are no numbers, of output classes; and why an export fails."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import zoo
from export_here import run_here
from torch import Tensor, nn

import lightint_compile
from lightint_compile.errors import ExportError, InputError
from lightint_compile.exporting.check import relative_difference

EXACT = {"preset": "exact"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check in this process; that it is made in a fresh one is shown once, below and in ``test_export``."""
    monkeypatch.setattr("lightint_compile.exporting.writing.run_fresh", run_here)


class Plain(nn.Module):
    """Attention scaled by everything that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)

    def forward(
        self, x: Tensor, sigma: float = 1.0, flag: bool = True, n: int = 3, name: str = "a", none: int | None = None
    ) -> Tensor:
        y = nn.functional.scaled_dot_product_attention(self.q(x), x, x) * sigma * n + len(name)
        return (y if flag else -y) + (0 if none is None else none)


X = torch.randn(1, 6, 8)
CHOICES: dict[str, list[Any]] = {
    "sigma": [0.7, -1.5, 0.0, 2.0, math.inf],
    "flag": [True, False],
    "n": [0, 1, 4],
    "name": ["", "b", "longer"],
    "none": [None, 5],
}


def drawn(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call with some of the values by position and some by name."""
    draw = random.Random(seed)
    values = {name: draw.choice(choices) for name, choices in CHOICES.items()}
    by_position = draw.randint(0, len(values))
    args = (X, *list(values.values())[:by_position])
    named = {name: values[name] for name in list(values)[by_position:] if draw.random() < 0.7}
    return args, dict(draw.sample(list(named.items()), len(named)))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(12))
def test_plain_values_are_part_of_the_program(seed: int, tmp_path: Path) -> None:
    args, kwargs = drawn(seed)
    module = Plain().eval()
    lightint_compile.export(module, args, tmp_path / "m.pt2", kwargs=kwargs)
    loaded = lightint_compile.load(tmp_path / "m.pt2")
    other = torch.randn_like(X)
    with torch.no_grad():
        expected = module(other, *args[1:], **kwargs)
        torch.testing.assert_close(loaded(other, *args[1:], **kwargs), expected, equal_nan=True)
        torch.testing.assert_close(loaded(other, *args[1:], **dict(reversed(kwargs.items()))), expected, equal_nan=True)
    for index in range(1, len(args)):
        changed = (*args[:index], changed_from(args[index]), *args[index + 1 :])
        with pytest.raises(InputError, match="exported for"):
            loaded(*changed, **kwargs)
    for name, value in kwargs.items():
        with pytest.raises(InputError, match=f"exported for {name}="):
            loaded(*args, **{**kwargs, name: changed_from(value)})
    for form in ((args[:-1], kwargs), (args, {**kwargs, "more": 1})):
        with pytest.raises(InputError, match="another form"):
            loaded(*form[0], **form[1])


def changed_from(value: Any) -> Any:
    """Another value; where a truth value compares as equal, that one."""
    if isinstance(value, bool):
        return int(value)
    return {0: False, 1: True}.get(value, "other") if isinstance(value, int) else 0.125


class Returns(nn.Module):
    """Returns what ``form`` makes of twice its input."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(x * 2)


@pytest.mark.usefixtures("quick")
def test_numbers_and_none_among_results_keep_their_places(tmp_path: Path) -> None:
    module = Returns(lambda y: (None, {"n": 3, "y": y, "is": True}, [2.5, None]))
    lightint_compile.export(module, (X,), tmp_path / "m.pt2")
    torch.testing.assert_close(lightint_compile.load(tmp_path / "m.pt2")(X + 1), module(X + 1))


@pytest.mark.parametrize(
    ("form", "suffix", "where", "said"),
    [
        (lambda y: (y, {"said": "text"}), ".pt2", "results: 1.said", "a result is a text"),
        (lambda y: (y, ["text"]), ".aoti.pt2", "results: 1.0", "a result is a text"),
        (lambda y: "text", ".pt2", "results: result", "a result is a text"),
        (lambda y: {}, ".pt2", "results", "no result"),
    ],
)
def test_results_that_no_archive_has_are_one_error_and_no_file(
    form: Callable[[Tensor], Any], suffix: str, where: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        lightint_compile.export(Returns(form), (X,), tmp_path / f"m{suffix}")
    assert caught.value.where == where and caught.value.why and caught.value.fix and not list(tmp_path.iterdir())


class Odd(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x > 0, x, math.nan), x / (x > 0)


@pytest.mark.usefixtures("quick")
def test_values_that_are_no_numbers_in_eager_too_are_accepted(tmp_path: Path) -> None:
    x = torch.tensor([1.0, -1.0, -0.0, 3.0])
    written = lightint_compile.export(Odd(), (x,), tmp_path / "m.pt2")
    assert written.difference == 0.0
    odd = torch.tensor([1.0, math.nan, math.inf])
    assert relative_difference(odd * 1, odd) == 0.0
    for wrong in (
        [math.nan, 1.0, math.inf],
        [1.0, math.nan, -math.inf],
        [1.0, 2.0, math.inf],
        [1.0, math.nan, math.nan],
    ):
        assert relative_difference(torch.tensor(wrong), odd) == math.inf
    assert 0 < relative_difference(torch.tensor([1.1, math.nan, math.inf]), odd) < 0.2


class Training(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.3)


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("inner", [nn.Dropout(0.5), Attends()], ids=lambda m: type(m).__name__)
def test_dropout_in_train_mode_is_named_as_the_reason(inner: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="dropout in train mode") as caught:
        lightint_compile.export(Training(inner), (X,), tmp_path / "m.pt2")
    assert "module.eval()" in caught.value.fix and ":" in caught.value.where
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_dropout_of_nothing_is_written(tmp_path: Path) -> None:
    assert lightint_compile.export(Training(nn.Dropout(0.0)), (X,), tmp_path / "m.pt2").difference == 0.0


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


@pytest.mark.usefixtures("quick")
def test_a_module_that_writes_is_told_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be rewritten") as caught:
        lightint_compile.export(Counting().eval(), (X,), tmp_path / "m.pt2")
    assert "writes to its inputs" in caught.value.why and caught.value.fix.startswith("return what it writes")


@pytest.mark.usefixtures("quick")
def test_what_train_mode_writes_is_named_and_equal_random_numbers_are_no_difference(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be rewritten") as caught:
        lightint_compile.export(nn.BatchNorm1d(6), (X,), tmp_path / "m.pt2")
    assert "writes to its inputs" in caught.value.why and "module.eval()" in caught.value.fix
    state = torch.get_rng_state()
    assert lightint_compile.export(Draws(), (X,), tmp_path / "m.pt2").difference == 0.0
    assert torch.equal(torch.get_rng_state(), state)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("layer 7")


class BranchesOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_no_reason_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"torch\.export cannot capture") as caught:
        lightint_compile.export(Fails(), (X,), tmp_path / "m.pt2")
    assert "KeyError: 'layer 7'" in caught.value.why and isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ExportError) as caught:
        lightint_compile.export(BranchesOnData(), (X,), tmp_path / "m.pt2")
    assert "data-dependent" in caught.value.why
    monkeypatch.setattr("torch.export.save", refuse)
    with pytest.raises(ExportError, match="the program cannot be written") as caught:
        lightint_compile.export(nn.Identity(), (X,), tmp_path / "m.pt2")
    assert "no space left" in caught.value.why
    monkeypatch.undo()
    from lightint_compile.exporting import check

    (tmp_path / "torn.pt2").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="does not run in a fresh process") as caught:
        check.run_fresh(tmp_path / "torn.pt2", ((X,), {}), tmp_path)
    assert "the archive cannot be read" in caught.value.why and "fix:" not in caught.value.why


def refuse(*_: Any, **__: Any) -> None:
    raise OSError("no space left")


def test_a_model_of_diffusers_keeps_its_output_class(tmp_path: Path) -> None:
    """Checked in a fresh process, which does not know the class."""
    module, kwargs = zoo.build("wan")
    del kwargs["return_dict"]
    lightint_compile.export(module, (), tmp_path / "m.pt2", kwargs=kwargs)
    loaded = lightint_compile.load(tmp_path / "m.pt2")
    with torch.no_grad():
        found, expected = loaded(**kwargs), module(**kwargs)
        assert type(found) is type(expected)
        torch.testing.assert_close(found.sample, expected.sample)
        plain = torch.export.load(tmp_path / "m.pt2").module()(**kwargs)
    assert type(plain) is dict and list(plain) == ["sample"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", [name for name in zoo.names() if name != "wan"])
def test_every_model_of_the_zoo_does(name: str, tmp_path: Path) -> None:
    module, kwargs = zoo.build(name)
    kwargs.pop("return_dict", None)
    lightint_compile.export(module, (), tmp_path / "m.pt2", kwargs=kwargs)
    with torch.no_grad():
        found, expected = lightint_compile.load(tmp_path / "m.pt2")(**kwargs), module(**kwargs)
    assert type(found) is type(expected)


class Pair(NamedTuple):
    first: Tensor
    second: list[Tensor]


class Paired(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"pair": Pair(x + 1, [x * 2, x.sum()]), "none": None, "size": 3}


@pytest.mark.usefixtures("quick")
def test_nested_results_of_other_classes_come_back_in_order(tmp_path: Path) -> None:
    lightint_compile.export(Paired(), (X,), tmp_path / "m.pt2")
    found = lightint_compile.load(tmp_path / "m.pt2")(X)
    first, second = found["pair"]
    torch.testing.assert_close(first, X + 1)
    torch.testing.assert_close(second, [X * 2, X.sum()])
    assert found["none"] is None and found["size"] == 3
