"""``accelerate``: functions behind ``torch.compiler.disable`` are traced, and one line leaves everything as it was."""

from __future__ import annotations

import copy
import logging
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import disabled_models as models
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.acceleration.opened import _states
from lightint_compile.capture.disabled import disabled_in
from lightint_compile.errors import InputError, LightintError, OptionError, StateError
from lightint_compile.torch_marks import is_disabled

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fresh(fresh_dynamo: None) -> Iterator[None]:
    yield
    assert not _states, "a test left functions open"


def graphs_of(call: Callable[[], Any]) -> tuple[Any, int, int]:
    """The result of a call, the graphs that were made for it, and the breaks between them."""
    counters.clear()
    result = call()
    return result, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def state_of(function: Any) -> tuple[Any, ...]:
    return function, function.__code__, dict(vars(function))


QUICK = (models.Wrapped, models.Shallow, models.Static, models.Looked, models.Inner, models.Patched)
"""Spellings that no other test of a whole model has, and a wrapper that copies the marks."""


@pytest.mark.parametrize(
    "spellings", [pytest.param(QUICK, id="some"), pytest.param(models.SPELLINGS, id="all", marks=pytest.mark.slow)]
)
def test_every_spelling_is_traced_as_one_graph_and_undone(spellings: tuple[type[models.Block], ...]) -> None:
    model, given = models.Video(*spellings), models.inputs()
    expected, as_is, _ = graphs_of(lambda: torch.compile(model, backend="eager")(*given))
    assert as_is > 3
    torch._dynamo.reset()
    found = [each.function for each in disabled_in(model)]
    before = [state_of(function) for function in found]
    assert len(found) == len(spellings) + 1  # a wrapper that copies the marks is one besides
    attributes, keys = dict(vars(model)), list(model.state_dict())
    with lightint_compile.accelerate(model, preset="exact", delegate="eager") as handle:
        result, graphs, breaks = graphs_of(lambda: model(*given))
        assert (graphs, breaks) == (1, 0)
        assert not any(is_disabled(function) for function in found) and list(model.state_dict()) == keys
        (section,) = handle.report().sections
        rules = [remark.rule for remark in section.remarks if remark.pass_name == "accelerate"]
        assert section.rewritten and set(rules) == {"opened"}
    torch.testing.assert_close(result, expected)
    assert [state_of(function) for function in found] == before and vars(model) == attributes
    result, graphs, _ = graphs_of(lambda: model(*given))
    assert graphs == 0 and torch.equal(result, expected)
    torch._dynamo.reset()
    _, graphs, _ = graphs_of(lambda: torch.compile(model, backend="eager")(*given))
    assert graphs == as_is


def test_a_function_that_does_not_trace_keeps_its_decorator_and_the_report_says_why() -> None:
    model, given = models.Video(models.Printing), models.inputs()
    expected, before = model(*given), state_of(models.printing)
    with lightint_compile.accelerate(model, delegate="eager") as handle:
        result, graphs, _ = graphs_of(lambda: model(*given))
        torch.testing.assert_close(result, expected)
        assert state_of(models.printing) == before and not is_disabled(models.shared)
        _, later, _ = graphs_of(lambda: model(*given))
        assert graphs and later == 0
        remarks = {r.rule: r for s in handle.report().sections for r in s.remarks if r.pass_name == "accelerate"}
        assert remarks["kept-disabled"].message.startswith("printing keeps its torch.compiler.disable: ")
        assert "data-dependent" in remarks["kept-disabled"].message
        assert remarks["opened"].message == "shared is traced: its torch.compiler.disable is off until undo()"
        assert "printing keeps its" in str(handle) and "disabled_models.py" in remarks["opened"].source


class Broken(nn.Module):
    """It breaks by itself in front of a function that does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.video = models.Video(models.Printing)

    def forward(self, latent: Tensor, vec: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.video(latent, vec) + 1


def test_a_function_behind_another_break_is_closed_after_the_call() -> None:
    model, given = Broken().eval(), models.inputs()
    expected = model(*given)
    with lightint_compile.accelerate(model, delegate="eager") as handle:
        torch.testing.assert_close(model(*given), expected)
        assert is_disabled(models.printing) and not is_disabled(models.shared)
        torch.testing.assert_close(model(*given), expected)
        _, later, _ = graphs_of(lambda: model(*given))
        assert later == 0 and "printing keeps its" in str(handle)


class ManyForms(nn.Module):
    """Every text is a variant of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.eager_calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor, text: str) -> Tensor:
        if not torch.compiler.is_compiling():
            self.eager_calls += 1
        return torch.tanh(self.linear(x)) + len(text)


