"""The one hierarchy of errors: each says what, where, why and how to mend it."""

from __future__ import annotations

import inspect

import pytest

from lightint_compile import errors
from lightint_compile.errors import LightintError, did_you_mean


def _kinds() -> list[type[LightintError]]:
    members = vars(errors).values()
    return [kind for kind in members if inspect.isclass(kind) and issubclass(kind, LightintError)]


@pytest.mark.parametrize("kind", _kinds())
def test_every_error_is_caught_by_the_base_and_keeps_its_parts(kind: type[LightintError]) -> None:
    with pytest.raises(LightintError) as caught:
        raise kind("the key is unknown", where="options['x']", why="it is 3", fix="leave it out")
    error = caught.value
    assert (error.what, error.where, error.why, error.fix) == (
        "the key is unknown",
        "options['x']",
        "it is 3",
        "leave it out",
    )
    assert str(error).splitlines() == [
        "the key is unknown",
        "  where: options['x']",
        "  why: it is 3",
        "  fix: leave it out",
    ]


def test_parts_that_are_not_known_are_left_out() -> None:
    assert str(LightintError("it broke", fix="mend it")) == "it broke\n  fix: mend it"


@pytest.mark.parametrize(("word", "hint"), [("sprase", "did you mean 'sparse'?"), ("zzz", "known: exact, off, sparse")])
def test_did_you_mean_names_the_nearest_or_all(word: str, hint: str) -> None:
    assert did_you_mean(word, ["sparse", "off", "exact"]) == hint
