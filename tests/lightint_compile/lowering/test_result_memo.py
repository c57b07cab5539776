"""A memo answers only for what it saw: content decides, not which tensor holds it."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from lightint_compile.lowering.result_memo import OVERWRITTEN, SLOTS, Memo, Site
from lightint_compile.runtime import content_sums as checksums
from lightint_compile.runtime.content_check import Watch
from lightint_compile.runtime.streams import Order, Produced


class Kept:
    """A memo of one call whose arguments are the program's."""

    def __init__(self, function=lambda x, n: (x * n,), inputs=1):
        self.watch = Watch(range(inputs))
        self.memo = Memo(function, "memo", Site("region", tuple(range(inputs))), self.watch)

    def __call__(self, *args):
        with self.watch.call(args):
            return self.memo(*args)

    @property
    def counts(self):
        return self.memo.hits, self.memo.misses


def test_the_same_content_is_answered_from_memory_wherever_it_lies() -> None:
    kept, x = Kept(), torch.randn(3)
    first = kept(x, 2)
    assert kept(x, 2) is first and kept(x.clone(), 2) is first
    assert kept.counts == (2, 1)


def writes():
    def storage(x, y):
        x.untyped_storage().copy_(y.contiguous().untyped_storage())

    return {
        "in place": lambda x, y: x.copy_(y),
        "data in place": lambda x, y: x.data.copy_(y),
        "data added to": lambda x, y: x.data.add_(y - x),
        "data replaced": lambda x, y: setattr(x, "data", y.clone()),
        "detached": lambda x, y: x.detach().copy_(y),
        "numpy": lambda x, y: x.detach().numpy().__setitem__(..., y.numpy()),
        "dlpack": lambda x, y: torch.from_dlpack(x.detach()).copy_(y),
        "storage": storage,
        "set_": lambda x, y: x.set_(y.clone()),
        "a view": lambda x, y: x.view(-1).data.copy_(y.view(-1)),
    }


@pytest.mark.parametrize("way", writes())
@pytest.mark.parametrize("parameter", [False, True], ids=["tensor", "parameter"])
def test_every_way_of_writing_is_seen(way, parameter) -> None:
    x = torch.ones(2, 3)
    x = nn.Parameter(x, requires_grad=False) if parameter else x
    kept = Kept()
    kept(x, 2)
    with torch.no_grad():
        writes()[way](x, torch.full((2, 3), 5.0))
    assert kept(x, 2)[0].eq(10).all()
    assert kept(x, 2)[0].eq(10).all() and kept.counts == (1, 2)


def test_one_bit_anywhere_is_another_content() -> None:
    kept, x = Kept(), torch.zeros(100_003, dtype=torch.uint8)
    kept(x, 1)
    for place in (0, 1, 50_000, 100_002):
        x[place] ^= 1
        assert torch.equal(kept(x, 1)[0], x)
    assert kept.counts == (0, 5)


def test_another_reading_of_the_same_memory_is_another_content() -> None:
    kept, x = Kept(lambda x, n: (x.clone(),)), torch.arange(12.0).reshape(3, 4)
    readings = [x, x.T, x.view(4, 3), x.view(torch.int32), x[1], x[:, 1], x[:, :2], x.expand(2, 3, 4), x[:0], x[:, :0]]
    for _ in range(2):
        for reading in readings[:SLOTS]:
            assert torch.equal(kept(reading, 0)[0], reading)
    assert kept.counts == (SLOTS, SLOTS)
    for reading in readings:
        assert torch.equal(kept(reading, 0)[0], reading)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64],
)
def test_every_dtype_is_told(dtype) -> None:
    kept = Kept(lambda x, n: (x.clone(),))
    x = torch.ones(5, 3).to(dtype)
    y = torch.zeros(5, 3).to(dtype)
    assert kept(x, 0) is kept(x.clone(), 0)
    assert kept(y, 0) is not kept(x, 0) and kept.counts == (2, 2)


def test_bits_that_change_the_reading_are_told() -> None:
    kept, x = Kept(lambda x, n: (x.resolve_conj().resolve_neg().clone(),)), torch.randn(3, dtype=torch.complex64)
    assert torch.equal(kept(x, 0)[0], x) and torch.equal(kept(x.conj(), 0)[0], x.conj().resolve_conj())
    assert torch.equal(kept(x.imag, 0)[0], x.imag)
    assert torch.equal(kept(x.conj().imag, 0)[0], x.conj().resolve_conj().imag)


def test_numbers_are_part_of_the_call_with_their_types() -> None:
    kept, x = Kept(lambda x, n: (x.new_tensor(n, dtype=torch.float64), n)), torch.ones(1)
    for number in (2, 2.0, True, 1, 0.0, -0.0, None):
        assert type(kept(x, number if number is not None else 7)[1]) is type(number if number is not None else 7)
    assert kept.counts == (0, 7)
    assert str(kept(x, -0.0)[1]) == "-0.0"


