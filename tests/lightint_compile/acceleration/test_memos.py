"""Memos that a user names are left out of what is compiled; others, and what only looks like one, are asked as ever."""

from __future__ import annotations

import gc
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from quick_variants import mostly_slow
from torch import Tensor
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_dynamo")

SOURCE = """
from collections import OrderedDict

import torch
from torch import nn

TABLES = {}
MOST = 3


def table_of(x, start, angles):
    key = (start, x.shape[1], x.device.type)
    table = TABLES.get(key)
    if table is None:
        table = torch.cat([angles[start : start + x.shape[1]].cos()], dim=-1)
        if len(TABLES) >= MOST:
            TABLES.pop(next(iter(TABLES)))
        TABLES[key] = table
    return table


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.angles = torch.linspace(0, 9, 64 * 8).view(64, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, start):
        for block in self.blocks:
            x = x + block(x * table_of(x, start, self.angles))
        return x
"""

GET = "    table = TABLES.get(key)\n    if table is None:\n"
MADE = "torch.cat([angles[start : start + x.shape[1]].cos()], dim=-1)"
KEPT = "        TABLES[key] = table\n"
DROPPED = "        if len(TABLES) >= MOST:\n            TABLES.pop(next(iter(TABLES)))\n"

Edits = tuple[tuple[str, str], ...]
Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports the source, edited, as a module of its own each time."""
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers, loaded = itertools.count(), list[str]()

    def load(*edits: tuple[str, str]) -> ModuleType:
        text = SOURCE
        for before, after in edits:
            assert before in text
            text = text.replace(before, after)
        loaded.append(f"memo_module_{next(numbers)}")
        (tmp_path / f"{loaded[-1]}.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(loaded[-1])

    yield load
    for name in loaded:
        del sys.modules[name]


def chunks(call: Callable[..., Tensor], number: int = 6) -> tuple[list[Tensor], list[int]]:
    """What two calls for each of some chunks give, and how many graphs there are after each."""
    draw, found, graphs = torch.Generator().manual_seed(0), list[Tensor](), list[int]()
    torch.manual_seed(0)
    counters.clear()
    for start in (chunk * 2 for chunk in range(number) for _ in range(2)):
        found.append(call(torch.randn(1, 2, 8, generator=draw), start))
        graphs.append(counters["stats"]["unique_graphs"])
    return found, graphs


def model_of(code: ModuleType) -> Any:
    torch.manual_seed(0)
    return code.Model().eval()


def run(
    load: Load,
    *edits: tuple[str, str],
    prepare: Callable[[ModuleType], None] | None = None,
    named: bool = True,
    number: int = 6,
) -> SimpleNamespace:
    """Some chunks of the edited source, compared with eager calls of another copy of it."""
    expected, _ = chunks(model_of(load(*edits)), number)
    code = load(*edits)
    if prepare is not None:
        prepare(code)
    model, memos = model_of(code), [f"{code.__name__}.TABLES"] if named else []
    with lightint_compile.accelerate(model, preset="exact", delegate="eager", memos=memos) as handle:
        found, graphs = chunks(model, number)
        (section, *_) = handle.report().sections
    torch.testing.assert_close(found, expected)
    remarks = [remark for remark in section.remarks if remark.rule in ("memo-left-out", "kept-memo")]
    told, hints = ({r.rule: getattr(r, name) for r in remarks} for name in ("message", "hint"))
    tables = vars(code)["TABLES"]
    return SimpleNamespace(code=code, tables=tables, graphs=graphs, told=told, hints=hints, model=model, handle=handle)


def test_a_new_chunk_compiles_nothing_and_undo_gives_the_memo_back(load: Load) -> None:
    _, alone = chunks(torch.compile(model_of(load()), backend="eager"))
    torch._dynamo.reset()
    done = run(load)
    assert done.graphs == [1, 1] + [2] * 10 and alone[-1] > 2
    assert not done.tables and list(done.told) == ["memo-left-out"]
    assert done.told["memo-left-out"].startswith(f"{done.code.__name__}.TABLES is left out of what is compiled")
    torch._dynamo.reset()
    chunks(done.model)
    assert len(done.tables) == 3


def test_what_is_not_named_is_asked_as_ever_and_told(load: Load) -> None:
    done = run(load, named=False, number=4)
    assert len(done.tables) == 3 and done.graphs[-1] > 2 and list(done.told) == ["kept-memo"]
    name = f"{done.code.__name__}.TABLES"
    assert done.told["kept-memo"].endswith("it was not named") and f'memos=["{name}"]' in done.hints["kept-memo"]
    assert not run(load, ("TABLES.pop(next(iter(TABLES)))", "pass"), named=False, number=4).told


@pytest.mark.parametrize("memos", ["torch.TABLES", ["TABLES"], ["torch.nn"], ["no.such.TABLES"], [7], 7])
def test_what_names_no_dictionary_is_refused(memos: Any) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(InputError) as caught:
        lightint_compile.accelerate(model, memos=memos)
    assert caught.value.where == "memos" and caught.value.fix
    lightint_compile.accelerate(model).undo()


def test_a_memo_put_in_place_of_another_is_left_out_too(load: Load) -> None:
    code = load()
    model = model_of(code)
    expected, _ = chunks(model_of(load()))
    with lightint_compile.accelerate(model, preset="exact", delegate="eager", memos=[f"{code.__name__}.TABLES"]):
        torch.testing.assert_close(chunks(model)[0], expected)
        vars(code)["TABLES"] = {}
        torch.testing.assert_close(chunks(model)[0], expected)
        assert not vars(code)["TABLES"]


def test_the_memo_of_code_that_is_not_traced_stays(load: Load) -> None:
    code = load()
    model = model_of(code)
    model(torch.ones(1, 2, 8), 0)
    before = dict(vars(code)["TABLES"])
    with lightint_compile.accelerate(model, preset="exact", delegate="eager", memos=[f"{code.__name__}.TABLES"]):
        chunks(model)
        assert vars(code)["TABLES"] == before and len(before) == 1


def test_no_trace_is_kept_alive(load: Load) -> None:
    done = run(load)
    torch._dynamo.reset()
    gc.collect()
    (call,) = done.handle._calls.values()
    assert not call.memos._empty and not call.memos._kept


READ = "    if key in TABLES:\n        return TABLES[key]\n    for _ in range(1):\n"
RECENT = READ.replace("        return", "        TABLES.move_to_end(key)\n        return")
TRIM = "        while len(TABLES) > MOST:\n            TABLES.popitem(last=False)\n"
HALVED = """        if len(TABLES) % 4 == 0:
            for old in list(TABLES)[:2]:
                del TABLES[old]
