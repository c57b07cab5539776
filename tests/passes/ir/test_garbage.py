"""The collector of cycles rests while graphs are built, and only then."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

import lightint_compile
from lightint_compile import pipeline_run
from lightint_compile.passes.ir.garbage import collection_paused


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


def test_passes_run_without_it(monkeypatch) -> None:
    seen = []
    tell = pipeline_run._tell
    monkeypatch.setattr(pipeline_run, "_tell", lambda rewritten: seen.append(gc.isenabled()) or tell(rewritten))
    assert gc.isenabled()
    lightint_compile.explain(lambda x: x.sin() + 1, torch.ones(3), options={"preset": "exact"})
    assert seen == [False] and gc.isenabled()


@pytest.fixture
def frozen() -> Iterator[None]:
    """What the tests begin with, and its end: the whole of pytest is frozen around them."""
    gc.freeze()
    yield
    gc.freeze()


def test_what_was_built_inside_counts_as_old(frozen: None) -> None:
    gc.unfreeze()
    assert gc.isenabled()
    with collection_paused():
        built = [[number] for number in range(100)]
    assert any(each is built for each in gc.get_objects(generation=2))
    assert not gc.get_freeze_count()


def test_what_the_user_froze_stays_frozen(frozen: None) -> None:
    count = gc.get_freeze_count()
    with collection_paused():
        built = [[number] for number in range(100)]
    assert gc.get_freeze_count() == count > 0
    assert any(each is built for each in gc.get_objects())