def test_prompts_may_alternate() -> None:
    kept, prompts = Kept(), (torch.randn(3), torch.randn(3))
    for _ in range(3):
        for prompt in prompts:
            kept(prompt, 2)
    assert kept.counts == (4, 2)


def test_one_buffer_may_be_filled_with_two_prompts_in_turn() -> None:
    kept, buffer, prompts = Kept(), torch.zeros(3), (torch.randn(3), torch.randn(3))
    for _ in range(3):
        for prompt in prompts:
            buffer.copy_(prompt)
            assert torch.equal(kept(buffer, 2)[0], prompt * 2)
    assert kept.counts == (4, 2)


def test_what_was_overwritten_makes_room_and_so_does_what_is_old() -> None:
    kept, weight = Kept(), torch.zeros(2)
    for value in range(6):
        weight.fill_(value)
        kept(weight, 2)
    assert len(kept.memo._entries) == 1 + OVERWRITTEN
    held = [torch.full((2,), float(value)) for value in range(9)]
    for each in held:
        kept(each, 2)
    assert len(kept.memo._entries) == SLOTS


def test_tensors_of_inference_mode_are_kept_as_well_and_apart() -> None:
    kept = Kept()
    with torch.inference_mode():
        x = torch.ones(2)
        first = kept(x, 2)
        assert kept(x, 2) is first
        x.add_(1)
        assert kept(x, 2)[0].tolist() == [4, 4]
    y = torch.full((2,), 2.0)
    assert not kept(y, 2)[0].is_inference() and kept.counts == (1, 3)


def test_reset_forgets() -> None:
    kept, x = Kept(), torch.ones(2)
    kept(x, 2)
    kept.memo.reset()
    kept(x, 2)
    assert kept.counts == (0, 2)


def test_a_result_that_is_a_view_of_its_source_gets_memory_of_its_own() -> None:
    kept, first, second = Kept(lambda x, n: (x.view(-1), x)), torch.ones(2, 2), torch.ones(2, 2)
    kept(first, 0)
    first.fill_(3)
    assert kept(second, 0)[0].tolist() == [1, 1, 1, 1] and kept.counts == (1, 1)
    assert all(kept(second, 0)[i].untyped_storage().data_ptr() != second.data_ptr() for i in (0, 1))


def test_kept_results_have_memory_of_their_own_and_the_strides_that_they_were_made_with() -> None:
    made = torch.arange(60.0).reshape(3, 4, 5)
    ways = [made, made.permute(2, 0, 1), made[:, 1:3], made[0, 0].expand(7, 5), made[..., ::2], made[:0], made[1, 1, 1]]
    kept = Kept(lambda x, n: (*ways, ways[0]))
    found = kept(torch.ones(1), 0)
    for way, result in zip(ways, found, strict=False):
        assert torch.equal(way, result) and result.stride() == way.stride()
    memory = [each.untyped_storage().data_ptr() for each in (made, *found) if each.numel()]
    assert len(set(memory)) == len(memory)
    made.fill_(0)
    assert found[0].sum() > 0 and kept(torch.ones(1), 0) is found


class Wrapped(torch.Tensor):
    pass


def test_what_cannot_be_read_is_computed_and_told_once(caplog) -> None:
    kept = Kept(lambda x, n: (x.clone(),))
    unreadable = [
        torch.ones(2).as_subclass(Wrapped),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ]
    with caplog.at_level("INFO", "lightint_compile"):
        for each in unreadable:
            kept(each, 0), kept(each, 0)
    assert kept.counts == (0, 0)
    assert len(caplog.messages) == 1 and "computed in every call: of an input, it is a Wrapped" in caplog.messages[0]


def test_under_a_transformation_of_functions_nothing_is_kept() -> None:
    kept, x = Kept(), torch.randn(4, 3)
    assert torch.equal(torch.vmap(lambda row: kept(row, 2)[0])(x), x * 2)
    assert kept.counts == (0, 0)


def test_outside_of_a_call_nothing_is_kept() -> None:
    kept = Kept()
    assert kept.memo(torch.ones(1), 2)[0].item() == 2 and kept.counts == (0, 0)


def test_results_made_from_results_are_told_by_those() -> None:
    watch = Watch([0, 1])
    first = Memo(lambda x: (x + 1,), "first", Site("a", (0,)), watch)
    second = Memo(lambda y, w: (y * w,), "second", Site("b", (1,), ("first",)), watch)

    def program(x, w):
        with watch.call((x, w)):
            return second(first(x)[0].view(-1), w)[0]

    x, w = torch.ones(2, 2), torch.full((4,), 3.0)
    for _ in range(2):
        assert program(x, w).tolist() == [6] * 4
    assert (second.hits, second.misses) == (1, 1)
    x.data.add_(1)
    assert program(x, w).tolist() == [9] * 4
    w.data.mul_(2)
    assert program(x, w).tolist() == [18] * 4
    assert (first.hits, first.misses, second.misses) == (2, 2, 3)