"""
EMPTIED = """        if len(TABLES) >= MOST:
            for old in TABLES.keys():
                break
            TABLES.clear()
"""
FORMS: dict[str, Edits] = {
    "asked first": ((GET, READ),),
    "kept and read": (
        (GET, "    if key not in TABLES:\n"),
        ("        table =", "        made ="),
        ("= table\n", "= made\n"),
        ("return table\n", "return TABLES[key]\n"),
    ),
    "least recently used": (("TABLES = {}", "TABLES = OrderedDict()"), (GET, RECENT), (DROPPED + KEPT, KEPT + TRIM)),
    "a pair": (
        ("    table = TABLES.get(key)\n    if table", "    entry = TABLES.get(key)\n    if entry"),
        ("        TABLES[key] = table", "        entry = (table, None)\n        TABLES[key] = entry"),
        ("    return table", "    table, _ = entry\n    return table"),
    ),
    "halved by a loop": ((DROPPED, HALVED), ("MOST = 3", "MOST = 0")),
    "the first by its keys": ((DROPPED, EMPTIED), ("MOST = 3", "MOST = 0")),
    "behind a break": (("        for block", "        torch._dynamo.graph_break()\n        for block"),),
}


SLOW_FORMS = {"kept and read", "the first by its keys", "behind a break"}


@pytest.mark.parametrize(
    "form", [pytest.param(name, marks=pytest.mark.slow if name in SLOW_FORMS else ()) for name in FORMS]
)
def test_spellings(load: Load, form: str) -> None:
    done = run(load, *FORMS[form])
    assert list(done.told) == ["memo-left-out"] and not done.tables


@pytest.mark.parametrize("form", ["", "kept and read"])
def test_a_break_in_a_memo_function_gives_the_rest_of_it_the_dictionary(load: Load, form: str) -> None:
    done = run(load, *FORMS.get(form, ()), (MADE, f"{MADE}\n        torch._dynamo.graph_break()"))
    assert list(done.told) == ["memo-left-out"] and done.tables


TWINS: dict[str, tuple[str, Edits]] = {
    "nothing is dropped": ("keeps no memo", (("TABLES.pop(next(iter(TABLES)))", "pass"),)),
    "it has no bound": ("keeps no memo", (("len(TABLES) >= MOST", "x.shape[0] > MOST"),)),
    "read elsewhere": ("uses it otherwise", (("class Model", "def shown():\n    return TABLES[0]\n\n\nclass Model"),)),
    "kept on a hit too": (
        "uses it otherwise",
        (("    return table", "    TABLES[key] = table + 0\n    return table"),),
    ),
    "more than tensors": (
        "more than tensors",
        (("] = table", "] = (table, 1)"), ("return table", "return table[0] if isinstance(table, tuple) else table")),
    ),
    "made of an argument": ("made of an argument", ((MADE, "x.cos()"),)),
    "first of its session": ("made of an argument", ((MADE, "x.cos()"), ("key = (start,", "key = (0,"))),
    "random": ("random", ((MADE, "torch.randn(1, 2, 8)"), ("key = (start,", "key = (0,"))),
    "room": (
        "room",
        ((MADE, "torch.zeros(1, 2, 8)"), ("key = (start,", "key = (0,"), ("return table", "return table + 1")),
    ),
    "written to": (
        "written to",
        (("key = (start,", "key = (0,"), ("return table", "table[:1] += 0.5\n    return table")),
    ),
    "made of what is written to": (
        "written to",
        (
            ("key = (start,", "key = (0,"),
            ("    def forward(self, x, start):\n", "    def forward(self, x, start):\n        self.angles += 1\n"),
        ),
    ),
}


QUICK = {
    "it has no bound",
    "read elsewhere",
    "more than tensors",
    "first of its session",
    "random",
    "room",
    "written to",
}
"""Those that run by default: one of each reason, and of what a memo is read by."""


@pytest.mark.parametrize("twin", mostly_slow(TWINS, quick=QUICK))
def test_what_is_asked_as_it_is(load: Load, twin: str) -> None:
    why, edits = TWINS[twin]
    done = run(load, *edits, number=4)
    assert done.tables and list(done.told) == ["kept-memo"]
    assert why in done.told["kept-memo"]


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_a_number_of_an_argument_is_one(load: Load) -> None:
    done = run(load, (MADE, f"{MADE} * x.amax().item()"), ("key = (start,", "key = (0,"))
    assert done.tables and "made of an argument" in done.told["kept-memo"]


def test_what_others_have_is_asked_as_it_is(load: Load) -> None:
    other = ModuleType("holder_of_a_memo")

    def hold(code: ModuleType) -> None:
        vars(other)["HELD"] = vars(code)["TABLES"]

    sys.modules[other.__name__] = other
    try:
        done = run(load, prepare=hold, number=3)
    finally:
        del sys.modules[other.__name__]
    assert done.tables and "holder_of_a_memo has it too" in done.told["kept-memo"]


def test_what_others_read_is_asked_as_it_is(load: Load) -> None:
    readers: list[Any] = []

    def read(code: ModuleType) -> None:
        names = {"code": code}
        exec("def shown(key):\n    return code.TABLES[key]", names)
        readers.append(names["shown"])

    done = run(load, prepare=read, number=3)
    assert done.tables and " uses it" in done.told["kept-memo"]


def test_what_holds_more_than_tensors_is_asked_as_it_is(load: Load) -> None:
    done = run(load, prepare=lambda code: vars(code)["TABLES"].update(scale=1.0))
    assert "it keeps more than tensors" in done.told["kept-memo"]


def test_tensors_of_a_module_are_its_globals_only_where_a_module_has_them(load: Load) -> None:
    state = ("MOST = 3\n", "MOST = 3\nANGLES = torch.linspace(0, 9, 64 * 8).view(64, 8)\n")
    done = run(load, state, (MADE, MADE.replace("angles[", "ANGLES[")), number=3)
    assert done.tables and "made of an argument" in done.told["kept-memo"]


def test_what_is_not_reached_is_not_told(load: Load) -> None:
    assert not run(load, ("table_of(x, start, self.angles))", "2)")).told