@pytest.mark.parametrize("where", ["this thread", "another thread"])
@torch._dynamo.config.patch(recompile_limit=3)
def test_many_variants_are_compiled_in_whichever_thread_calls(where: str) -> None:
    torch._dynamo.reset()
    model, limit = ManyForms().eval().requires_grad_(False), torch._dynamo.config.recompile_limit
    handle = lightint_compile.accelerate(model, preset="exact", delegate="eager")

    def run() -> None:
        for length in range(limit + 3):
            model(torch.randn(2, 4), "x" * length)
        handle.undo()

    if where == "this thread":
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert model.eager_calls == 0 and not handle.is_active
    assert torch._dynamo.config.recompile_limit == limit
    torch._dynamo.reset()


def test_two_models_share_a_function_and_each_is_undone_by_itself() -> None:
    first, second, given = models.Video(models.Shared), models.Video(models.Shared), models.inputs()
    expected, before = first(*given), state_of(models.shared)
    limit = torch._dynamo.config.recompile_limit
    one = lightint_compile.accelerate(first, delegate="eager")
    two = lightint_compile.accelerate(second, delegate="eager")
    torch.testing.assert_close(first(*given), expected)
    one.undo()
    assert not is_disabled(models.shared)
    result, graphs, breaks = graphs_of(lambda: second(*given))
    torch.testing.assert_close(result, expected)
    assert graphs <= 1 and breaks == 0
    two.undo()
    assert torch._dynamo.config.recompile_limit == limit
    assert state_of(models.shared) == before


def test_a_size_that_changes_becomes_symbolic_by_itself() -> None:
    model = models.Video(models.OfModule)
    expected = [model(*models.inputs(frames)) for frames in (2, 3, 4, 5)]
    with lightint_compile.accelerate(model, delegate="eager"):
        results, graphs, _ = graphs_of(lambda: [model(*models.inputs(frames)) for frames in (2, 3, 4, 5)])
    assert graphs == 2
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted)


def test_a_module_is_a_part_of_a_model_that_is_compiled_around_it() -> None:
    model, given = models.Video(models.OfModule), models.inputs()
    expected = model(*given) * 2
    with lightint_compile.accelerate(model, delegate="eager"):
        outer = torch.compile(lambda *args: model(*args) * 2, backend="eager", fullgraph=True)
        torch.testing.assert_close(outer(*given), expected)


def test_copies_of_an_accelerated_module_are_plain() -> None:
    model, given = models.Video(models.OfModule), models.inputs()
    attributes = set(vars(model))
    with lightint_compile.accelerate(model, delegate="eager"):
        copied = copy.deepcopy(model)
        assert set(vars(copied)) == attributes
        _, graphs, _ = graphs_of(lambda: copied(*given))
        assert graphs == 0


def test_functions_of_libraries_keep_their_decorators(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("a_kernel_library")
    library.__file__ = f"{sysconfig.get_paths()['purelib']}/a_kernel_library/__init__.py"
    monkeypatch.setitem(sys.modules, library.__name__, library)

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return models.attention(q, k, v)

    kernel.__module__ = library.__name__
    monkeypatch.setattr(models, "disabled", torch.compiler.disable(kernel))
    model, given = models.Video(models.OfModule), models.inputs()
    expected = model(*given)
    with lightint_compile.accelerate(model, delegate="eager") as handle:
        torch.testing.assert_close(model(*given), expected)
        assert is_disabled(models.disabled)
        assert "kernel keeps its torch.compiler.disable: it is the code of a_kernel_library" in str(handle)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv3d(4, 3, 1)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.up(latent))


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)


