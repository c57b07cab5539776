"""The one hierarchy of errors: each says what, where, why and how to mend it."""

from __future__ import annotations

import inspect

import pytest

from lightint_compile import errors
from lightint_compile.errors import MOST_TOLD, InputError, LightintError, did_you_mean, nearest, told, user_line


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


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("sprase", "did you mean 'sparse'?"),
        ("SPARSE", "did you mean 'sparse'?"),
        ("Of", "did you mean 'off'?"),
        ("zzz", "known: exact, off, sparse"),
    ],
)
def test_did_you_mean_names_the_nearest_or_all(word: str, hint: str) -> None:
    assert did_you_mean(word, ["sparse", "off", "exact"]) == hint


@pytest.mark.parametrize(("word", "near"), [("K_cach", "K_cache"), ("k_cach", "k_cache"), ("Key", "")])
def test_of_words_that_differ_in_case_alone_the_nearest_counts(word: str, near: str) -> None:
    assert nearest(word, ["k_cache", "K_cache"]) == near


def test_an_error_is_told_in_one_line_with_all_that_it_came_from() -> None:
    try:
        try:
            raise KeyError("layer\n7")
        except KeyError as error:
            raise InputError("no such layer", why="it has 3") from error
    except InputError as error:
        assert told(error) == "no such layer (it has 3), from KeyError: 'layer\\n7'"


def test_what_an_outer_error_quotes_is_not_said_again_and_hints_of_pytorch_are_left_out() -> None:
    inner = ValueError("size 9")
    outer = RuntimeError("it failed\n  because: ValueError: size 9\n  Hint: look here\n\nfrom user code:\n  File ...")
    outer.__cause__ = inner
    assert told(outer) == "RuntimeError: it failed because: ValueError: size 9"
    assert len(told(RuntimeError("x" * 5000))) == MOST_TOLD and told(RuntimeError()) == "RuntimeError"


def test_the_users_line_is_the_innermost_outside_of_installed_packages() -> None:
    trace = 'from user code:\n  File "/a/model.py", line 6, in f\n  File "/x/site-packages/t.py", line 9, in g\n'
    assert user_line(RuntimeError(trace)) == "/a/model.py:6"
    assert user_line(RuntimeError("no trace")) == ""
