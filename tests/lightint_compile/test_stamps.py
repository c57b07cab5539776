"""A stamp holds for the very tensors it was made of, unwritten, whichever object a view of them is."""

from __future__ import annotations

import torch

from lightint_compile.runtime.stamps import Stamp


def _stamp(*tensors: torch.Tensor) -> Stamp:
    stamp = Stamp.of(tensors)
    assert stamp is not None
    return stamp


def _holds(stamp: Stamp, *tensors: torch.Tensor) -> bool:
    return stamp.holds(tensors)


def test_the_same_tensors_hold_until_one_of_many_is_written_to() -> None:
    weights = [torch.zeros(2) for _ in range(1000)]
    stamp = _stamp(*weights)
    assert _holds(stamp, *weights)
    weights[500].add_(1)
    assert not _holds(stamp, *weights)
    assert _holds(_stamp(*weights), *weights)


def test_a_swapped_tensor_and_another_order_or_number_are_others() -> None:
    first, second = torch.zeros(2), torch.zeros(2)
    stamp = _stamp(first, second)
    assert not _holds(stamp, first, torch.zeros(2))
    assert not _holds(stamp, second, first)
    assert not _holds(stamp, first)


def test_a_view_made_anew_is_the_same_and_what_it_views_is_another() -> None:
    base = torch.zeros(4, 4)
    stamp = _stamp(base[1])
    assert _holds(stamp, base[1])
    assert not _holds(stamp, base[2])
    assert not _holds(stamp, base)
    assert not _holds(_stamp(base), base.view(4, 4))
    base[2].add_(1)
    assert not _holds(stamp, base[1]), "a write to another part cannot be told from one to this part"


def test_a_view_that_was_turned_in_place_is_another() -> None:
    view = torch.zeros(4, 4)[1:3]
    stamp = _stamp(view)
    view.t_()
    assert not _holds(stamp, view)


def test_the_dead_equal_nobody_even_where_they_lay() -> None:
    tensor = torch.zeros(2)
    stamp, place = _stamp(tensor), id(tensor)
    assert stamp.is_alive
    del tensor
    assert not stamp.is_alive
    others = [torch.zeros(2) for _ in range(100)]
    assert not any(_holds(stamp, other) for other in others)
    assert any(id(other) == place for other in others), "no id was given to another tensor: the test is void"


def test_there_is_no_stamp_of_a_tensor_whose_writes_are_not_counted() -> None:
    with torch.inference_mode():
        tensors = [torch.zeros(2)]
    assert Stamp.of(tensors) is None
    assert not _holds(_stamp(torch.zeros(2)), *tensors)
