"""One generated model through the passes: the numbers against float64, and what must not depend on the writing."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.passes.base import Pass
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.passes.registry import PASSES, pass_class
from lightint_compile.testing.capturing import captured, disturbed
from lightint_compile.testing.features import Features
from lightint_compile.testing.finding import Finding
from lightint_compile.testing.forms import FORMS
from lightint_compile.testing.generator import build

#: The passes that leave the result what it was, in the order in which they run.
EXACT = ("canonicalize-attention", "sink-row-repeats", "hoist-invariants", "dead-tail", "outline-regions")

_SDPA = torch.ops.aten.scaled_dot_product_attention.default

#: How much farther from float64 than eager the rewritten graph may be, beside a few units in the last place.
_RATIO = 2.0
_LAST_PLACES = 8.0


@cache
def available() -> tuple[Pass, ...]:
    """The exact passes whose modules exist."""
    found = []
    for name in EXACT:
        module = PASSES[name].partition(":")[0] if name in PASSES else ""
        if module and importlib.util.find_spec(f"lightint_compile.passes.{module}") is not None:
            found.append(pass_class(name)())
    return tuple(found)


def check(features: Features, form: str = "module") -> Finding[Features] | None:
    """Run every check on the model in one of the :data:`~lightint_compile.testing.forms.FORMS`.

    Returns:
        The first that fails, or ``None``.
    """
    try:
        for name, detail in _checks(features, form):
            if detail:
                return Finding(features, name if form == "module" else f"{form}: {name}", detail)
    except Exception as error:
        return Finding(features, "raises", f"{type(error).__name__}: {error}")
    return None


def check_every_form(features: Features) -> Finding[Features] | None:
    """The first finding in any of the forms, or ``None``."""
    return next(filter(None, (check(features, form) for form in FORMS)), None)


def _checks(features: Features, form: str) -> Iterator[tuple[str, str]]:
    model, args = build(features)
    played, exactly = FORMS[form](model), FORMS[form](copy.deepcopy(model).double())
    given: dict[str, tuple[Tensor, ...]] = {}
    with torch.no_grad():
        eager = played.play({name: _recorded(name, each, given) for name, each in played.modules.items()}, args)
        exact = exactly.play(exactly.modules, [x.double() if x.is_floating_point() else x for x in args])
        programs = {name: captured(module, given[name])[0] for name, module in played.modules.items()}
        if features.dead_code:
            programs = {name: disturbed(program, features.seed) for name, program in programs.items()}

        def run() -> list[Tensor]:
            return played.play({name: _bound(played.modules[name], each) for name, each in programs.items()}, args)

        yield "capture", _farther(run(), eager, exact)
        first = available()[0]
        for name, program in programs.items():
            expected = _expected(features, name)
            yield "disturbed count", _counted(disturbed(program, features.seed + 1), first, expected)
            yield "count", _counted(program, first, expected)
        for step in available():
            modified = [name for name, each in programs.items() if Pipeline((step,)).run(each, strict=True).modified]
            yield f"numbers after {step.name}", _farther(run(), eager, exact)
            again = any(Pipeline((step,)).run(programs[name], strict=True).modified for name in modified)
            yield f"{step.name} twice", "changes the graph again" if again else ""


def _recorded(name: str, module: nn.Module, given: dict[str, tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The module, which leaves behind what its first call was given."""

    def call(*args: Tensor) -> Any:
        given.setdefault(name, tuple(each.clone() for each in args))
        return module(*args)

    return call


def _bound(module: nn.Module, program: Program) -> Callable[..., Any]:
    return functools.partial(program.graph_module, *module.parameters())


def _expected(features: Features, name: str) -> tuple[int, int]:
    """How many attentions become one call, and how many do not, in one of a form's modules."""
    one = features if name == "chunk" else dataclasses.replace(features, steps=1)
    return (0, 0) if name == "keys" else (one.fusable, one.attentions - one.fusable)


def _counted(program: Program, step: Pass, expected: tuple[int, int]) -> str:
    """Whether the attentions that the generator made are the ones found; the pass must run without an error."""
    result = Pipeline((step,)).run(program, strict=True)
    calls = len(list(program.calls(_SDPA)))
    missed = sum(remark.count for remark in result.remarks if remark.kind is RemarkKind.MISSED)
    return "" if (calls, missed) == expected else f"fused and missed {(calls, missed)}, expected {expected}"


def _farther(got: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor]) -> str:
    """How the outputs are worse than eager's, in words; empty when they are not."""
    for index, (result, plain, truth) in enumerate(zip(got, eager, exact, strict=True)):
        if result.shape != plain.shape or result.dtype != plain.dtype:
            return f"output {index} is {result.dtype}{list(result.shape)}, was {plain.dtype}{list(plain.shape)}"
        error, base = (float((x.double() - truth).abs().max()) for x in (result, plain))
        floor = _LAST_PLACES * torch.finfo(plain.dtype).eps * float(truth.abs().max())
        if not error <= _RATIO * base + floor:
            return f"output {index} is off by {error:.3g}, eager by {base:.3g}"
    return ""
