"""Results share memory with each other, with inputs and with later calls only where eager's do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightint_compile import capture
from lightint_compile.capture.functional import may_share_unsaid, shares_memory

#: Composite operators that hand back memory of an operand and do not say so in their schema, for [B, N, C] tensors.
UNSAID = {
    "einsum": lambda e: torch.einsum("bld->bdl", e),
    "einsum-diagonal": lambda e: torch.einsum("bbd->bd", e[:, :2]),
    "broadcast_tensors": lambda e: torch.broadcast_tensors(e, e.new_zeros(1, 1, 1))[0],
    "broadcast-second": lambda e: torch.broadcast_tensors(e.new_zeros(1, 1, 1), e)[1],
    "sum_to_size": lambda e: e.sum_to_size(e.shape),
    "type_as": lambda e: e.type_as(e.new_zeros(())),
    "dropout": lambda e: F.dropout(e, 0.1, False),
    "feature_dropout": lambda e: F.dropout1d(e, 0.1, False),
    "alpha_dropout": lambda e: F.alpha_dropout(e, 0.1, False),
    "atleast_2d": lambda e: torch.atleast_2d(e),
    "atleast_3d": lambda e: torch.atleast_3d(e[0])[..., 0],
    "atleast-list": lambda e: torch.atleast_1d([e, e.new_zeros(())])[0],
    "conj_physical": lambda e: torch.conj_physical(e),
    "cartesian_prod": lambda e: torch.cartesian_prod(e[0, 0]),
    "meshgrid": lambda e: torch.meshgrid(e[0, 0], e[0, 1], indexing="ij")[1],
    "unsafe_chunk": lambda e: torch.unsafe_chunk(e, 2, 1)[1],
    "unsafe_split": lambda e: torch.unsafe_split(e, 2, 1)[1],
}

#: Operators that say in their schema that they may share, and copies.
SAID = {
    "contiguous": lambda e: e.contiguous(),
    "reshape": lambda e: e.reshape(-1),
    "reshape-copies": lambda e: e.transpose(0, 1).reshape(-1),
    "flatten": lambda e: e.flatten(1),
    "expand_as": lambda e: e.expand_as(e),
    "to": lambda e: e.to(torch.float32),
    "to-copy": lambda e: e.to(torch.float32, copy=True),
    "clone": lambda e: e.clone(),
    "chunk": lambda e: e.chunk(2, 1)[1],
    "unbind": lambda e: e.unbind(1)[0],
    "view": lambda e: e.view(e.shape),
    "alias": lambda e: e.detach(),
}

OPERATORS = UNSAID | SAID


class Texts(nn.Module):
    """Two values of the text in memory of their own, the second through ``view``; equal, so that they are merged."""

    def __init__(self, view) -> None:
        super().__init__()
        self.text, self.video, self.view = nn.Linear(12, 16), nn.Linear(8, 16), view

    def forward(self, video, text):
        first, second = torch.sin(self.text(text)), torch.sin(self.text(text))
        return self.video(video), first, self.view(second)


class Kept(Texts):
    """One value of the text that the caller gets a view of, and that may be kept between calls."""

    def forward(self, video, text):
        value = torch.sin(self.text(text))
        return self.video(video) + value.sum(), self.view(value)


def compiled(module):
    torch._dynamo.reset()
    return torch.compile(module, backend="lightint", options={"preset": "exact", "delegate": "eager", "strict": True})


def made(kind, view):
    torch.manual_seed(0)
    return kind(view).eval().requires_grad_(False), (torch.randn(2, 6, 8), torch.randn(2, 4, 12))


def all_but_every_third_slow(first: int) -> list[Any]:
    """Names of operators; each test of them begins elsewhere, so that together they run most by default."""
    return [
        pytest.param(name, marks=() if place % 3 == first else pytest.mark.slow) for place, name in enumerate(OPERATORS)
    ]


@pytest.mark.parametrize("name", all_but_every_third_slow(0))
@torch.no_grad()
def test_equal_outputs_stay_two_memories(name) -> None:
    module, args = made(Texts, OPERATORS[name])
    expected = module(*args)
    _, first, second = compiled(module)(*args)
    first.fill_(7)
    torch.testing.assert_close(second, expected[2])


@pytest.mark.parametrize("name", all_but_every_third_slow(1))
@torch.no_grad()
def test_what_the_caller_writes_is_not_what_the_next_call_returns(name) -> None:
    module, args = made(Kept, OPERATORS[name])
    function, expected = compiled(module), module(*args)
    for _ in range(3):
        result = function(*args)
        torch.testing.assert_close(result, expected)
        (result[1] if name != "meshgrid" else result[1][0]).fill_(7)  # the rows of a mesh are one memory


@pytest.mark.parametrize("name", OPERATORS)
@torch.no_grad()
def test_a_write_through_a_view_reaches_what_it_views(name) -> None:
    def function(x):
        value = torch.sin(x)
        view = OPERATORS[name](value)
        (view if name != "meshgrid" else view[0]).mul_(2)
        return value + 1

    x = torch.randn(2, 4, 16)
    torch.testing.assert_close(compiled(function)(x), function(x))


@pytest.mark.parametrize("name", OPERATORS)
@torch.no_grad()
def test_an_input_seen_through_a_view_is_the_callers(name) -> None:
    function = compiled(lambda x: (OPERATORS[name](x), x.sum()))
    x, y = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    expected = OPERATORS[name](y).untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    function(x)
    result = function(y)[0]
    assert (result.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()) is expected


@pytest.mark.parametrize("name", UNSAID)
@torch.no_grad()
def test_captured_operators_share_only_what_they_say(name) -> None:
    program = capture.trace(lambda x: OPERATORS[name](torch.sin(x)), (torch.randn(2, 4, 16),))
    for node in program.calls():
        if may_share_unsaid(node.target):
            values = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            assert not shares_memory(node.target, *values), node.target


@torch.no_grad()
def test_a_constant_is_not_the_callers() -> None:
    function = compiled(lambda x: (x + 1, torch.tensor([1.0, 2.0])))
    x = torch.randn(2)
    for _ in range(2):
        constant = function(x)[1]
        torch.testing.assert_close(constant, torch.tensor([1.0, 2.0]))
        constant.zero_()


#: Operators with several results, of tensors whose last axis holds at least two elements.
SEVERAL = {
    "topk": lambda e: e.topk(2, -1),
    "sort": lambda e: e.sort(-1),
    "max": lambda e: e.max(-1),
    "var_mean": lambda e: torch.var_mean(e, -1),
    "batch_norm": lambda e: (F.batch_norm(e.transpose(1, 2), e.new_zeros(e.shape[-1]), e.new_ones(e.shape[-1])),),
    "svd": lambda e: torch.linalg.svd(e[0], full_matrices=False),
    "unbind": lambda e: e.unbind(1),
}


class Several(nn.Module):
    """Results of one operator on what depends on the prompt alone: as they are, through views, and a second time."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.video, self.wide, self.text = nn.Linear(8, 16), nn.Linear(12, 64), nn.Linear(64, 16)
        self.several = SEVERAL[name]

    def forward(self, video, text):
        value = self.text(F.gelu(self.wide(text)))
        results = self.several(value)
        return (*results, *(each[:1] for each in self.several(value)), *self.several(value + 1), self.video(video))


