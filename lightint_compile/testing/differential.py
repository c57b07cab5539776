"""One generated model through the passes: the numbers against float64, and what must not depend on the writing."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from lightint_compile.passes.base import Pass
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.passes.registry import PASSES, pass_class
from lightint_compile.testing.capturing import captured, disturbed
from lightint_compile.testing.features import Features
from lightint_compile.testing.finding import Finding
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


def check(features: Features) -> Finding[Features] | None:
    """Run every check on the model; the first that fails, or ``None``."""
    try:
        for name, detail in _checks(features):
            if detail:
                return Finding(features, name, detail)
    except Exception as error:
        return Finding(features, "raises", f"{type(error).__name__}: {error}")
    return None


def _checks(features: Features) -> Iterator[tuple[str, str]]:
    model, args = build(features)
    with torch.no_grad():
        eager = model(*args)
        program, inputs = captured(model, args)
        exact = copy.deepcopy(model).double()(*(x.double() if x.is_floating_point() else x for x in args))
        if features.dead_code:
            program = disturbed(program, features.seed)
        yield "capture", _farther(program.graph_module(*inputs), eager, exact)
        first = available()[0]
        yield "disturbed count", _counted(disturbed(program, features.seed + 1), first, features)
        yield "count", _counted(program, first, features)
        for step in available():
            result = Pipeline((step,)).run(program, strict=True)
            yield f"numbers after {step.name}", _farther(program.graph_module(*inputs), eager, exact)
            if result.modified:
                again = Pipeline((step,)).run(program, strict=True).modified
                yield f"{step.name} twice", "changes the graph again" if again else ""


def _counted(program: Program, step: Pass, features: Features) -> str:
    """Whether the attentions that the generator made are the ones found; the pass must run without an error."""
    result = Pipeline((step,)).run(program, strict=True)
    calls = len(list(program.calls(_SDPA)))
    missed = sum(remark.count for remark in result.remarks if remark.kind is RemarkKind.MISSED)
    expected = (features.fusable, features.attentions - features.fusable)
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
