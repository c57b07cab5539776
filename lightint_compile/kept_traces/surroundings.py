"""What a trace depends on besides its guards: the sources it was traced from, and what their names stood for.

Dynamo guards what may change while a process runs. Between two processes more may: files, and functions or classes
that somebody replaced before the first call.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from lightint_compile.kept_traces.descriptions import Describer, digest
from lightint_compile.trace_parts import UnkeepableError, names_in

Place = tuple[str, str, tuple[str, ...]]
"""A module, a function in it by its qualified name, and the names that the function's code uses."""


@dataclass(frozen=True)
class Sources:
    """What the traced functions were.

    Attributes:
        files: paths and hashes of the files they stand in.
        places: the functions, by module.
        names: what they and the names in them stood for, as a hash.
    """

    files: tuple[tuple[str, str], ...]
    places: tuple[Place, ...]
    names: str

    @classmethod
    def of(cls, codes: Iterable[CodeType], describer: Describer) -> Sources:
        """Those of traced code.

        Raises:
            UnkeepableError: a function is in no file and in no module, or the environment is read.
        """
        modules = {module.__file__: name for name, module in list(sys.modules.items()) if _has_file(module)}
        files, places = set(), set()
        for code in codes:
            path = code.co_filename
            if path == os.__file__:
                raise UnkeepableError(_ENVIRONMENT)
            if path in modules:
                files.add(path)
                places.add((modules[path], code.co_qualname, tuple(dict.fromkeys(names_in(code)))))
            elif not path.startswith("<"):
                raise UnkeepableError(f"{code.co_qualname} stands in {path}, which is no module's file")
        ordered = tuple(sorted(places))
        hashes = tuple((path, _hash(path)) for path in sorted(files))
        return cls(hashes, ordered, _standing_for(ordered, describer))

    def changed(self, describer: Describer) -> str:
        """What is different now; empty where nothing is."""
        for path, known in self.files:
            if _hash(path) != known:
                return f"{path} was changed"
        if _standing_for(self.places, describer) != self.names:
            return "a function or constant that it uses is another one"
        return ""


def _has_file(module: Any) -> bool:
    return isinstance(module, ModuleType) and isinstance(getattr(module, "__file__", None), str)


def _hash(path: str) -> str:
    try:
        return _hash_of(path, Path(path).stat().st_mtime_ns)
    except OSError:
        return "none"


@functools.cache
def _hash_of(path: str, changed: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _standing_for(places: Sequence[Place], describer: Describer) -> str:
    lines: dict[str, None] = {}
    for module, qualified, names in places:
        found = _module(module)
        if found is None:
            lines[f"{module} is not there"] = None
            continue
        lines.update(dict.fromkeys(_lines(found, qualified, names, describer)))
    return digest("\n".join(lines))


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)  # a trace would import it as well
    except ImportError:
        return None


def _lines(module: ModuleType, qualified: str, names: Sequence[str], describer: Describer) -> Iterator[str]:
    yield f"{module.__name__}.{qualified} {describer.about(_reached(module, qualified))}"
    scope = vars(module)
    for name in names:
        if name not in scope:
            continue
        value = scope[name]
        yield f"{module.__name__}.{name} {_known(value, describer)}"
        if isinstance(value, ModuleType):
            for attribute in names:
                if attribute in vars(value):
                    yield f"{value.__name__}.{attribute} {_known(vars(value)[attribute], describer)}"


_ENVIRONMENT = "it may read environment variables, which Dynamo does not guard"


def _known(value: Any, describer: Describer) -> str:
    if value is os.environ or value is os.getenv:
        raise UnkeepableError(_ENVIRONMENT)
    return describer.about(value)


def _reached(module: ModuleType, qualified: str) -> Any:
    """The function of a qualified name as far as names lead to it: what is made inside of a function is part of it."""
    found: Any = module
    for part in qualified.split("."):
        if part == "<locals>" or part not in getattr(found, "__dict__", {}):
            break
        found = vars(found)[part]
    return getattr(found, "__func__", found)
