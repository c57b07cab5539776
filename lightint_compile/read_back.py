"""Files of JSON that we wrote and read back: anybody may have damaged one since, so nothing of its form is trusted.

Whatever is wrong with one is :class:`UnreadableError`, and a value that is taken has the types that it is used with.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lightint_compile.errors import told

Made = TypeVar("Made")


class UnreadableError(ValueError):
    """A file that is not what was written, and why; each reader says what becomes of it."""


def read_back(path: Path, form: Callable[[Any], Made]) -> Made:
    """What ``form`` makes of the JSON value in a file.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it cannot be read, is no JSON, or ``form`` cannot take it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UnreadableError(told(error)) from error
    return parsed(text, form)


def parsed(text: str, form: Callable[[Any], Made]) -> Made:
    """What ``form`` makes of JSON.

    Raises:
        UnreadableError: it is no JSON, or ``form`` cannot take it.
    """
    try:
        return form(json.loads(text))
    except Exception as error:  # a wrong form is any error at all: a key, a type, an attribute, the depth
        raise UnreadableError(told(error)) from error


def an_object(data: Any) -> dict[str, Any]:
    """``data`` as what JSON calls an object.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(data, dict):
        raise TypeError(f"an object is expected, it is {type(data).__name__}")
    return data


def of_type(kind: type[Made], data: Any) -> Made:
    """A dataclass from the object of its fields, each as its annotation says.

    Raises:
        TypeError: a field has another type, is missing or is unknown.
    """
    hints = get_type_hints(kind)
    return kind(**{name: _as(hints.get(name, Any), value, name) for name, value in an_object(data).items()})


def a_number(data: Any) -> float:
    """``data`` as a float.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise TypeError(f"a number is expected, it is {type(data).__name__}")
    return float(data)


def _as(hint: Any, value: Any, where: str) -> Any:
    """``value`` as an annotation says: lists become tuples, and whole numbers floats, where those are meant."""
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return value
    if hint is float:
        return a_number(value)
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in parts else _as(parts[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_as(parts[0], each, where) for each in value)
    if origin is list and isinstance(value, list):
        return [_as(parts[0], each, where) for each in value]
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _as(parts[1], each, where) for name, each in value.items()}
    if (
        isinstance(origin, type)
        and not parts
        and isinstance(value, origin)
        and isinstance(value, bool) == (origin is bool)
    ):
        return value
    raise TypeError(f"{where} is {type(value).__name__}")
