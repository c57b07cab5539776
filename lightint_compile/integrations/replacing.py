"""Names of a pipeline and of its Python module that stand for something else until that is undone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Replaced:
    """An attribute of one object."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._before = owner, name, vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)

    def undo(self) -> None:
        """Leave the object as it was."""
        if self._before is _ABSENT:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)


class ReplacedGlobal:
    """A global name, which several pipelines of one module share: the first replaces it, the last one puts it back."""

    _lock = threading.Lock()
    _users: dict[tuple[int, str], list[Any]] = {}  # noqa: RUF012 - of all instances together

    def __init__(self, space: dict[str, Any], name: str, make: Callable[[Any], Any]) -> None:
        self._space, self._name = space, name
        with self._lock:
            users = self._users.setdefault((id(space), name), [space[name]])
            users.append(self)
            if len(users) == 2:
                space[name] = make(space[name])

    def undo(self) -> None:
        """Give the name up."""
        with self._lock:
            users = self._users[id(self._space), self._name]
            users.remove(self)
            if len(users) == 1:
                self._space[self._name] = users[0]
                del self._users[id(self._space), self._name]
