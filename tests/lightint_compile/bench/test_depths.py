"""Which numbers of blocks stand for a whole model, blocks of two kinds included."""

from __future__ import annotations

import pytest

from lightint_compile.bench.depths import check_depths, default_depths, on_line, parameters
from lightint_compile.errors import OptionError
from lightint_compile.models.registry import world_model


def test_blocks_that_are_alike_may_be_any_number() -> None:
    model = world_model("worldplay:8b-480p")
    assert on_line(model, (1, 2, 5)) and default_depths(model, (2, 3)) == (2, 3)
    check_depths(model, (1, 2), "--depth")


def test_blocks_of_two_kinds_keep_their_shares() -> None:
    model = world_model("matrix-game:5b-720p")
    assert on_line(model, (2, 6)) and on_line(model, (4, 6, 10))
    assert not on_line(model, (2, 3)) and default_depths(model, (2, 3)) == (4, 6)
    check_depths(model, (3,), "--depth")
    with pytest.raises(OptionError, match="not on a line to 30 blocks"):
        check_depths(model, (1, 2), "--inductor-depth")


def test_the_full_depth_is_the_model_itself() -> None:
    model = world_model("matrix-game:5b-720p")
    assert model.at_depth(30) == model and model.at_depth(2).config.action_blocks == 1
    assert 6.46e9 < parameters(model, 30) < 6.48e9
