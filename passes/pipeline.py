"""A pipeline is a value: it prints as text, parses from text, and runs its passes with a check between them.

``"canonicalize-attention,hoist-invariants,sparse-attention{density=0.3,tile=4x8x4}"``; options are the pass's dataclass
fields in kebab-case. After xDSL's pass pipelines.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch._dynamo.utils import dynamo_timed

from lightint_compile.errors import LightintError, OptionError, PassError, did_you_mean
from lightint_compile.passes.base import Pass, PassResult, option_text, pairs_of, spelt
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.ir.saved import Saved
from lightint_compile.passes.ir.verify import verify
from lightint_compile.passes.registry import pass_class

log = logging.getLogger(__name__)

#: Called after every pass with the pass, the program as it is now, and what the pass returned.
Observer = Callable[[Pass, Program, PassResult], None]

_ITEM = re.compile(r"\s*(?P<name>[A-Za-z][\w-]*)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?P<end>,|$)")


@dataclass(frozen=True)
class PassTiming:
    """Seconds one pass took, its verification included."""

    name: str
    seconds: float


@dataclass(frozen=True)
class PipelineResult:
    """Remarks in the order they were made, and the time each pass took."""

    modified: bool
    remarks: tuple[Remark, ...]
    timings: tuple[PassTiming, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order they run."""

    passes: tuple[Pass, ...] = ()

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    @classmethod
    def parse(cls, text: str, where: str = "passes") -> Pipeline:
        """The pipeline written as ``text``, which stands at ``where``.

        Raises:
            OptionError: the text does not parse, or names a pass, an option or a value that there is not.
        """
        return cls(tuple(_parse(text, where)))

    def run(self, program: Program, *, strict: bool = False, observer: Observer | None = None) -> PipelineResult:
        """Run every pass on ``program`` in place.

        A pass that raises, or leaves a graph that does not verify, changes nothing: the graph is restored and a
        ``failure`` remark says so. Under ``strict`` it raises :class:`PassError` instead (the graph is restored as
        well).
        """
        remarks: list[Remark] = []
        timings: list[PassTiming] = []
        modified = False
        for step in self.passes:
            start = time.perf_counter()
            with dynamo_timed(f"lightint.{step.name}"):
                result = _run_guarded(step, program, strict)
            timings.append(PassTiming(step.name, time.perf_counter() - start))
            modified |= result.modified
            remarks.extend(result.remarks)
            if observer is not None:
                observer(step, program, result)
        return PipelineResult(modified, tuple(remarks), tuple(timings))


def _run_guarded(step: Pass, program: Program, strict: bool) -> PassResult:
    saved = Saved(program)
    try:
        result = step.run(program)
        if result.modified:
            program.changed()
            verify(program, saved, unchanged=saved.nodes)
        return result
    except Exception as error:
        saved.put_back(program)
        if strict:
            if isinstance(error, LightintError):
                raise
            raise PassError(
                f"the pass {step.name} failed", why=f"{type(error).__name__}: {error}", fix=f"leave {step.name} out"
            ) from error
        log.warning("the pass %s failed and was undone: %s", step.name, error, exc_info=log.isEnabledFor(logging.DEBUG))
        message = f"undone, the graph is as it was before: {type(error).__name__}: {error}"
        return PassResult(False, (Remark(kind=RemarkKind.FAILURE, pass_name=step.name, rule="", message=message),))


def _parse(text: str, place: str) -> Iterator[Pass]:
    position = 0
    while position < len(text):
        match = _ITEM.match(text, position)
        if match is None or (match["end"] == "," and match.end() == len(text)):
            raise OptionError(
                f"the pass text does not parse: {text!r}",
                where=f"{place}, column {position + 1}",
                why="a pass is written name or name{option=value,...}, passes are separated by commas",
                fix='for example "canonicalize-attention,sparse-attention{density=0.3}"',
            )
        yield _made(pass_class(match["name"], place), match["options"] or "", place)
        position = match.end()


def _made(kind: type[Pass], text: str, place: str) -> Pass:
    options = _options(kind, text, place)
    try:
        return kind(**options)
    except OptionError as error:
        where = f"{place}, {kind.name}{{{text}}}"
        raise type(error)(error.what, where=where, why=error.why, fix=error.fix) from error


@cache
def _hints(kind: type[Pass]) -> dict[str, Any]:
    """Types of the options; evaluated where an option is given, which most texts do not."""
    return typing.get_type_hints(kind)


def _options(kind: type[Pass], text: str, place: str) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    options: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = item.partition("=")
        name = key.strip().replace("-", "_")
        if not equals or name not in fields:
            known = [field.replace("_", "-") for field in fields]
            fix = did_you_mean(key.strip(), known) if known else f"{kind.name} has no options"
            raise OptionError(f"{kind.name} has no option {key.strip()!r}", where=f"{place}, {item!r}", fix=fix)
        where = f"{place}, {kind.name}{{{item}}}"
        if name in options:
            why, fix = f"{spelt(name)}={option_text(options[name])} stands in front of it", "leave one of them out"
            raise OptionError(f"{kind.name} is given {spelt(name)} twice", where=where, why=why, fix=fix)
        example = f"for example {spelt(name)}={option_text(fields[name].default)}"
        options[name] = _value(_hints(kind)[name], value.strip(), where, example)
    return options


def _value(hint: Any, text: str, where: str, example: str) -> Any:
    """``text`` as a value of the annotated type: bool, int, float, str, optional, ``4x8x4``, or ``a:1+b:0.5``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text == "none":
            return None
        return _value(next(a for a in arguments if a is not type(None)), text, where, example)
    if hint == _PAIRS:
        with suppress(ValueError):
            return pairs_of(text)
        why = "expected names with a number each"
        raise OptionError(f"{text!r} is not a value this option takes", where=where, why=why, fix=_PAIRS_EXAMPLE)
    if origin is tuple:
        return tuple(_value(arguments[0], part, where, example) for part in text.split("x"))
    if hint is bool and text in ("true", "false"):
        return text == "true"
    if hint in (int, float, str):
        with suppress(ValueError):
            return hint(text)
    expected = f"expected {_KINDS.get(hint, str(hint))}"
    raise OptionError(f"{text!r} is not a value this option takes", where=where, why=expected, fix=example)


_PAIRS = tuple[tuple[str, float], ...]
_PAIRS_EXAMPLE = "for example blocks.0.*:1+blocks.*:0.5"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
