"""Layouts of watched arguments are compared at once, and no change of one is missed."""

from __future__ import annotations

import pytest
import torch

from lightint_compile.runtime.content_check import Check, Watch
from lightint_compile.runtime.content_sums import layout_of

CHANGES = {
    "transposed": lambda x: x.t(),
    "narrowed": lambda x: x[:2],
    "of other sizes": lambda x: x.reshape(2, 8),
    "conjugated": lambda x: x.conj(),
    "of another dtype": lambda x: x.real.contiguous(),
    "seen as real": lambda x: torch.view_as_real(x),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "a number": lambda x: 3,
    "itself": lambda x: x,
    "a copy": lambda x: x.clone(),
    "with gaps": lambda x: torch.cat([x, x], 1)[:, :4],
    "sparse": lambda x: x.to_sparse(),
    "with a gradient": lambda x: x.detach().clone().requires_grad_(),
    "negative": lambda x: torch.complex(x.real, x.imag).conj().imag[:, None].squeeze(1),
}


def surveyed(watch: Watch, values: list[object]) -> tuple[object, ...]:
    survey = watch.survey(values)
    return survey.layouts, [group.slots for group in survey.groups], survey.blocked


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("first", CHANGES)
@pytest.mark.parametrize("second", CHANGES)
def test_a_survey_is_that_of_the_values_whatever_came_before(first, second, grad) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4, dtype=torch.complex64)
    watch = Watch(range(3))
    with torch.set_grad_enabled(grad):
        for change in (first, second, first):
            values = [torch.ones(3), CHANGES[change](x), 2.5]
            assert surveyed(watch, values) == surveyed(Watch(range(3)), values)


def test_an_unchanged_layout_is_told_without_looking_at_each(monkeypatch) -> None:
    looked = []
    monkeypatch.setattr(
        "lightint_compile.runtime.content_check.layout_of", lambda tensor: looked.append(tensor) or layout_of(tensor)
    )
    watch, values = Watch(range(3)), [torch.ones(3), torch.zeros(2, 2), 7]
    contents = [Check(values, watch).content((0, 1, 2)) for _ in range(3)]
    assert len(looked) == 2 and contents[0] == contents[1] == contents[2]
    values[1].data.add_(1)
    assert Check(values, watch).content((0, 1, 2)) != contents[0] and len(looked) == 2


def test_one_tensor_twice_is_looked_at_each_time() -> None:
    x = torch.ones(3)
    watch = Watch(range(2))
    assert surveyed(watch, [x, x]) == surveyed(watch, [x, x]) == surveyed(Watch(range(2)), [x, x])
