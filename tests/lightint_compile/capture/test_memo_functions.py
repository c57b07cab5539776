"""Which dictionaries of a module its source uses as a memo, in the spellings that people have, and what is not one."""

from __future__ import annotations

import ast
import textwrap

import pytest

from lightint_compile.capture.memo_functions import uses_of

HEAD = "TABLES = {}\nMOST = 3\n\n\n"

GET = """
def table_of(key):
    table = TABLES.get(key)
    if table is None:
        table = made(key)
        if len(TABLES) >= MOST:
            TABLES.pop(next(iter(TABLES)))
        TABLES[key] = table
    return table
"""

ASKED_FIRST = """
@decorated
def table_of(key):
    if key in TABLES:
        TABLES.move_to_end(key)
        return TABLES[key]
    table = made(key)
    TABLES[key] = table
    while len(TABLES) > MOST:
        TABLES.popitem(last=False)
    return table
"""

KEPT_AND_READ = """
def table_of(key):
    if key not in TABLES:
        if len(TABLES) == MOST:
            TABLES.clear()
        TABLES[key] = made(key)
    return TABLES[key]
"""

METHOD = """
class Rotation:
    def table_of(self, key):
        for place in key:
            if (table := TABLES.get(key, None)) is not None:
                yield table
                continue
            table = made(key)
            if len(TABLES) + 1 > MOST:
                for old in list(TABLES)[:2]:
                    del TABLES[old]
            TABLES[key] = table
            yield table
"""

BRANCHES = """
def table_of(key):
    table = None
    if ENABLED:
        table = TABLES.get(key)
    if table is not None:
        return table
    else:
        table = made(key)
        if ENABLED:
            if len(TABLES) >= MOST:
                TABLES.pop(next(iter(TABLES)))
            TABLES[key] = table
    return table


def reset():
    TABLES.clear()


def told():
    return f"{len(TABLES)} tables"
"""

FORMS = {
    "get": GET,
    "get, then read": GET.replace("return table", "return TABLES[key]"),
    "in": ASKED_FIRST,
    "not in": KEPT_AND_READ,
    "method": METHOD,
    "branches": BRANCHES,
}


@pytest.mark.parametrize("form", FORMS)
def test_spellings_of_a_memo(form: str) -> None:
    uses = uses_of(ast.parse(HEAD + FORMS[form]), "TABLES")
    (line,) = uses.memos
    assert not uses.other
    first = (HEAD + FORMS[form]).splitlines()[line - 1].strip()
    assert first == ("@decorated" if form == "in" else f"def table_of({'self, ' if form == 'method' else ''}key):")


NONE = {
    "nothing is dropped": (GET, "TABLES.pop(next(iter(TABLES)))", "pass"),
    "it has no bound": (GET, "len(TABLES) >= MOST", "key > MOST"),
    "it is dropped while there is room": (GET, ">= MOST", "< MOST"),
    "nothing is kept": (GET, "TABLES[key] = table", "pass"),
    "nobody asks": (GET, "TABLES.get(key)", "None"),
}


@pytest.mark.parametrize("edit", NONE)
def test_what_is_no_memo(edit: str) -> None:
    source, before, after = NONE[edit]
    assert before in source
    assert not uses_of(ast.parse(HEAD + source.replace(before, after)), "TABLES").memos


MORE = {
    "kept on a hit too": (GET, "    return table", "    TABLES[key] = table + 1\n    return table"),
    "added to": (GET, "TABLES[key] = table", "TABLES[key] = table\n        TABLES[key] += 1"),
    "another is the default": (GET, "get(key)", "get(key, TABLE)"),
    "what is dropped is used": (
        GET,
        "            TABLES.pop",
        "            old = TABLES.pop(key)\n            TABLES.pop",
    ),
    "what it keeps is looked through": (
        GET,
        "            TABLES.pop",
        "            free(TABLES.values())\n            TABLES.pop",
    ),
    "read without asking": (GET, "    if table is None", "    table = TABLES[key]\n    if table is None"),
    "read behind more": (KEPT_AND_READ, "return TABLES[key]", "print(key)\n    return TABLES[key]"),
    "read after a call": (KEPT_AND_READ, "return TABLES[key]", "return shown(), TABLES[key]"),
    "another is read": (KEPT_AND_READ, "return TABLES[key]", "return TABLES[other]"),
    "read where it is not": (ASKED_FIRST, "return TABLES[key]\n", "pass\n    table = TABLES[key]\n"),
    "given away": (GET, "return table", "return table, TABLES"),
    "read elsewhere": (BRANCHES, 'f"{len(TABLES)} tables"', "TABLES[0]"),
    "shown elsewhere": (BRANCHES, "len(TABLES)", "list(TABLES)"),
    "filled elsewhere": (BRANCHES, "TABLES.clear()", "TABLES[0] = made(0)"),
    "replaced elsewhere": (BRANCHES, "TABLES.clear()", "global TABLES"),
    "shadowed": (BRANCHES, "def told():", "def told(TABLES):"),
    "a default": (BRANCHES, "def told():", "def told(tables=TABLES):"),
    "in a lambda": (BRANCHES, "def told():", "told = lambda: len(TABLES)\ndef later():"),
    "of two modules": (BRANCHES, "def reset():", "from tables import TABLES\ndef reset():"),
    "held by another name": (BRANCHES, "def reset():", "HELD = TABLES\ndef reset():"),
}


@pytest.mark.parametrize("edit", MORE)
def test_what_is_more_than_a_memo(edit: str) -> None:
    source, before, after = MORE[edit]
    assert before in source
    text = HEAD + source.replace(before, after)
    uses = uses_of(ast.parse(textwrap.dedent(text)), "TABLES")
    assert not uses.memos or uses.other
    assert "TABLES" in text.splitlines()[uses.other - 1]
