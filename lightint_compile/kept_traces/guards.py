"""Dynamo's guards as plain data: which are known, and what of a value each is about."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any

from lightint_compile.kept_traces.descriptions import Describer, digest
from lightint_compile.torch_frames import BUILTINS, first_of, is_argument, is_global_source, source_of_global
from lightint_compile.trace_parts import PlainGuard, UnkeepableError

_STATE = {
    "SHAPE_ENV",
    "GRAD_MODE",
    "DETERMINISTIC_ALGORITHMS",
    "DEFAULT_DEVICE",
    "GLOBAL_STATE",
    "TORCH_FUNCTION_STATE",
    "AUTOGRAD_SAVED_TENSORS_HOOKS",
}
"""Guards on the process, which are kept apart, and those on sizes."""

_IDENTITY = {"ID_MATCH", "FUNCTION_MATCH", "CLASS_MATCH", "MODULE_MATCH", "BUILTIN_MATCH", "CLOSURE_MATCH"}
_CONSTANT = {"CONSTANT_MATCH", "EQUALS_MATCH", "NONE_MATCH", "BOOL_MATCH"}
_TYPE = {"TYPE_MATCH", "DICT_CONTAINS", "DICT_NOT_CONTAINS", "NOT_PRESENT_IN_GENERIC_DICT", "DUPLICATE_INPUT"}
_LENGTH = {"SEQUENCE_LENGTH", "EMPTY_NN_MODULE_HOOKS_DICT"}
_KEYS = {"DICT_KEYS_MATCH", "MAPPING_KEYS_CHECK"}

_SCOPE, _DYNAMOS_BUILTINS = "___unnamed_scope", "__builtins_dict__"
"""How Dynamo names the globals of a named tuple's constructor, which are in no module, and Python's builtins."""


def without_scopes(guards: Iterable[PlainGuard], value_of: Callable[[Any], Any]) -> list[PlainGuard]:
    """The guards without those on what constructors of named tuples use, which nothing changes.

    Raises:
        UnkeepableError: a guard is about other globals that are in no module.
    """
    kept = []
    for guard in guards:
        base = first_of(guard[1])
        if not is_global_source(base, _SCOPE):
            kept.append(guard)
        elif not str(value_of(base).get("__name__", "")).startswith("namedtuple_"):
            raise UnkeepableError(f"{guard[0]} is about {guard[1].name}, which has no name in another process")
    return kept


def seen(guards: Iterable[PlainGuard], value_of: Callable[[Any], Any], describer: Describer) -> tuple[str, str]:
    """What the guards on arguments are about, and what all others are, each as one text.

    Raises:
        UnkeepableError: one is of a kind that is not known here, or is about what has no description.
    """
    lines: tuple[list[str], list[str]] = ([], [])
    tensors: dict[int, int] = {}
    for guard in sorted(guards, key=lambda each: not is_argument(each[1])):
        kind, source, *_ = guard
        if kind in _STATE:
            continue
        value = value_of(source)
        line = _described(guard, value, describer)
        if kind == "TENSOR_MATCH":
            line += f" same as {tensors.setdefault(id(value), len(tensors))}"
        lines[not is_argument(source)].append(f"{kind} {_name(source.name)} {line}")
    first, rest = (digest("\n".join(each)) for each in lines)
    return first, rest


def _name(text: str) -> str:
    """A source's name, without the number that Dynamo gives to the builtins."""
    start = text.find(_DYNAMOS_BUILTINS)
    return text if start < 0 else text[:start] + BUILTINS + text[text.index("'", start) :]


def _described(guard: PlainGuard, value: Any, describer: Describer) -> str:
    kind, source, _, named = guard
    if kind == "TENSOR_MATCH":
        return describer.tensor(value)
    if kind in _IDENTITY:
        return describer.identity(value)
    if kind in _CONSTANT:
        return describer.constant(value)
    if kind in _TYPE:
        return describer.type_of(value)
    if kind in _LENGTH:
        return f"{describer.type_of(value)} {len(value)}"
    if kind in _KEYS:
        return f"{describer.type_of(value)} {[describer.constant(key) for key in dict.keys(value)]}"
    if kind == "HASATTR":
        return f"{describer.type_of(value)} {hasattr(value, dict(named)['attr'])}"
    raise UnkeepableError(f"Dynamo's guard {kind} on {source.name} is not known here")


_DATA = (
    *("torch._dynamo.source", "torch._dynamo.guards", "torch._guards", "torch.fx.experimental", "torch._C"),
    *("lightint_compile.", "sympy.", "enum", "builtins", "collections"),
)
"""Where the types of what is written are defined."""


class _Packer(pickle._Pickler):
    """Packs sources and plain data and refuses every other object: it would be a copy in another process."""

    def reducer_override(self, value: Any) -> Any:
        if is_global_source(value, _DYNAMOS_BUILTINS):
            return source_of_global(BUILTINS)
        if not isinstance(value, type) and not type(value).__module__.startswith(_DATA):
            raise UnkeepableError(f"Dynamo's guards hold an object of {type(value).__qualname__}")
        return NotImplemented


def packed(value: Any) -> bytes:
    """Plain data with Dynamo's sources, as bytes.

    Raises:
        UnkeepableError: there is an object among them.
    """
    buffer = io.BytesIO()
    try:
        _Packer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UnkeepableError(f"the guards cannot be written: {error}") from None
    return buffer.getvalue()
