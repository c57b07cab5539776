"""Memos in a dictionary of a module (``memo_functions``), which a user names for an accelerated module to go without.

Dynamo guards on the keys that such a dictionary has, and on the value of each number in a key that it is asked for. A
table of positions by start frame is compiled anew with every chunk for that. Here the functions that keep the memo find
it empty wherever they are traced, and what they put there is for their own call: no program depends on what the memo
has or on what is in a key, and no entry is a result of one. Code that is not traced has its memo as ever.

That an entry follows from its key and from weights, and that computing one does nothing else, no source shows. So it is
the user's word, and only what is named is left out; what looks like a memo is told. A dictionary may be named that
holds what a stream goes on from: keys and values of a session, its first frames. So a trace is held to what makes an
entry as good when it is computed again (``memo_entries``), and starts again with the dictionary as it is where it finds
otherwise. What was compiled before stays.
"""

from __future__ import annotations

import ast
import gc
import linecache
import os
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, FunctionType
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch._dynamo.exc import UnspecializeRestartAnalysis
from torch._dynamo.variables.base import VariableTracker

from lightint_compile.capture.memo_entries import NotAgainError, are_tensors, watched_in
from lightint_compile.capture.memo_functions import Uses, uses_of
from lightint_compile.errors import InputError

_memos: ContextVar[Memos | None] = ContextVar("lightint_memos", default=None)
"""The memos of the module that this thread traces; ``None`` where nobody asked."""


class Empty:
    """What one call of a function that keeps a memo finds in its place: nothing, and then what it put there last."""

    def __init__(self) -> None:
        self._last: Any = None

    def get(self, key: Any, default: Any = None) -> Any:
        """A miss."""
        return default

    def clear(self) -> None:
        """Nothing is here to be dropped."""

    def pop(self, key: Any, default: Any = None) -> Any:
        """Likewise."""
        return default

    def popitem(self, last: bool = True) -> Any:
        """Likewise."""

    def keys(self) -> tuple[Any, ...]:
        """None."""
        return ()

    def values(self) -> tuple[Any, ...]:
        """None."""
        return ()

    def items(self) -> tuple[Any, ...]:
        """None."""
        return ()

    def move_to_end(self, key: Any, last: bool = True) -> None:
        """Nothing has a place here."""

    def __contains__(self, key: Any) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __delitem__(self, key: Any) -> None:
        """What is dropped was not here."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self._last = value

    def __getitem__(self, key: Any) -> Any:
        return self._last


def _nothing() -> Empty:
    """Dynamo traces this: it makes objects of classes that it finds by a global name."""
    return Empty()


class Memo:
    """One dictionary.

    Attributes:
        name: its module and name.
        memos: the first lines of the functions that keep a memo in it; none for most dictionaries.
        is_named: whether the user named it.
        why: what speaks against leaving it out; empty for one that programs go without.
    """

    def __init__(self, held: Any, name: str, names: Mapping[str, Any], named: Collection[str]) -> None:
        self.name, self._file = name_of(name, names), _file_of(names)
        self.is_named = self.name in named
        uses = _uses_in(self._file, name)
        self.memos = uses.memos
        self._held = held if self.memos else None
        if not self.memos:
            self.why = "its module keeps no memo in it, as far as its source shows"
        else:  # what others do with it takes long to find, and matters for what is left out alone
            self.why = _objection(held, name, names, uses) if self.is_named else "it was not named"

    @property
    def source(self) -> str:
        """The first of these functions as ``file:line``; the file where there is none."""
        return f"{self._file}:{min(self.memos)}" if self.memos else self._file

    def is_of(self, held: Any) -> bool:
        """Whether this is still what is known of a name: memos are put in place of others."""
        return not self.memos or held is self._held

    def is_kept_by(self, code: CodeType) -> bool:
        """Whether a function is one of those that keep the memo, and programs go without."""
        return not self.why and code.co_firstlineno in self.memos and os.path.abspath(code.co_filename) == self._file


class Memos:
    """The memos that traces of one module came across.

    Args:
        named: those to leave out, as :func:`name_of` writes them.
    """

    def __init__(self, named: Collection[str] = ()) -> None:
        self._named = frozenset(named)
        self._found: dict[str, Memo] = {}
        self._empty: WeakKeyDictionary[Any, dict[str, VariableTracker]] = WeakKeyDictionary()
        self._kept: WeakKeyDictionary[Any, list[tuple[Memo, torch.Tensor, int]]] = WeakKeyDictionary()

    def __iter__(self) -> Iterator[Memo]:
        return (each for each in self._found.values() if each.memos or each.is_named)

    def loaded(self, tx: Any, name: str) -> VariableTracker | None:
        """What a traced function gets for a global name, where that is a memo it keeps."""
        held = tx.f_globals.get(name)
        memo = self._memo(held, name, tx.f_globals) if type(held) in (dict, OrderedDict) else None
        if memo is None or not memo.is_kept_by(tx.f_code):
            return None
        found = self._empty.setdefault(tx, {})
        if name not in found:
            found[name] = VariableTracker.build(tx, _nothing).call_function(tx, [], {})
        return found[name]

    def stored(self, tx: Any, target: VariableTracker, value: VariableTracker) -> None:
        """Hold what is put into a memo to what may be computed again.

        Raises:
            UnspecializeRestartAnalysis: it may not; the trace starts again, with the dictionary as it is.
        """
        for name, empty in self._empty.get(tx, {}).items():
            if empty is not target:
                continue
            memo = self._found[name_of(name, tx.f_globals)]
            try:
                watched = watched_in(value, tx)
            except NotAgainError as reason:
                _start_again(memo, str(reason))
            self._kept.setdefault(tx.output.root_tx, []).extend((memo, *each) for each in watched)

    def check_unwritten(self, output: Any) -> None:
        """Hold a graph that ends to not having written to what is in a memo, or to what that is made of.

        Raises:
            UnspecializeRestartAnalysis: it has.
        """
        for memo, tensor, version in self._kept.get(output.root_tx, ()):
            if tensor._version != version:
                _start_again(memo, "what it keeps is written to")

    def _memo(self, held: Any, name: str, names: Mapping[str, Any]) -> Memo:
        known = self._found.get(whole := name_of(name, names))
        if known is None or not known.is_of(held):
            known = self._found[whole] = Memo(held, name, names, self._named)
        return known


@contextmanager
def left_out(memos: Memos) -> Iterator[None]:
    """What this thread traces inside goes without memos, which are told to ``memos``."""
    token = _memos.set(memos)
    try:
        yield
    finally:
        _memos.reset(token)


def name_of(name: str, names: Mapping[str, Any]) -> str:
    """``module.NAME`` of a global name."""
    return f"{names.get('__name__')}.{name}"


def named_memos(given: Any) -> tuple[str, ...]:
    """The names of ``accelerate(..., memos=given)``.

    Raises:
        InputError: one names no dictionary of a module that is imported.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        why, fix = f"it is {given!r}", 'give their names, as memos=["package.module.TABLES"]'
        raise InputError("memos are named in a list", where="memos", why=why, fix=fix)
    found = tuple(given)
    for whole in found:
        module, _, name = whole.rpartition(".") if isinstance(whole, str) else ("", "", "")
        held = vars(sys.modules[module]).get(name) if module in sys.modules else None
        if type(held) not in (dict, OrderedDict):
            why = f"{module} is not imported" if module and module not in sys.modules else "no module has it so"
            fix = "give module.NAME of a dict or an OrderedDict, as the report names it"
            raise InputError(f"{whole!r} is no dictionary of a module", where="memos", why=why, fix=fix)
    return found


