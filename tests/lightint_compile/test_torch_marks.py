"""What torch.compile was given is found again, and calls run their own code for as long as somebody asks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightint_compile.torch_marks import calls_are_eager, eager_calls, uncompiled


def function(x: torch.Tensor) -> torch.Tensor:
    return x + 1


compiled = functools.partial(torch.compile, backend="eager")


def test_what_was_compiled_is_found_under_every_wrapper() -> None:
    module = nn.Linear(2, 2)
    assert uncompiled(compiled(module)) is module and uncompiled(module) is module
    assert uncompiled(compiled(function)) is function and uncompiled(function) is function
    x = torch.ones(1, 2)
    for made in (compiled(compiled(module)), compiled(module.forward)):  # torch makes functions around both
        assert torch.equal(uncompiled(made)(x), module(x))
    disabled = torch.compiler.disable(function)
    assert uncompiled(disabled) is disabled and uncompiled(3) == 3

    @functools.wraps(compiled(function))
    def around(x: torch.Tensor) -> torch.Tensor:
        return 2 * function(x)

    assert uncompiled(around)(torch.ones(1)) in (2.0, 4.0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_calls_are_eager_until_the_last_one_is_done(order: tuple[int, int]) -> None:
    """Two threads that enter one after the other, and leave in either order."""
    inside, leave = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def run(number: int) -> None:
        with eager_calls():
            inside[number].set()
            leave[number].wait(10)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for number, thread in enumerate(threads):
        thread.start()
        inside[number].wait(10)
    first, second = order
    leave[first].set()
    threads[first].join()
    assert calls_are_eager()
    leave[second].set()
    threads[second].join()
    assert not calls_are_eager()


def test_the_stance_of_the_user_stays() -> None:
    with torch.compiler.set_stance("force_eager"):
        with eager_calls(), eager_calls():
            assert calls_are_eager()
        assert calls_are_eager()
    assert not calls_are_eager()
    ran: list[Callable[..., Any]] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        ran.append(graph)
        return graph.forward

    made = torch.compile(function, backend=backend)
    with eager_calls():
        made(torch.ones(3))
    assert not ran
    made(torch.ones(3))
    assert len(ran) == 1