@pytest.mark.parametrize("name", SEVERAL)
@torch.no_grad()
def test_each_result_of_an_operator_with_several_is_the_callers(name) -> None:
    torch.manual_seed(0)
    module = Several(name).eval()
    function = compiled(module)
    for place in range(3):
        x, text = torch.ones(2, 3, 8), torch.linspace(-1, 1, 120).reshape(2, 5, 12)
        expected, found = module(x, text), function(x, text)
        for results in (expected, found):
            results[place % len(results)].fill_(7)
        torch.testing.assert_close(found, expected)
        assert [memory_places(found), memory_places(module(x, text))] == [memory_places(expected)] * 2


def memory_places(tensors) -> list[int]:
    """For each tensor the first with the same memory."""
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    return [places.index(place) for place in places]


class Weights(Texts):
    """Views of weights that want gradients beside work that is rewritten, some of them detached."""

    def forward(self, video, text):
        weight = self.text.weight
        parts = (
            weight.mT,
            weight.detach().flatten()[:3],
            weight[:1].detach(),
            weight.detach(),
            weight[:1],
            text.detach(),
        )
        return super().forward(video, text)[0], *(each.view_as(each) for each in parts), parts[3]


@pytest.mark.parametrize("delegate", ["eager", "inductor"])
@torch.no_grad()
def test_a_detached_view_of_a_weight_wants_no_gradients(delegate) -> None:
    torch._dynamo.reset()
    module, (video, text) = Weights(torch.sin), made(Texts, torch.sin)[1]
    text.requires_grad_()
    options = {"preset": "exact", "delegate": delegate, "strict": True}
    results = torch.compile(module, backend="lightint", options=options)(video, text)
    expected = module(video, text)
    assert [each.requires_grad for each in results] == [each.requires_grad for each in expected]
    for result, each in zip(results, expected, strict=True):
        torch.testing.assert_close(result, each)


@pytest.mark.parametrize("delegate", ["eager", "inductor"])
@torch.no_grad()
def test_a_result_that_the_caller_holds_wants_gradients_when_eager_s_would(delegate) -> None:
    """Asked for after the call: a view of a weight follows it, what was detached does not."""
    torch._dynamo.reset()
    module, (video, text) = Weights(torch.sin).requires_grad_(False), made(Texts, torch.sin)[1]
    options = {"preset": "exact", "delegate": delegate, "strict": True}
    held = [call(video, text) for call in (module, torch.compile(module, backend="lightint", options=options))]
    for wanted in (True, False):
        module.requires_grad_(wanted)
        text.requires_grad_(wanted)
        expected, found = ([each.requires_grad for each in results] for results in held)
        assert found == expected