class Pipeline:
    """A pipeline as scripts write them: two denoisers, one after the other, and a VAE."""

    unet: nn.Module

    def __init__(self) -> None:
        self.transformer, self.transformer_2 = models.Video(models.Wrapped), models.Video(models.Held)
        self.vae = Vae().eval().requires_grad_(False)

    def __call__(self, latent: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.transformer(latent, vec) + self.transformer_2(latent, vec)
        return tokens, self.vae.decode(latent)


def test_denoisers_and_decoder_of_a_pipeline_are_compiled_in_place() -> None:
    pipe, given = Pipeline(), models.inputs()
    pipe.unet = pipe.transformer  # a module under two names is one
    parts = {"transformer": pipe.transformer, "transformer_2": pipe.transformer_2, "vae": pipe.vae}
    expected = pipe(*given)
    before = {name: dict(vars(part)) for name, part in parts.items()}
    handle = lightint_compile.accelerate(pipe, preset="sparse", density=0.5, min_tokens=4096, delegate="eager")
    result, graphs, breaks = graphs_of(lambda: pipe(*given))
    torch.testing.assert_close(result, expected)
    assert (graphs, breaks) == (3, 0) and {name: getattr(pipe, name) for name in parts} == parts
    assert [section.options["preset"] for section in handle.report().sections] == ["sparse", "sparse", "exact"]
    assert handle.decisions() == []
    handle.undo()
    assert {name: dict(vars(part)) for name, part in parts.items()} == before
    assert graphs_of(lambda: pipe(*given))[1] == 0
    assert len(handle.report().sections) == 3 and str(handle) == "Pipeline: not accelerated any more"


def accelerated_twice() -> None:
    model = models.Video(models.OfModule)
    with lightint_compile.accelerate(model):
        lightint_compile.accelerate(model)


def undone_twice() -> None:
    handle = lightint_compile.accelerate(models.Video(models.OfModule))
    handle.undo()
    handle.undo()


def half_a_pipeline() -> None:
    pipe = Pipeline()
    pipe.vae.decoder.compile(backend="eager")
    try:
        lightint_compile.accelerate(pipe)
    finally:
        assert not any(is_disabled(each.function) is False for each in disabled_in(pipe.transformer))


BAD: dict[str, tuple[Callable[[], Any], type[LightintError], str]] = {
    "a function": (lambda: lightint_compile.accelerate(models.attention), InputError, "nothing to accelerate"),
    "a pipeline without a denoiser": (
        lambda: lightint_compile.accelerate(types.SimpleNamespace(vae=Vae())),
        InputError,
        "transformer",
    ),
    "a compiled module": (
        lambda: lightint_compile.accelerate(torch.compile(models.Video(models.OfModule))),
        StateError,
        "compiled already",
    ),
    "an accelerated module": (accelerated_twice, StateError, "accelerated already"),
    "a module of TorchScript": (
        lambda: lightint_compile.accelerate(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))),
        InputError,
        "is a ScriptModule",
    ),
    "a module that is compiled in place": (half_a_pipeline, StateError, "vae.decoder"),
    "an option that is not known": (
        lambda: lightint_compile.accelerate(models.Video(models.OfModule), densty=0.3),
        OptionError,
        "did you mean 'density'",
    ),
    "a preset that is not known": (
        lambda: lightint_compile.accelerate(models.Video(models.OfModule), preset="exakt"),
        OptionError,
        "exact",
    ),
    "an axis for dynamic": (
        lambda: lightint_compile.accelerate(models.Video(models.OfModule), dynamic={"latent": 2}),  # type: ignore[arg-type]
        InputError,
        "symbolic",
    ),
    "undo twice": (undone_twice, StateError, "not accelerated any more"),
    "a report before a call": (
        lambda: reported_unrun(),
        StateError,
        "no compiled graph",
    ),
}


def reported_unrun() -> None:
    with lightint_compile.accelerate(models.Video(models.OfModule)) as handle:
        handle.report()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value) and (caught.value.fix or caught.value.why)


def test_what_the_user_compiled_in_place_since_then_stays() -> None:
    model = nn.Linear(4, 4)
    handle = lightint_compile.accelerate(model, delegate="eager")
    model.compile(backend="eager")
    own = vars(model)["_compiled_call_impl"]
    handle.undo()
    assert vars(model)["_compiled_call_impl"] is own


def test_what_a_model_requires_is_still_required() -> None:
    model = models.Video(models.OfModule)
    with (
        lightint_compile.accelerate(model, preset="sparse", delegate="eager", require=["sparse-attention"]) as handle,
        pytest.raises(Exception, match="the required pass sparse-attention rewrote nothing"),
    ):
        model(*models.inputs())
    assert not handle.is_active


def test_torch_compile_names_the_functions_that_stop_it_and_the_line(caplog: pytest.LogCaptureFixture) -> None:
    model, given = models.Video(models.Printing), models.inputs()
    compiled = torch.compile(model, backend="lightint", options={"delegate": "eager"})
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        compiled(*given)
        compiled(*models.inputs(3))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "(printing, shared)" in warning and "lightint_compile.accelerate(model)" in warning
    breaks = [r for s in lightint_compile.report(compiled).sections for r in s.remarks if "disabled" in r.args]
    assert {r.args["disabled"] for r in breaks} == {"printing", "shared"}
    assert all("lightint_compile.accelerate(model)" in r.hint for r in breaks)
    assert any("printing is behind torch.compiler.disable" in r.message for r in breaks)
