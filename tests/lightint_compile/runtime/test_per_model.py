"""Whose state a call has: modules that share compiled code are told apart, and nothing holds their tensors."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

from lightint_compile.runtime.per_model import PerModel


class State:
    pass


def state_of(owners: PerModel[State], *args) -> State:
    with owners.call(args):
        return owners.current()


def weight(value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.full((3,), value), requires_grad=False)


def test_each_model_has_one_state_and_calls_without_parameters_share_one() -> None:
    owners, one, other = PerModel(State), weight(), weight()
    mine = state_of(owners, torch.ones(1), one, other)
    assert state_of(owners, one) is mine and owners.latest is mine
    assert state_of(owners, other) is not mine
    assert state_of(owners, torch.ones(1)) is state_of(owners) is not mine
    assert owners.of([weight(), one]) is mine and owners.of([weight()]) is state_of(owners)
    assert len(owners.all()) == 3


def test_writes_and_new_storage_leave_the_state() -> None:
    owners, one = PerModel(State), weight()
    mine = state_of(owners, one)
    one.data = torch.ones(3)
    one.data.add_(1)
    assert state_of(owners, one) is mine


def test_drivers_do_not_share_what_they_know_of_a_model() -> None:
    first, second, one = PerModel(State), PerModel(State), weight()
    assert state_of(first, one) is not state_of(second, one)
    assert first.of([one]) is state_of(first, one)


def test_a_state_dies_with_its_model() -> None:
    owners, one = PerModel(State), weight()
    mine = weakref.ref(state_of(owners, one))
    state_of(owners)
    del one
    gc.collect()
    assert mine() is None and len(owners.all()) == 1


def test_nothing_refers_weakly_to_a_parameter_so_that_it_can_be_swapped() -> None:
    owners, one, other = PerModel(State), weight(), weight(1.0)
    mine = state_of(owners, one)
    assert not weakref.getweakrefs(one)
    torch.utils.swap_tensors(one, other)
    assert one.tolist() == [1, 1, 1]
    assert isinstance(state_of(owners, one), State) and state_of(owners, other) is mine, "it went with the content"


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda parameter: pickle.loads(pickle.dumps(parameter)),
        lambda parameter: torch.load(_saved(parameter), weights_only=True),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_is_another_model(copied) -> None:
    owners, one = PerModel(State), weight()
    mine = state_of(owners, one)
    twin = copied(one)
    assert torch.equal(twin, one) and state_of(owners, twin) is not mine
    assert owners.of([twin]) is not mine


def _saved(parameter: nn.Parameter) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(parameter, file)
    file.seek(0)
    return file


class Textual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.query, self.key = nn.Linear(12, 16), nn.Linear(8, 16), nn.Linear(16, 16)

    def forward(self, video, text):
        words = self.text(text)
        return torch.nn.functional.scaled_dot_product_attention(self.query(video), self.key(words), words)


@pytest.mark.parametrize("preset", ["exact", "all"])
def test_parameters_may_be_swapped_after_a_call(preset: str) -> None:
    torch._dynamo.reset()
    module = Textual().eval().requires_grad_(False)
    compiled = torch.compile(module, backend="lightint", options={"preset": preset, "delegate": "eager"})
    video, text = torch.randn(1, 6, 8), torch.randn(1, 5, 12)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with torch.no_grad():
            for dtype in (torch.float32, torch.float64):
                module.to(dtype)
                torch.testing.assert_close(
                    compiled(video.to(dtype), text.to(dtype)), module(video.to(dtype), text.to(dtype))
                )
            module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
            torch.testing.assert_close(compiled(video.double(), text.double()), module(video.double(), text.double()))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
