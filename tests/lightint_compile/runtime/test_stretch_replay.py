"""What is played gives what is computed: arguments that move, sizes that change, memory that is written to."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_here import Recorded
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightint_compile.runtime import recorded_stretch
from lightint_compile.runtime.recorded_stretch import ATTEMPTS, FORMS, IDLE
from lightint_compile.runtime.stretch_replay import Replays


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_stretch, "RECORDER", Recorded)
    monkeypatch.setattr(Replays, "_all", WeakSet())


class Rig:
    """A driver of one stretch."""

    def __init__(self, function: Callable[..., Sequence[Any]], written: Sequence[int] = (), **named: Any) -> None:
        self.replays = Replays(**named)
        self.stretch = self.replays.stretch(function, written)

    def __call__(self, *args: Any, is_watched: bool = False) -> Any:
        with self.replays.call(args, is_watched):
            return self.replays.copied_out(self.stretch(*args))

    @property
    def counts(self) -> tuple[int, int, int]:
        told = self.replays.told
        return told.recorded, told.played, told.as_written


def doubled(x: Tensor, number: int = 1) -> tuple[Tensor, ...]:
    return (x * 2 + number,)


def test_the_first_call_runs_the_second_records_and_later_ones_play() -> None:
    rig, x = Rig(doubled), torch.ones(3)
    for _ in range(4):
        x += 1
        (found,) = rig(x)
        assert found.equal(x * 2 + 1)
    assert rig.counts == (1, 3, 1)


def test_what_a_call_returned_is_not_written_over() -> None:
    rig, x = Rig(doubled), torch.ones(3)
    results = [rig(x.add_(1))[0] for _ in range(5)]
    assert [float(result[0]) for result in results] == [5.0, 7.0, 9.0, 11.0, 13.0]


def test_arguments_that_lie_elsewhere_in_every_call_are_copied() -> None:
    rig, held = Rig(doubled), []
    for number in range(6):
        held.append(torch.full((3,), float(number)))
        assert rig(held[-1])[0].equal(held[-1] * 2 + 1)
    assert rig.counts == (1, 5, 1)


def test_a_large_one_that_moves_later_is_recorded_again_and_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_stretch, "SMALL", 0)
    rig, x = Rig(doubled), torch.ones(3)
    for _ in range(3):
        rig(x)
    held = [torch.full((3,), float(number)) for number in range(4)]
    for value in held:
        assert rig(value)[0].equal(value * 2 + 1)
    assert rig.counts == (2, 6, 1)


def test_expanded_arguments_are_copied_once() -> None:
    rig, held = Rig(doubled), [torch.full((1,), float(number)) for number in range(4)]
    for value in held:
        assert rig(value.expand(5))[0].equal(value.expand(5) * 2 + 1)
    assert rig.counts == (1, 3, 1)


def test_numbers_sizes_strides_and_dtypes_have_recordings_of_their_own() -> None:
    rig, x = Rig(doubled), torch.randn(4, 4)
    for _ in range(3):
        for value, number in ((x, 1), (x, 2), (x.T, 1), (x[:2], 1)):
            assert rig(value, number)[0].equal(value * 2 + number)
    assert rig.counts == (4, 8, 4)


def test_true_is_not_one() -> None:
    rig, x = Rig(lambda x, flag: (x + (10 if flag is True else 1),)), torch.ones(2)
    for _ in range(3):
        assert [float(rig(x, flag)[0][0]) for flag in (1, True)] == [2.0, 11.0]


def test_weights_that_are_replaced_make_another_recording() -> None:
    rig = Rig(lambda weight, x: (weight * x,))
    x = torch.ones(2)
    models = [torch.nn.Parameter(torch.full((2,), value), requires_grad=False) for value in (2.0, 3.0)]
    for _ in range(3):
        for weight in models:
            assert rig(weight, x)[0].equal(weight * x)
    assert rig.counts == (2, 4, 2)
    models[0].data = torch.full((2,), 7.0)
    assert rig(models[0], x)[0].equal(torch.full((2,), 7.0))


def test_a_second_weight_that_moves_is_never_copied() -> None:
    rig, x = Rig(lambda one, other, x: (one * x + other,)), torch.ones(2)
    one, other = (torch.nn.Parameter(torch.ones(2), requires_grad=False) for _ in "ab")
    for value in (1.0, 1.0, 1.0, 5.0, 5.0):
        if value != float(other[0]):
            other.data = torch.full((2,), value)
        assert rig(one, other, x)[0].equal(one * x + other)
    assert rig.counts == (2, 3, 2) and copies_of(rig.stretch) == []


def test_a_form_is_not_recorded_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_stretch, "SMALL", 0)
    rig, held = Rig(lambda *tensors: (sum(tensors),)), []
    base = [torch.ones(2) for _ in range(ATTEMPTS + 3)]
    rig(*base)
    for number in range(len(base)):  # one more moves each time
        rig(*base)
        held.append(base[number])
        base[number] = torch.ones(2)
    assert rig.replays.told.recorded == ATTEMPTS
    assert rig.replays.told.reasons == {f"what it reads lay elsewhere than in {ATTEMPTS} recordings": 3}
    assert f"because what it reads lay elsewhere than in {ATTEMPTS} recordings" in str(rig.replays.remarks()[0])


def test_too_much_to_copy_runs_call_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_stretch, "COPIED", 8)
    rig, held = Rig(doubled), [torch.ones(3) * number for number in range(4)]
    for value in held:
        assert rig(value)[0].equal(value * 2 + 1)
    assert rig.counts == (0, 0, 4)
    assert rig.replays.told.reasons == {"too much of what it reads lay elsewhere than before": 3}


def test_buffers_are_written_in_place_once_a_call() -> None:
    def counted(buffer: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return buffer.add_(x), buffer * 2

    rig, buffer, x = Rig(counted, written=[0]), torch.zeros(2), torch.ones(2)
    for number in range(1, 6):
        same, twice = rig(buffer, x)
        assert same is buffer and float(buffer[0]) == number and float(twice[0]) == 2 * number
    assert rig.counts == (1, 4, 1)
    moved = buffer.clone()
    for number in range(6, 9):
        same, _ = rig(moved, x)
        assert same is moved and float(moved[0]) == number and float(buffer[0]) == 5
    assert rig.counts == (2, 6, 2), "each place that is written to has a recording"


def test_another_view_of_a_written_buffer_is_never_copied() -> None:
    def read_behind(buffer: Tensor, part: Tensor) -> tuple[Tensor, ...]:
        buffer.add_(1)
        return (part * 1,)

    rig, buffer = Rig(read_behind, written=[0]), torch.zeros(4)
    for number, place in enumerate((0, 1, 2, 0, 0, 0), 1):
        assert float(rig(buffer, buffer[place : place + 2])[0][0]) == number


def test_a_view_of_a_written_buffer_that_comes_later_is_read_behind_the_write() -> None:
    def read_behind(buffer: Tensor, part: Tensor) -> tuple[Tensor, ...]:
        buffer.add_(1)
        return (part * 1,)

    rig, buffer = Rig(read_behind, written=[0]), torch.zeros(4)
    for number in range(1, 9):
        part = torch.full((2,), -1.0) if number < 5 else buffer[1:3]
        assert float(rig(buffer, part)[0][0]) == (-1 if number < 5 else number)


def test_caches_that_take_turns_have_a_recording_each() -> None:
    rig = Rig(lambda cache, x: (cache.add_(x), cache * 2), written=[0])
    caches, x = [torch.zeros(2) for _ in "ab"], torch.ones(2)
    for number in range(1, 6):
        for cache in caches:
            assert float(rig(cache, x)[1][0]) == 2 * number
    assert rig.counts == (2, 8, 2)


def test_a_view_of_an_argument_is_made_in_every_call_and_holds_nothing() -> None:
    rig, cache = Rig(lambda cache, x: (cache.add_(x)[:, :2].unsqueeze(0),), written=[0]), torch.zeros(3, 4)
    for number in range(1, 5):
        (shown,) = rig(cache, torch.ones(4))
        assert shown.shape == (1, 3, 2) and shown.eq(number).all() and shown.data_ptr() == cache.data_ptr()
        shown.squeeze_(0)
    gone = weakref.ref(cache)
    del cache, shown
    gc.collect()
    assert gone() is None


def test_an_argument_shown_as_other_numbers_is_not_recorded() -> None:
    rig, x = Rig(lambda cache: (cache.view(torch.int32), cache * 2)), torch.ones(3)
    for _ in range(4):
        assert rig(x)[1].eq(2).all()
    assert rig.counts == (0, 0, 4)


def test_conjugates_and_negatives_keep_their_values() -> None:
    def both(z: Tensor) -> tuple[Tensor, ...]:
        made = z * 2
        return made, made.conj(), made.conj().imag, torch.zeros(1).expand(2) + 0, made.real

    rig, z = Rig(both), torch.tensor([1 + 2j, 3 - 1j])
    for _ in range(4):
        for one, other in zip(rig(z), both(z), strict=True):
            assert one.equal(other)


def test_numbers_are_told_apart_exactly() -> None:
    rig, x, minus = Rig(lambda x, number: (x / number,)), torch.ones(2), -0.0
    for _ in range(3):
        assert [float(rig(x, number)[0][0]) for number in (0.0, minus)] == [float("inf"), float("-inf")]
    for _ in range(3):
        assert rig(x, float("nan"))[0].isnan().all()
    assert rig.counts == (3, 6, 3)


def test_a_call_inside_of_another_plays_nothing() -> None:
    replays, x = Replays(), torch.ones(2)
    stretch = replays.stretch(doubled, ())
    for _ in range(3):
        with replays.call((), False):
            with replays.call((), False):
                assert not replays.is_playing
                inner = stretch(x * 5)[0]
            assert replays.is_playing
            outer = stretch(x)[0]
            assert inner.eq(11).all() and outer.eq(3).all()
    assert replays.told.played == 2


def test_the_newest_forms_wait_until_others_are_idle() -> None:
    rig = Rig(doubled)
    held = [torch.ones(size) for size in range(1, FORMS + 2)]
    for _ in range(2):
        for value in held:
            rig(value)
    assert rig.replays.told.recorded == FORMS
    for _ in range(IDLE):
        rig(held[0])
    rig(held[-1])
    assert rig.replays.told.recorded == FORMS + 1 and len(rig.stretch.recordings()) == FORMS


def test_a_stretch_that_is_called_twice_in_a_call_is_played_once() -> None:
    replays = Replays()
    stretch, x = replays.stretch(doubled, ()), torch.ones(2)
    for number in range(4):
        with replays.call((), False):
            first, second = stretch(x + number)[0], stretch(x * 10)[0]
            assert first.equal((x + number) * 2 + 1) and second.equal(x * 20 + 1)


def copies_of(stretch: recorded_stretch.RecordedStretch) -> list[int]:
    """Positions of the arguments that a play copies."""
    return sorted({at for form in stretch._forms.values() for at in form.copies})


def test_what_stays_is_read_where_it_lies() -> None:
    rig, text = Rig(lambda x, text: (x + text,)), torch.ones(3)
    for number in range(5):
        x = torch.full((3,), float(number))
        assert rig(x, text.add_(1))[0].equal(x + text)
    assert rig.counts == (1, 4, 1) and copies_of(rig.stretch) == [0]
    other = torch.zeros(3)
    assert rig(x, other)[0].equal(x)
    assert rig.counts[0] == 2


def test_kept_results_are_read_where_they_lie() -> None:
    replays, kept = Replays(), {}
    stretch = replays.stretch(lambda x, text: (x + text,), ())
    memo = replays.outside(lambda number: (kept.setdefault(number, torch.full((3,), float(number))),))
    held = []
    for number in (1, 1, 1, 1, 2, 2, 2, 1):
        held.append(torch.full((3,), 10.0))
        with replays.call((held[-1],), False):
            found = replays.copied_out(stretch(held[-1], memo(number)[0]))
        assert float(found[0][0]) == 10 + number
        if len(held) == 4:
            assert copies_of(stretch) == [0]
    assert replays.told.recorded == 2


def test_a_recording_that_was_played_often_is_no_vain_attempt() -> None:
    rig, held = Rig(lambda x, text: (x + text,)), [torch.full((3,), float(number)) for number in range(6)]
    for text in held:
        for _ in range(recorded_stretch.PAID + 2):
            assert rig(torch.ones(3), text)[0].equal(text + 1)
    assert not rig.replays.told.reasons


def test_copies_share_what_results_share() -> None:
    def parts(x: Tensor) -> tuple[Tensor, ...]:
        whole = torch.stack([x, x + 1])
        return whole[0], whole[1], whole.T, x * 2

    rig, x = Rig(parts), torch.zeros(3)
    for _ in range(3):
        first, second, turned, other = rig(x)
        assert (first._version, other._version) == (0, 0)
        first.fill_(7)
        assert turned[:, 0].eq(7).all() and turned[:, 1].equal(second) and second.eq(1).all() and other.eq(0).all()


def test_one_stretch_reads_what_another_gave_without_a_copy() -> None:
    replays = Replays()
    one, other, held = replays.stretch(doubled, ()), replays.stretch(lambda x: (x - 3,), ()), []
    for number in range(6):
        held.append(torch.full((2,), float(number)))
        with replays.call((), False):
            middle = one(held[-1])[0]
            found = replays.copied_out(other(middle))[0]
        assert float(found[0]) == number * 2 - 2
    assert replays.told.recorded == 2
    assert all(not form.copies for form in other._forms.values())


def test_what_two_recordings_give_in_turn_has_a_recording_each() -> None:
    replays, held = Replays(), []
    one, two = replays.stretch(lambda x: (x + 1,), ()), replays.stretch(lambda x: (x + 2,), ())
    last = replays.stretch(lambda x: (x * 10,), ())
    for number in range(12):
        held.append(torch.full((2,), float(number)))
        with replays.call((), False):
            middle = (one if number % 3 else two)(held[-1])[0]
            found = replays.copied_out(last(middle))[0]
        assert float(found[0]) == 10 * (number + (1 if number % 3 else 2))
    assert replays.told.recorded == 5 and not replays.told.reasons and copies_of(last) == [0]


def test_a_chain_is_recorded_in_one_call() -> None:
    replays = Replays()
    chain = [replays.stretch(doubled, ()) for _ in range(24)]
    for number in range(6):
        for size in (2, 3):
            value = torch.full((size,), float(number))
            with replays.call((), False):
                found = value
                for stretch in chain:
                    found = stretch(found)[0]
                found = replays.copied_out(found)
            assert found.eq(value * 2**24 + 2**24 - 1).all()
    assert (replays.told.recorded, replays.told.as_written) == (48, 48)
    assert sum(len(stretch.recordings()) for stretch in chain) == 48


class Agreeing:
    """Ranks that always say what this one says."""

    def all_want(self, own: int) -> bool:
        return True

    def any_says(self, own: Sequence[bool]) -> list[bool]:
        return list(own)


def test_two_results_of_one_recording_have_two_names() -> None:
    replays = Replays()
    replays.consent = Agreeing()  # type: ignore[assignment]
    both, last = replays.stretch(lambda x: (x + 1, x + 100), ()), replays.stretch(lambda x: (x * 2,), ())
    for number in range(8):
        x = torch.full((2,), float(number))
        with replays.call((x,), False):
            found = replays.copied_out(last(both(x)[number % 2]))[0]
        assert float(found[0]) == 2 * (number + (100 if number % 2 else 1))


def test_ranks_that_want_different_things_run_as_written_and_begin_anew() -> None:
    class Differing(Agreeing):
        def all_want(self, own: int) -> bool:
            return False

    rig, x = Rig(doubled), torch.ones(2)
    rig.replays.consent = Differing()  # type: ignore[assignment]
    for _ in range(20):
        assert rig(x)[0].equal(x * 2 + 1)
    assert rig.counts == (0, 0, 20)
    rig.replays.consent = Agreeing()  # type: ignore[assignment]
    for _ in range(4):
        assert rig(x)[0].equal(x * 2 + 1)
    assert rig.counts[0] == 1


def test_a_view_is_made_from_where_the_argument_lies_in_its_storage() -> None:
    rig, base = Rig(lambda part: (part.add_(1)[1:],), written=[0]), torch.zeros(8)
    part = base[4:8]
    for number in range(1, 5):
        assert rig(part)[0].eq(number).all()
    same = torch.from_dlpack(part)
    for number in range(5, 8):
        assert rig(same)[0].eq(number).all() and base[:4].eq(0).all()


def test_tensors_without_memory_show_nothing() -> None:
    rig, empty = Rig(lambda x, none: (x + 1, none.to(torch.int32), none[:0])), torch.empty(0)
    for _ in range(4):
        assert [value.dtype for value in rig(torch.ones(2), empty)] == [torch.float32, torch.int32, torch.float32]
    assert rig.counts == (1, 3, 1)


def test_what_reads_a_recording_is_forgotten_with_it() -> None:
    replays, weight = Replays(), torch.nn.Parameter(torch.ones(2), requires_grad=False)
    one, other = replays.stretch(lambda w, x: (w * x,), ()), replays.stretch(lambda x: (x + 1,), ())
    for _ in range(4):
        with replays.call((), False):
            replays.copied_out(other(one(weight, torch.ones(2))[0]))
    assert len(one.recordings()) == len(other.recordings()) == 1
    one.forget()
    assert other.recordings() == [] and replays.held() == 0


def test_what_may_be_kept_is_given_copies() -> None:
    replays, kept = Replays(), []
    stretch, keep = replays.stretch(doubled, ()), replays.outside(lambda values, *, more: kept.append((values, more)))
    x = torch.zeros(2)
    for _ in range(4):
        with replays.call((), False):
            value = stretch(x.add_(1))[0]
            keep([value], more={"also": value})
    assert [float(values[0][0]) for values, _ in kept] == [3.0, 5.0, 7.0, 9.0]
    assert all(values[0].data_ptr() == more["also"].data_ptr() for values, more in kept)


def test_watched_observed_and_other_threads_calls_run_as_written() -> None:
    rig, x = Rig(doubled), torch.ones(2)
    for _ in range(3):
        rig(x)
    seen = rig.counts
    assert rig(x, is_watched=True)[0].equal(x * 2 + 1)
    with FlopCounterMode(display=False):
        rig(x)
    assert rig.counts == (*seen[:2], seen[2] + 2)

    with rig.replays.call((), False):
        other = threading.Thread(target=rig, args=(x,))
        other.start()
        other.join()
    assert rig.counts == (*seen[:2], seen[2] + 3)


def test_switches_that_choose_kernels_make_another_recording() -> None:
    rig, x, before = Rig(doubled), torch.ones(2), torch.get_float32_matmul_precision()
    for _ in range(3):
        rig(x)
    try:
        torch.set_float32_matmul_precision("medium" if before != "medium" else "high")
        rig(x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert rig.counts == (1, 2, 2)
    with torch.inference_mode():
        rig(x)
    assert rig.counts == (1, 2, 3)


def test_work_that_cannot_be_recorded_runs_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any, args: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorded_stretch, "RECORDER", fails)
    rig, x = Rig(doubled), torch.ones(2)
    for _ in range(4):
        assert rig(x)[0].equal(x * 2 + 1)
    (failure, _) = rig.replays.remarks()
    assert "cannot be recorded as a CUDA graph" in failure.message and "not permitted" in failure.message
    assert failure.kind == "missed" and rig.counts == (0, 0, 4)
    strict = Rig(doubled, strict=True)
    strict(x)
    with pytest.raises(RuntimeError, match="not permitted"):
        strict(x)


def test_full_memory_costs_the_recording_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any, args: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(recorded_stretch, "RECORDER", fails)
    rig, x = Rig(doubled), torch.ones(2)
    for _ in range(4):
        assert rig(x)[0].equal(x * 2 + 1)
    assert rig.replays.told.reasons == {"there was no memory left for a recording": 3}
    monkeypatch.setattr(recorded_stretch, "RECORDER", Recorded)
    for _ in range(IDLE):
        rig(x)
    assert rig.counts[0] == 1, "memory is asked for again"


def test_recordings_hold_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_stretch, "_memory_beside", lambda args: 2.5 * Recorded.held * recorded_stretch.SHARE)
    rigs = [Rig(doubled), Rig(doubled)]
    held = [torch.ones(size) for size in range(1, 4)]
    for _ in range(3):
        for rig in rigs:
            for value in held:
                assert rig(value)[0].equal(value * 2 + 1)
    assert [rig.replays.told.recorded for rig in rigs] == [3, 0], "three are above two and a half"
    assert rigs[1].replays.told.reasons == {"there was no memory left for a recording": 6}


def test_writes_are_counted_as_often_as_they_are_made() -> None:
    def twice(buffer: Tensor, other: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        buffer.add_(x)
        return other.copy_(buffer), buffer.mul_(2)

    rig, (buffer, other, x) = Rig(twice, written=[0, 1]), (torch.ones(2) for _ in "abc")
    for number in range(1, 6):
        rig(buffer, other, x)
        assert (buffer._version, other._version) == (2 * number, number)
    with torch.inference_mode():
        within = [torch.ones(2) for _ in "abc"]
        for _ in range(4):
            rig(*within)
    assert rig.counts[1] == 4 + 3


def test_forgotten_recordings_hold_nothing() -> None:
    rig, x = Rig(doubled), torch.ones(2)
    for _ in range(3):
        rig(x)
    assert rig.replays.held() == Recorded.held
    rig.replays.forget()
    assert rig.replays.held() == 0 and not rig.replays._sources
    assert rig(x)[0].equal(x * 2 + 1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),  # a size
            st.booleans(),  # whether the argument is a new tensor
            st.booleans(),  # whether the buffer is another one
            st.integers(0, 1),  # a number
            st.booleans(),  # whether the weight is replaced
        ),
        min_size=4,
        max_size=14,
    )
)
def test_any_sequence_of_calls_gives_what_eager_gives(calls: list[tuple[int, bool, bool, int, bool]]) -> None:
    def first(weight: Tensor, x: Tensor, buffer: Tensor, number: int) -> tuple[Tensor, ...]:
        made = x * weight + number
        return made, buffer.add_(made.sum()), made.view(-1)

    def second(made: Tensor, flat: Tensor, buffer: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return made + flat.view_as(made) + buffer, x - made

    replays = Replays()
    one, other = replays.stretch(first, [2]), replays.stretch(second, ())
    weight = torch.nn.Parameter(torch.full((1,), 2.0), requires_grad=False)
    held = {size: torch.randn(size, 2) for size in (1, 2, 3)}
    ours, theirs, results = torch.zeros(1), torch.zeros(1), []
    for size, is_new, is_moved, number, is_replaced in calls:
        x = held[size] = torch.randn(size, 2) if is_new else held[size].add_(1)
        if is_moved:
            ours = ours.clone()
        if is_replaced:
            weight.data = weight.data + 1
        made, theirs, flat = first(weight, x, theirs, number)
        wanted = [value.clone() for value in (*second(made, flat, theirs, x), made)]
        with replays.call((), False):
            made, same, flat = one(weight, x, ours, number)
            found = replays.copied_out((*other(made, flat, same, x), made))
        results.append((found, wanted))
        assert same is ours
        for mine, his in results:  # earlier ones too
            assert all(torch.equal(a, b) for a, b in zip(mine, his, strict=True))
