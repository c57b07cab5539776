"""A call of an accelerated module that Dynamo fails in: whatever ran of it runs once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

import lightint_compile
from lightint_compile.acceleration.call_progress import is_one_frame

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.library.custom_op("tests_call_progress::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    raise RuntimeError("nobody said what it gives")


class Window(nn.Module):
    """A rolling window of tokens that the module keeps, and a count that Python keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.zeros(1, 6, 4))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.window[:, : -x.shape[1]] = self.window[:, x.shape[1] :].clone()
        self.window[:, -x.shape[1] :] = x
        return self.window.cumsum(1)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return doubled(x)


class InOne(nn.Module):
    """Window and failure in one function: Dynamo fails before anything has run."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.last = Window(), Failing()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.kept(x))


class Decorated(InOne):
    """The same under decorators of torch's."""

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.kept(x))


class Broken(InOne):
    """The same with a break between them."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.kept(x)
        torch._dynamo.graph_break()
        return self.last(y)


class Parts(nn.Sequential):
    """The same as a container of torch's."""

    def __init__(self) -> None:
        super().__init__(Window(), Failing())


class Breaking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return doubled(x)


class BrokenParts(nn.Sequential):
    """A container whose second part breaks."""

    def __init__(self) -> None:
        super().__init__(Window(), Breaking())


class Hooked(nn.Module):
    """The window is kept by a hook in front of the call."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = Window()
        self.register_forward_pre_hook(lambda module, given: (self.kept(*given),))

    def forward(self, x: Tensor) -> Tensor:
        return doubled(x)


def kept_by(model: nn.Module) -> tuple[Tensor, int]:
    (window,) = (part for part in model.modules() if isinstance(part, Window))
    return window.window.clone(), window.calls


def steps() -> Iterator[Tensor]:
    return (torch.full((1, 2, 4), float(number)) for number in range(1, 4))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [Broken, BrokenParts, Hooked])
def test_what_ran_in_front_of_a_failure_is_not_run_again(kind: Callable[[], nn.Module]) -> None:
    model, plain = kind(), kind()
    with torch.no_grad(), lightint_compile.accelerate(model, delegate="eager"):
        for x in steps():
            plain(x)
            with pytest.raises(TorchDynamoException) as caught:
                model(x)
            assert "did not make it again" in caught.value.__notes__[0]
            for ours, theirs in zip(kept_by(model), kept_by(plain), strict=True):
                assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    expected = plain(torch.ones(1, 2, 4))
    assert torch.equal(model(torch.ones(1, 2, 4)), expected), "undone, it runs as ever"


@pytest.mark.parametrize("kind", [InOne, Decorated])
def test_where_nothing_has_run_the_call_is_made_eagerly_and_that_is_said(
    kind: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model, plain = kind(), kind()
    with torch.no_grad(), lightint_compile.accelerate(model, delegate="eager") as handle:
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            model()
        with caplog.at_level(logging.WARNING, "lightint_compile"):
            for x in steps():
                assert torch.equal(model(x), plain(x))
        assert len([each for each in caplog.records if each.name.startswith("lightint_compile")]) == 1
        (section,) = handle.report().sections
        assert section.untouched.startswith("Dynamo cannot trace it, and it runs eagerly until undo(): TorchRuntime")
    assert torch.equal(kept_by(model)[0], kept_by(plain)[0]) and kept_by(model)[1] == 3
    torch._dynamo.reset()
    strict = kind()
    with (
        torch.no_grad(),
        lightint_compile.accelerate(strict, delegate="eager", strict=True),
        pytest.raises(TorchDynamoException),
    ):
        strict(torch.ones(1, 2, 4))
    assert kept_by(strict)[1] == 0


def test_a_container_of_torchs_own_runs_its_parts_once() -> None:
    """Dynamo goes through it in later versions; in torch 2.11 it calls its parts one after another."""
    model, plain = Parts(), Parts()
    with torch.no_grad(), lightint_compile.accelerate(model, delegate="eager"):
        for x in steps():
            expected = plain(x)
            with contextlib.suppress(TorchDynamoException):
                assert torch.equal(model(x), expected)
            assert torch.equal(kept_by(model)[0], kept_by(plain)[0])


class OwnError(nn.Module):
    """The caller's own fault, behind a break; what is in front of it has counted by then."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        torch._dynamo.graph_break()
        return self.linear(x)


def test_an_error_of_the_callers_own_is_raised_once_and_later_calls_are_compiled() -> None:
    model = OwnError()
    with torch.no_grad(), lightint_compile.accelerate(model, delegate="eager") as handle:
        for count, width in enumerate((4, 3, 4, 3, 4), 1):
            x = torch.ones(2, width)
            if width == 3:
                with pytest.raises(RuntimeError):
                    model(x)
            else:
                torch.testing.assert_close(model(x), nn.functional.linear(x, model.linear.weight, model.linear.bias))
            assert model.count == count
        assert "Dynamo cannot trace it" not in str(handle.report())


@torch.compiler.disable
def attend(query: Tensor, key: Tensor) -> Tensor:
    if key.shape[1] > 9:
        raise ValueError("more keys than there is room for")
    return nn.functional.scaled_dot_product_attention(query, key, key)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.out(attend(self.query(x), context))


@pytest.mark.parametrize(
    ("first", "size", "kind"),
    [
        (True, (1, 5, 7), RuntimeError),
        (False, (1, 12, 8), ValueError),
        pytest.param(True, (1, 12, 8), ValueError, marks=pytest.mark.slow),
        pytest.param(False, (1, 5, 7), RuntimeError, marks=pytest.mark.slow),
    ],
)
def test_an_error_of_the_callers_own_closes_no_function(
    size: tuple[int, ...], kind: type[Exception], first: bool
) -> None:
    model = Attending().eval()
    expected = model(torch.ones(1, 6, 8), torch.ones(1, 5, 8))
    with torch.no_grad(), lightint_compile.accelerate(model, delegate="eager") as handle:
        for bad in (True, False, True, False) if first else (False, True, False, True):
            if bad:
                with pytest.raises(kind):
                    model(torch.ones(1, 6, 8), torch.ones(size))
            else:
                torch.testing.assert_close(model(torch.ones(1, 6, 8), torch.ones(1, 5, 8)), expected)
        assert len(handle.report().sections) == 1, "good calls are one graph"
        said = [each.message for each in handle.report().sections[0].remarks if each.pass_name == "accelerate"]
        assert said == ["attend is traced: its torch.compiler.disable is off until undo()"]


def test_what_dynamo_sees_as_one_function() -> None:
    assert is_one_frame(InOne()) and not is_one_frame(Hooked())
    model = InOne()
    model.register_forward_hook(lambda *given: None).remove()
    assert is_one_frame(model)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *given: None)
    try:
        assert not is_one_frame(model)
    finally:
        handle.remove()
