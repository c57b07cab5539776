"""The collector of cycles rests while graphs are built, and only then."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

import lightint_compile
from lightint_compile import pipeline_run
from lightint_compile.passes.ir.garbage import collection_paused, collection_resumed


@pytest.mark.parametrize("was_on", [True, False])
def test_it_is_as_it_was_afterwards_whatever_happens_inside(was_on) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(ZeroDivisionError), collection_paused():
            with collection_paused():
                assert not gc.isenabled()
            assert not gc.isenabled()
            _ = 1 / 0
        assert gc.isenabled() is was_on
    finally:
        (gc.enable if before else gc.disable)()


def test_it_goes_on_where_it_is_asked_to_inside_of_a_pause() -> None:
    assert gc.isenabled()
    with collection_paused():
        with collection_resumed():
            assert gc.isenabled()
            with collection_paused():
                assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_turned_it_off_has_it_off_everywhere() -> None:
    gc.disable()
    try:
        with collection_paused(), collection_resumed():
            assert not gc.isenabled()
        with collection_resumed():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_pauses_of_threads_end_with_the_last() -> None:
    begun, ends = threading.Event(), threading.Event()

    def other() -> None:
        with collection_paused():
            begun.set()
            ends.wait(10)

    thread = threading.Thread(target=other)
    with collection_paused():
        thread.start()
        assert begun.wait(10)
    assert not gc.isenabled()
    ends.set()
    thread.join()
    assert gc.isenabled()


def test_passes_run_without_it(monkeypatch) -> None:
    seen = []
    tell = pipeline_run._tell
    monkeypatch.setattr(pipeline_run, "_tell", lambda rewritten: seen.append(gc.isenabled()) or tell(rewritten))
    assert gc.isenabled()
    lightint_compile.explain(lambda x: x.sin() + 1, torch.ones(3), options={"preset": "exact"})
    assert seen == [False] and gc.isenabled()


class Held:
    """An object in a cycle with itself."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_dropped_between_graphs_is_freed() -> None:
    """However many graphs are built: counted as old without a look, it would stay until there is a full collection."""
    alive: list[weakref.ref[Held]] = []
    for _ in range(60):
        held = Held()
        alive.append(weakref.ref(held))
        with collection_paused():
            graph: list[object] = [[number] for number in range(20_000)]
            graph.append(graph)
        del held, graph
        for _ in range(20):
            [[number] for number in range(1000)]
    assert sum(each() is not None for each in alive) < 30
