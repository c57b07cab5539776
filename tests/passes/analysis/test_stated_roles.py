"""Stated roles: a name that no input has is an error, a role that changes nothing is a near miss; neither is silent."""

from __future__ import annotations

import logging

import pytest
import torch
from given_context import Given
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from toy_world import ToyWorld, there_and_back, toy_rollout

import lightint_compile
from lightint_compile.errors import OptionError
from lightint_compile.explaining import explain


class Cached(nn.Module):
    """Attends to what another call kept, which arrives as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(16, 16)

    def forward(self, latents: Tensor, cache: list[dict[str, Tensor]]) -> Tensor:
        query = self.query(latents.flatten(2).mT)[:, None]
        return scaled_dot_product_attention(query, cache[0]["k_vision"], cache[0]["v_vision"])


def told(report) -> list[tuple[str, str, str]]:
    return [
        (remark.rule, remark.message, remark.hint)
        for section in report.sections
        for remark in section.remarks
        if remark.pass_name == "roles" and remark.kind == "missed"
    ]


CACHE = [{"k_vision": torch.randn(1, 1, 24, 16), "v_vision": torch.randn(1, 1, 24, 16)}]


def of_cache(roles: dict[str, str], preset: str = "sparse"):
    return explain(Cached(), torch.randn(1, 16, 1, 4, 6), CACHE, options={"preset": preset, "roles": roles})


def test_a_cache_that_is_stated_to_be_context_is_told_of() -> None:
    ((rule, message, hint),) = told(of_cache({"cache.0.k_vision": "context"}))
    assert rule == "unfit" and "cache.0.k_vision is stated to be context" in message and "(1, 1, 24, 16)" in message
    assert "latents [batch, channels, frames, height, width]" in hint


@pytest.mark.parametrize("preset", ["exact", "sparse", "all"])
@pytest.mark.parametrize(
    ("path", "near"), [("cache.0.k_visoin", "cache.0.k_vision"), ("latent", "latents"), ("xyz", "")]
)
def test_a_name_that_no_input_has_is_an_error_under_every_preset(preset: str, path: str, near: str) -> None:
    with pytest.raises(OptionError, match="there is no input") as caught:
        of_cache({path: "context"}, preset)
    assert (f"did you mean {near!r}?" if near else "known: ") in caught.value.fix


ROLES = {
    "camera": ("latents", "world-to-camera matrices"),
    "intrinsics": ("latents", "four numbers"),
    "context": ("cache.0.v_vision", "latents [batch"),
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_of_an_input_of_another_form_is_told_with_the_form(role: str) -> None:
    path, form = ROLES[role]
    ((_, message, hint),) = told(of_cache({path: role}, "all"))
    assert f"{path} is stated to be {role}" in message and form in hint


def test_a_role_that_no_pass_of_the_pipeline_looks_at_is_told() -> None:
    roles = {"context": "context", "cameras": "camera"}
    module, inputs = Given(), Given.inputs(8)
    missed = told(explain(module, **inputs, options={"preset": "exact", "roles": roles}))
    assert len(missed) == 2 and all("no pass of this pipeline looks at" in message for _, message, _ in missed)
    assert {hint for *_, hint in missed} == {"adaptive-context would", "adaptive-context and step-cache would"}
    used = explain(
        module, **inputs, dynamic={"context": 2, "cameras": 1, "actions": 1, "valid": 1}, options={"roles": roles}
    )
    assert told(used) == []


def test_roles_that_only_keep_an_input_from_being_taken_for_another_are_as_they_should_be() -> None:
    assert told(of_cache({"latents": "parameter"})) == told(of_cache({"latents": "action"})) == []


def test_an_argument_that_a_graph_does_not_get_is_told_and_runs(caplog) -> None:
    """The first chunk has no history: what is said of it must not stop that chunk, and works for the others."""
    torch._dynamo.reset()
    options = {"preset": "published", "delegate": "eager", "roles": {"history": "context", "extrinsics": "camera"}}
    compiled = torch.compile(ToyWorld().eval(), backend="lightint", options=options)
    with caplog.at_level(logging.WARNING, logger="lightint_compile"):
        toy_rollout(compiled, there_and_back(24)[:, :16])
    assert [decision.chunk for decision in lightint_compile.decisions(compiled)] == [0, 1, 2, 3]
    said = told(lightint_compile.report(compiled))
    assert sorted(rule for rule, *_ in said) == ["absent", "nowhere"], "in the first chunk's graph alone"
    assert any("history is no input of this graph" in message for _, message, _ in said)
    assert "stated" not in caplog.text


def test_a_name_near_to_an_argument_is_an_error_when_compiling() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Cached(), backend="lightint", options={"roles": {"latent": "latent"}, "delegate": "eager"})
    with pytest.raises(Exception, match="did you mean 'latents'"), torch.no_grad():
        compiled(torch.randn(1, 16, 1, 4, 6), CACHE)