def test_what_was_made_from_a_result_that_is_gone_makes_room() -> None:
    watch = Watch([0, 1])
    first = Memo(lambda x: (x + 1,), "first", Site("a", (0,)), watch)
    second = Memo(lambda y, w: (y * w,), "second", Site("b", (1,), ("first",)), watch)
    x, w = torch.zeros(2), torch.ones(2)
    for value in range(6):
        x.numpy()[...] = value
        with watch.call((x, w)):
            second(first(x)[0], w)
    assert len(first._entries) == len(second._entries) == 1 + OVERWRITTEN
    first.reset()
    with watch.call((x, w)):
        second(first(x)[0], w)
    assert len(second._entries) == 1


def test_what_comes_from_a_result_that_was_not_kept_is_not_kept_either() -> None:
    watch = Watch([0])
    first = Memo(lambda x: (x.clone(),), "first", Site("a", (0,)), watch)
    second = Memo(lambda y: (y * 2,), "second", Site("b", (), ("first",)), watch)
    for value in (1.0, 2.0):
        x = torch.full((2,), value).as_subclass(Wrapped)
        with watch.call((x,)):
            assert second(first(x)[0])[0].tolist() == [2 * value] * 2
    assert second.misses == 0


def test_one_check_serves_all_and_reads_once(monkeypatch) -> None:
    reads, watch = [], Watch([0, 1])
    monkeypatch.setattr(checksums, "host_sums", lambda memory: reads.append(len(memory.sizes)) or memory.sizes)
    memos = [Memo(lambda x: (x + 1,), str(n), Site("a", (n % 2,)), watch) for n in range(6)]
    x, y = torch.ones(1), torch.zeros(1)
    with watch.call((x, y)):
        for number, memo in enumerate(memos):
            memo((x, y)[number % 2])
    assert reads == [2]


def test_kept_results_hold_no_argument() -> None:
    kept, x = Kept(), torch.randn(1000)
    kept(x, 2)
    assert not weakref.getweakrefs(x)
    assert {type(each).__name__ for each in gc.get_referrers(x)} <= {"frame"}


def test_two_threads_never_see_each_others_argument() -> None:
    kept, wrong = Kept(), []

    def use(value: float) -> None:
        x = torch.empty(64)
        for turn in range(200):
            x.data.fill_(value + turn % 3)
            if kept(x, 2)[0][0].item() != 2 * (value + turn % 3):
                wrong.append(value)

    threads = [threading.Thread(target=use, args=(10.0 * value,)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Event:
    def record(self, stream):
        stream.log.append("record")


class Stream:
    def __init__(self):
        self.log = []

    def wait_event(self, event):
        self.log.append("wait")

    def wait_stream(self, other):
        self.log.append(("wait", other))


class OnDevice:
    """Stands for a tensor of a device: only what streams are told is looked at."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self):
        self.streams = []

    def record_stream(self, stream):
        self.streams.append(stream)


def test_another_stream_waits_for_what_was_produced_and_the_same_does_not(monkeypatch) -> None:
    maker, reader, tensor = Stream(), Stream(), OnDevice()
    now = [maker]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[0])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    produced = Produced([tensor, torch.ones(1)])
    produced.wait()
    assert maker.log == ["record"] and not tensor.streams
    now[0] = reader
    produced.wait()
    assert reader.log == ["wait"] and tensor.streams == [reader]


def test_calls_on_several_streams_take_turns(monkeypatch) -> None:
    streams, tensor, order = [Stream(), Stream()], OnDevice(), Order()
    now = [streams[0]]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[0])
    order.enter([tensor]), order.enter([tensor])
    assert not streams[0].log
    now[0] = streams[1]
    order.enter([tensor])
    assert streams[1].log == [("wait", streams[0])] and tensor.streams == [streams[1]]


@pytest.mark.gpu
def test_a_kept_result_is_finished_before_another_stream_reads_it() -> None:
    kept = Kept(lambda x, n: (torch.cuda._sleep(100_000_000), x * n)[1:])
    x, streams = torch.ones(1 << 20, device="cuda"), [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            result = kept(x, 3)[0].clone()
    torch.cuda.synchronize()
    assert result.eq(3).all() and kept.counts == (1, 1)


@pytest.mark.gpu
def test_while_a_graph_is_captured_nothing_is_read() -> None:
    kept, x = Kept(), torch.ones(8, device="cuda")
    kept(x, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = kept(x, 2)[0]
    x.fill_(4)
    graph.replay()
    torch.cuda.synchronize()
    assert result.eq(8).all()