def memos_left_out() -> Memos | None:
    """The memos of the module that this thread traces, where somebody asked."""
    return _memos.get()


def _start_again(memo: Memo, why: str) -> NoReturn:
    memo.why = why
    raise UnspecializeRestartAnalysis(restart_reason=f"{memo.name}: {why}")


def _file_of(names: Mapping[str, Any]) -> str:
    """The file of a module of Python, by its global names; empty for what has none, or is no module."""
    module = sys.modules.get(str(names.get("__name__")))
    return os.path.abspath(names["__file__"]) if vars(module or object) is names and names.get("__file__") else ""


def _uses_in(file: str, name: str) -> Uses:
    text = "".join(linecache.getlines(file)) if file else ""
    if f"len({name})" not in text:
        return Uses(frozenset())  # without a bound, which spares most dictionaries the rest
    try:
        return uses_of(ast.parse(text), name)
    except SyntaxError:
        return Uses(frozenset())


def _objection(held: Any, name: str, names: Mapping[str, Any], uses: Uses) -> str:
    """Why a dictionary that functions keep a memo in may be more than that; empty where nothing says so."""
    if uses.other:
        return f"line {uses.other} uses it otherwise"
    if not all(map(are_tensors, held.values())):
        return "it keeps more than tensors"
    for module in list(sys.modules.values()):
        own = getattr(module, "__dict__", None)
        if own is not names and isinstance(own, dict) and any(value is held for value in list(own.values())):
            return f"{module.__name__} has it too"
    for function in [each for each in gc.get_objects() if type(each) is FunctionType]:
        if function.__globals__ is not names and name in function.__code__.co_names and _knows(function, names):
            return f"{function.__module__} uses it"
    return ""


def _knows(function: FunctionType, names: Mapping[str, Any]) -> bool:
    """Whether a function names a module of Python, or imports it."""
    last, own = names["__name__"].rpartition(".")[2], function.__globals__
    return any(
        each.rpartition(".")[2] == last or getattr(own.get(each), "__dict__", None) is names
        for each in function.__code__.co_names
    )
