"""Results of classes that a file cannot name: written as plain containers, and given back as what they were.

A model of diffusers or transformers returns an object of a class that a fresh process does not know. The archive holds
plain dictionaries and tuples in its place, so that every loader can call it; the classes are recorded beside it, and
:func:`~lightint_compile.load` makes them again where their package is installed.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch.utils._pytree as pytree

from lightint_compile.read_back import UnreadableError, parsed

RESULTS_FILE = "lightint_results.json"
"""The name among the archive's extra files of what the classes of results were."""

_PLAIN = (tuple, list, dict, OrderedDict)


def plain_spec(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The same leaves in the same order, in tuples, lists and dictionaries only."""
    shown = _shown(spec)
    leaves, found = pytree.tree_flatten(_plain(shown))
    if leaves == list(range(spec.num_leaves)):
        return found
    return pytree.tree_flatten(tuple(range(spec.num_leaves)))[1]


def place_names(spec: pytree.TreeSpec) -> list[str]:
    """Names of the leaves from their places: ``result``, ``sample``, ``parts.0``."""
    paths, _ = pytree.tree_flatten_with_path(_shown(spec))
    return [".".join(map(_key, path)) or "result" for path, _ in paths]


def _key(entry: Any) -> str:
    return str(entry.key if hasattr(entry, "key") else entry.idx)


def described(spec: pytree.TreeSpec) -> str:
    """What :func:`restored` makes the classes from, as text; empty where all are plain or they cannot be written."""
    modules = sorted({kind.__module__ for kind in _classes(_shown(spec))})
    if not modules:
        return ""
    try:
        return json.dumps({"modules": modules, "spec": pytree.treespec_dumps(spec)})
    except (NotImplementedError, TypeError, ValueError):
        return ""


def restored(description: str) -> pytree.TreeSpec | None:
    """The spec that a description was made of; ``None`` where it or a package of it is not there."""
    if not description:
        return None
    try:
        return parsed(description, _classes_in)
    except UnreadableError:
        return None


def _classes_in(data: Any) -> pytree.TreeSpec:
    for name in data["modules"]:
        importlib.import_module(name)
    return pytree.treespec_loads(data["spec"])


def _shown(spec: pytree.TreeSpec) -> Any:
    """The structure that a spec describes, with the numbers of its leaves in their place."""
    return pytree.tree_unflatten(list(range(spec.num_leaves)), spec)


def _plain(value: Any) -> Any:
    if type(value) in _PLAIN:
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        made = [(key, _plain(each)) for key, each in entries]
        return dict(made) if isinstance(value, dict) else type(value)(each for _, each in made)
    if isinstance(value, int):
        return value
    fields = _fields(value)
    if fields is not None:  # an absent field is no leaf
        return {key: _plain(each) for key, each in fields if each is not None}
    return tuple(map(_plain, _children(value)))


def _fields(value: Any) -> Iterable[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return value.items()
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def _children(value: Any) -> list[Any]:
    """The parts of a container one level down, as PyTorch takes it apart."""
    parts, _ = pytree.tree_flatten(value, is_leaf=lambda each: each is not value)
    return list(parts)


def _classes(value: Any) -> set[type]:
    if isinstance(value, int):
        return set()
    own = set() if type(value) in _PLAIN else {type(value)}
    return own.union(*map(_classes, _children(value)))
