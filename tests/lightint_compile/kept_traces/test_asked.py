"""Where no trace can be kept, whatever is called, the report says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightint_compile
from lightint_compile.torch_frames import opens_frames


def told(options: dict[str, Any]) -> list[str]:
    torch.manual_seed(0)
    module, given = nn.Linear(4, 4).eval().requires_grad_(False), torch.ones(2, 4)
    compiled: Any = torch.compile(module, backend="lightint", options=options)
    found: Tensor = compiled(given)
    torch.testing.assert_close(found, module(given))
    sections = lightint_compile.report(compiled).sections
    return [remark.message for section in sections for remark in section.remarks if remark.rule == "trace"]


WHY = {"delegate": ({"delegate": "eager"}, "no program"), "budget": ({"max_relative_error": 0.1}, "error budget")}


@pytest.mark.parametrize("name", WHY)
def test_options_under_which_no_trace_is_kept_are_told(name: str, fresh_dynamo: None) -> None:
    options, why = WHY[name]
    (message,) = told({"preset": "all", "traces": True, **options})
    assert message.startswith("Dynamo's trace is not kept")
    assert (why if opens_frames() else "torch 2.14") in message


def test_nothing_is_said_where_none_is_asked_for(fresh_dynamo: None) -> None:
    assert told({"preset": "exact", "delegate": "eager"}) == []


@pytest.mark.skipif(opens_frames(), reason="this torch is one whose traces are kept")
def test_another_torch_says_that_it_traces(fresh_dynamo: None) -> None:
    (message,) = told({"preset": "exact", "traces": True})
    assert torch.__version__ in message
