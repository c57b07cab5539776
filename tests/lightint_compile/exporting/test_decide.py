"""The decision as a program of its own: what the runtime's planner decides, chunk by chunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_world import there_and_back, walk

from lightint_compile.errors import ExportError
from lightint_compile.exporting.decide import Decide
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime.drift import latent_dynamics
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.rules import rules_of

POLICY = Policy(adapt_context=True, steps=(1, 2))

PATHS = {
    "turned and back": there_and_back(96, 3.0),
    "walked on": walk(64),
    "walked and back": torch.cat([walk(40, 2.0, 0.05), walk(40, 2.0, 0.05).flip(1)], 1),
    "turned round twice": walk(120, 6.0, 0.0),
}


@pytest.mark.parametrize("name", PATHS)
def test_it_decides_what_the_planner_does(name: str) -> None:
    cameras = PATHS[name][0].double()
    generator = torch.Generator().manual_seed(0)
    livelier = torch.linspace(0.2, 3.0, len(cameras))[:, None, None]
    latents = torch.randn(1, 4, len(cameras), 4, 6, generator=generator) * livelier
    decide, planner = Decide(POLICY), Planner(rules_of(POLICY))
    novel = torch.tensor(planner.decide(cameras[:4]).novel)
    for first in range(4, len(cameras), 4):
        seen, history = cameras[: first + 4], latents[:, :, :first]
        expected = planner.decide(seen, float(latent_dynamics(history)))
        found = decide(seen, history, novel)
        novel = found["novel"]
        assert tuple(found["context_frames"].tolist()) == expected.context_frames
        assert bool(found["reuse"]) == bool(expected.reused_steps) and bool(novel) == expected.novel
        assert float(found["overlap"]) == pytest.approx(expected.overlap, abs=2e-3)
    made = [decision.reused_steps != () for decision in planner.decisions]
    assert any(made) == (name != "walked on")


@pytest.mark.parametrize(
    "other", [{"rules": "published"}, {"adapt_context": False}, {"given": True}, {"first_chunk": 5}]
)
def test_other_rules_are_left_to_the_caller(other: dict[str, object]) -> None:
    known: dict[str, object] = {"adapt_context": True, "steps": (1, 2)}
    with pytest.raises(ExportError, match="no form as a program") as caught:
        Decide(Policy(**{**known, **other}))  # type: ignore[arg-type]
    assert "decide in the caller" in caught.value.fix


def test_cameras_are_a_batch_of_one() -> None:
    cameras: Tensor = PATHS["walked on"][0].double()[:24]
    found = Decide(POLICY)(cameras, torch.randn(1, 4, 20, 4, 6), torch.tensor(True))
    assert found["context_frames"].dtype == torch.int64 and found["overlap"].shape == ()
