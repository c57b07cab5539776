"""Watchers of a function come and go in any order, and what is left is the function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lightint_compile.lowering.watchers import CallWatchers, Watchers

STEPS = st.lists(st.tuples(st.integers(0, 4), st.sets(st.sampled_from("ab"))), max_size=20)


def plain(*args: Any) -> list[int]:
    return list(args)


def watcher(number: int) -> Callable[..., list[int]]:
    def seen(*call: Any) -> list[int]:
        *_, function, value = call
        return [number, *function(value)]

    return seen


@given(STEPS)
def test_whoever_is_there_sees_each_call_once(steps: list[tuple[int, set[str]]]) -> None:
    """A step lets a watcher in, or out where it is in."""
    space: dict[str, Any] = {}
    watchers, calls = Watchers(space, {"a": plain, "b": plain}), CallWatchers()
    space.update(a=plain, b=plain)
    inside: dict[int, tuple[set[str], list[AbstractContextManager[None]]]] = {}
    for number, names in steps:
        if number in inside:
            for context in inside.pop(number)[1]:
                context.__exit__(None, None, None)
        else:
            contexts = [watchers.added(names, watcher(number)), calls.added(watcher(number))]
            inside[number] = (names, contexts)
            for context in contexts:
                context.__enter__()
        for name in "ab":
            watching = [each for each, (watched, _) in inside.items() if name in watched]
            assert space[name](9) == [*reversed(watching), 9]
        assert calls.around(plain)(9) == [*reversed(inside), 9] and bool(calls) == bool(inside)
    for _, contexts in inside.values():
        for context in contexts:
            context.__exit__(None, None, None)
    assert space == {"a": plain, "b": plain} and calls.around(plain) is plain
