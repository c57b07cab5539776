"""The one hierarchy of errors: each says what went wrong, where, why, and what to change.

This module imports nothing of ours, so every rung of the import ladder may raise from it.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LightintError(Exception):
    """Base of every error that lightint raises on purpose.

    Args:
        what: one sentence, what is wrong.
        where: the user's file and line, the option, the key or the argument; empty when there is no such place.
        why: the fact that makes it wrong (the value seen, the shape expected).
        fix: the smallest change that would make it right.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        super().__init__(self._render())

    def _render(self) -> str:
        lines = [self.what]
        lines += [f"  {label}: {text}" for label, text in self._details() if text]
        return "\n".join(lines)

    def _details(self) -> tuple[tuple[str, str], ...]:
        return (("where", self.where), ("why", self.why), ("fix", self.fix))


class OptionError(LightintError, ValueError):
    """An option, preset, role name or pass text that cannot be taken."""


class BudgetError(OptionError):
    """An error budget that nothing approximate keeps; it says what is reachable."""


class InputError(LightintError, ValueError):
    """A tensor, pose, grid or argument that does not fit the operation."""


class CheckpointError(LightintError, ValueError):
    """A checkpoint whose keys or shapes are not the model's."""


class DeviceError(LightintError, RuntimeError):
    """A device or kernel that was asked for and is not there."""


class CaptureError(LightintError, RuntimeError):
    """A graph that could not be brought into the normal form."""


class GraphBreakError(CaptureError):
    """A call that does not trace as one graph."""


class EmptyGraphError(CaptureError):
    """A call that runs no tensor operation."""


class PassError(LightintError, RuntimeError):
    """A pass that broke its contract, or a required rewrite that did not apply."""


class RankError(LightintError, RuntimeError):
    """Ranks that are to share a call and do not compile the same, or one that failed; all of them raise it."""


class ExtensionError(LightintError, RuntimeError):
    """Something that another package registers and that cannot be used."""


class ExportError(LightintError, RuntimeError):
    """A program that could not be written, or an archive that could not be read."""


class StateError(LightintError, RuntimeError):
    """A call that does not fit the runtime state (a compiled module that was never run, pickling a driver)."""


def one_line(error: LightintError) -> str:
    """What, where, why and fix of an error in one line."""
    parts = [("", error.what), ("at ", error.where), ("", error.why), ("fix: ", error.fix)]
    return " · ".join(label + " ".join(text.split()) for label, text in parts if text)


MOST_TOLD = 600
"""Characters of a foreign error that are quoted: a reason, not a dump."""

_FROM_USER_CODE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def told(error: BaseException) -> str:
    """An error and what it came from in one line; what an outer error says already is not said again."""
    parts: list[str] = []
    for each in _chain(error):
        text = _said(each)
        if text and not any(text in part for part in parts):
            parts.append(text)
    whole = ", from ".join(parts)
    return whole if len(whole) <= MOST_TOLD else whole[: MOST_TOLD - 1] + "…"


def user_line(error: BaseException) -> str:
    """``file:line`` of the innermost frame of the user's that an error of Dynamo names; empty where it names none."""
    found = user_lines(error)
    own = [(file, line) for file, line in found if "site-packages" not in file] or found
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


def user_lines(error: BaseException) -> list[tuple[str, int]]:
    """The frames that an error of Dynamo names, the outermost first: file and line."""
    _, _, trace = str(error).partition("from user code:")
    return [(match["file"], int(match["line"])) for match in _FROM_USER_CODE.finditer(trace)]


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


_AFTERTHOUGHTS = ("Hint:", "Developer debug context:", "For more details about this", "from user code:", "Set TORCH")


def _said(error: BaseException) -> str:
    """What an error says, in one line: of ours what and why, of another's its type and its first words."""
    if isinstance(error, LightintError):
        return " ".join(" ".join(filter(None, (error.what, error.why and f"({error.why})"))).split())
    text = str(error)
    ends = [at for word in _AFTERTHOUGHTS if (at := text.find(word)) > 0]
    text = " ".join(text[: min(ends, default=len(text))].split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a hint, or the whole list when nothing is near."""
    names = sorted(known)
    near = nearest(word, names)
    return f"did you mean {near!r}?" if near else "known: " + ", ".join(names)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that ``word`` is likely to stand for, whatever its case; empty when nothing is near."""
    spelt: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(known):
        spelt[name.lower()].append(name)
    near = difflib.get_close_matches(word.lower(), spelt, n=1, cutoff=0.6)
    alike = [name for lower in near for name in spelt[lower]]
    return max(alike, key=lambda name: difflib.SequenceMatcher(None, word, name).ratio(), default="")


def check_callable(argument: str, value: object, example: str) -> None:
    """Raise :class:`InputError` unless ``value`` can be called.

    Args:
        argument: where it was given.
        example: a call that gives one.
    """
    if not callable(value):
        raise InputError(
            f"{argument} cannot be called", where=argument, why=f"it is {type(value).__name__}", fix=f"write {example}"
        )


@contextmanager
def extra_needed(extra: str, what: str, where: str) -> Iterator[None]:
    """An import inside that fails is an InputError: ``what`` cannot be done, and which extra makes it possible."""
    try:
        yield
    except ImportError as error:
        fix = f"pip install 'lightint[{extra}]'"
        raise InputError(what, where=where, why=str(error), fix=fix) from error
