"""A memo answers only for the very tensors it saw, unwritten since."""

from __future__ import annotations

import gc
import threading

import torch

from lightint_compile.memo import SLOTS, Memo


def _doubled() -> Memo:
    return Memo(lambda x, n: (x * n,))


def test_same_tensor_same_result() -> None:
    memo, x = _doubled(), torch.randn(3)
    first, second = memo(x, 2), memo(x, 2)
    assert first[0] is second[0]
    assert (memo.hits, memo.misses) == (1, 1)


def test_a_write_is_seen() -> None:
    memo, x = _doubled(), torch.ones(3)
    memo(x, 2)
    x.add_(1)
    assert memo(x, 2)[0].tolist() == [4, 4, 4]


def test_an_equal_tensor_is_another_one() -> None:
    memo = _doubled()
    memo(torch.ones(3), 2)
    memo(torch.ones(3), 2)
    assert memo.misses == 2


def test_a_view_is_told_by_what_it_views_and_where() -> None:
    memo, x = Memo(lambda x: (x.sum(),)), torch.arange(12.0).reshape(3, 4)
    assert memo(x[1])[0] is memo(x[1])[0]
    assert memo(x[2])[0].item() == 38
    assert memo(x.T[1])[0].item() == 15
    assert memo(x.view(torch.int32)[1])[0].item() != 22
    assert (memo.hits, memo.misses) == (1, 4)
    x[1].add_(1)
    assert memo(x[1])[0].item() == 26
    assert memo(x.clone()[1])[0] is not memo(x[1])[0]


def test_another_number_is_another_call() -> None:
    memo, x = _doubled(), torch.ones(1)
    assert memo(x, 2)[0].item() == 2
    assert memo(x, 3)[0].item() == 3


def test_two_prompts_in_turn_both_stay() -> None:
    memo, prompts = _doubled(), (torch.randn(3), torch.randn(3))
    for _ in range(3):
        for prompt in prompts:
            memo(prompt, 2)
    assert memo.misses == 2


def test_slots_are_bounded_and_the_dead_leave_first() -> None:
    memo = _doubled()
    for _ in range(3 * SLOTS):
        memo(torch.randn(2), 2)
        gc.collect()
    kept = torch.randn(2)
    memo(kept, 2)
    assert len(memo._entries) <= SLOTS
    hits = memo.hits
    memo(kept, 2)
    assert memo.hits == hits + 1


def test_inference_tensors_are_never_kept() -> None:
    memo = _doubled()
    with torch.inference_mode():
        x = torch.ones(2)
        memo(x, 2)
        x.add_(1)
        assert memo(x, 2)[0].tolist() == [4, 4]
    assert memo.hits == 0


def test_reset_forgets() -> None:
    memo, x = _doubled(), torch.ones(2)
    memo(x, 2)
    memo.reset()
    memo(x, 2)
    assert memo.misses == 2


def test_threads_get_their_own_answer() -> None:
    memo = _doubled()
    wrong: list[int] = []

    def work(value: int) -> None:
        x = torch.full((2,), float(value))
        for _ in range(50):
            if memo(x, 2)[0][0].item() != 2 * value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
