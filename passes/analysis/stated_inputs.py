"""What a user stated of inputs, by path or by a pattern of paths: ``kv_cache.*.k`` is the keys of every layer.

``*`` stands for any characters, dots included, and ``?`` for one. A path in full goes before patterns, and a longer
pattern before a shorter one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from lightint_compile.errors import OptionError, did_you_mean, nearest
from lightint_compile.passes.ir.program import InputKind, Program, ProgramInput

Stated = TypeVar("Stated")

_BY_PATTERN = (InputKind.TENSOR, InputKind.BUFFER)


def is_pattern(entry: str) -> bool:
    """Whether an entry names inputs by a pattern."""
    return any(sign in entry for sign in "*?")


def matches(program: Program, entry: str) -> list[str]:
    """The inputs that an entry names: a path any input, a pattern arguments and buffers."""
    return _matching(program.inputs, entry)


def _matching(inputs: Sequence[ProgramInput], entry: str) -> list[str]:
    if not is_pattern(entry):
        return [entry] if any(each.path == entry for each in inputs) else []
    return [each.path for each in inputs if each.kind in _BY_PATTERN and fnmatchcase(each.path, entry)]


def by_path(program: Program, stated: Mapping[str, Stated]) -> dict[str, Stated]:
    """What is stated of each input of the program."""
    known = {entry.path for entry in program.inputs} if stated else set()
    found: dict[str, Stated] = {}
    for entry in sorted(stated, key=precedence):
        named = matches(program, entry) if is_pattern(entry) else known.intersection([entry])
        found.update(dict.fromkeys(named, stated[entry]))
    return found


def entry_of(program: Program) -> dict[str, str]:
    """The entry that says what an input holds: of its grid, else of its role."""
    entries = ({entry: entry for entry in stated} for stated in (program.roles, program.grids))
    return {path: entry for stated in entries for path, entry in by_path(program, stated).items()}


def precedence(entry: str) -> tuple[bool, int]:
    """What is higher overrides: a path in full a pattern, a longer pattern a shorter one."""
    return not is_pattern(entry), len(entry)


def check_names(program: Program, option: str, entries: Iterable[str]) -> None:
    """Look every entry up.

    Raises:
        OptionError: an input that does not exist. Of a graph that may be one of several, a name that is an argument of
            the function, or near to no name at all, may belong to another of them.
    """
    known = [entry.path for entry in program.inputs if entry.kind is not InputKind.SYMBOL]
    tensors = [entry.path for entry in program.inputs if entry.kind is InputKind.TENSOR] or known
    for entry in entries:
        if is_named(program.inputs, program.arguments or (), entry) or is_owned(program.owned or (), entry):
            continue
        names = {*tensors, *(program.arguments or ())} - {"self"}
        if program.arguments is None or program.owned is not None or nearest(entry, names):
            where, what = f"options[{option!r}][{entry!r}]", "input that fits" if is_pattern(entry) else "input"
            raise OptionError(f"there is no {what} {entry!r}", where=where, fix=did_you_mean(entry, names))


def is_named(inputs: Sequence[ProgramInput], arguments: Collection[str], entry: str) -> bool:
    """Whether an entry names one of these inputs, or something in an argument of the function."""
    known = entry in arguments or any(entry == each.path for each in inputs if each.kind is not InputKind.SYMBOL)
    first = entry.split(".")[0]
    return known or bool(_matching(inputs, entry)) or any(fnmatchcase(argument, first) for argument in arguments)


def is_owned(owned: Iterable[str], entry: str) -> bool:
    """Whether an entry names one of these parameters and buffers."""
    return any(fnmatchcase(name, entry) for name in owned)
