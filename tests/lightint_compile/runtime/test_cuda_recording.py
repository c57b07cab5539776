"""CUDA graphs themselves: what fails leaves nothing behind, and threads and streams do not meet."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from lightint_compile.runtime.cuda_recording import CudaRecording

pytestmark = pytest.mark.gpu


def products(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    for _ in range(8):
        x = (x @ weight).tanh()
    return (x,)


def test_a_recording_that_fails_leaves_its_stream_and_says_why() -> None:
    x, before = torch.ones(4, device="cuda"), torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match=r"capture|captur"):
        CudaRecording(lambda value: (value * float(value.sum()),), [x])
    assert torch.cuda.current_stream() == before
    assert float((x + 1).sum()) == 8
    recording = CudaRecording(lambda value: (value * 3,), [x])
    recording.play([], [])
    assert recording.outputs[0].eq(3).all()


def test_an_error_of_the_function_is_the_one_that_is_raised() -> None:
    def fails(value: Tensor) -> tuple[Tensor, ...]:
        value = value * 2
        raise KeyError("mine")

    before = torch.cuda.current_stream()
    with pytest.raises(KeyError, match="mine"):
        CudaRecording(fails, [torch.ones(4, device="cuda")])
    assert torch.cuda.current_stream() == before


def test_threads_record_one_after_the_other_and_play_beside_each_other() -> None:
    weight, found = torch.randn(512, 512, device="cuda") / 23, {}

    def run(number: int) -> None:
        x = torch.randn(512, 512, device="cuda", generator=torch.Generator("cuda").manual_seed(number))
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            products(x, weight)
            recording = CudaRecording(products, [x, weight])
            for _ in range(50):
                recording.play([], [])
            torch.cuda.current_stream().synchronize()
            found[number] = recording.outputs[0], products(x, weight)[0]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for played, computed in found.values():
        torch.testing.assert_close(played, computed)


def test_a_play_on_another_stream_waits_for_the_last_one() -> None:
    x, weight = torch.randn(2048, 2048, device="cuda"), torch.randn(2048, 2048, device="cuda") / 45
    products(x, weight)
    copy = x.clone()
    recording, results = CudaRecording(products, [copy, weight]), []
    for number in range(6):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            recording.play([copy], [x * number])
            results.append(recording.outputs[0].clone())
    torch.cuda.synchronize()
    for number, result in enumerate(results):
        torch.testing.assert_close(result, products(x * number, weight)[0])
