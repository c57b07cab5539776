"""What is told of decisions is what ran: graphs of one function share rollouts, one that decides nothing says so."""

from __future__ import annotations

import random

import pytest
import torch
from toy_world import ToyWorld, there_and_back, toy_rollout, walk

import lightint_compile
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import PublishedRules

PATH = there_and_back(40)


def compiled_toy(**options):
    torch._dynamo.reset()
    torch.manual_seed(0)
    return torch.compile(ToyWorld().eval(), backend="lightint", options={"delegate": "eager", **options})


@pytest.fixture(scope="module")
def published():
    """Tests that compile a module of their own come last: they forget this one's graphs."""
    module = compiled_toy(preset="published")
    for size in ((4, 6), (6, 8)):
        toy_rollout(module, PATH[:, :16], size)
    return module


def told(module) -> list[dict]:
    return [decision.to_dict() for decision in lightint_compile.decisions(module)]


def expected(path, rules=None) -> list[dict]:
    return [decision.to_dict() for decision in plan(path[0], rules or PublishedRules())]


@pytest.mark.parametrize("seed", range(3))
def test_any_run_of_rollouts_tells_of_the_last_and_computes_as_alone(published, seed: int) -> None:
    """Cancelled ones, other paths, sizes and noise, one after another on one compiled module."""
    draw, known = random.Random(seed), {}
    for _ in range(6):
        path = draw.choice([PATH, walk(40, -8.0, 0.0), there_and_back(40, 5.0)])
        size, noise = draw.choice([(4, 6), (6, 8)]), draw.randrange(2)
        chunks = draw.choice([10, 10, draw.randrange(1, 10)])
        latents = toy_rollout(published, path[:, : 4 * chunks], size, noise)
        if chunks == 1:
            assert told(published) == [], "nothing was decided in the rollout that ran last"
            continue
        assert told(published)[1:] == expected(path)[1:chunks]
        key = (float(path[0, 1].sum()), size, noise, chunks)
        for one, other in zip(known.setdefault(key, latents), latents, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_second_resolution_is_decided_for_as_the_first(published) -> None:
    for size in ((4, 6), (6, 8), (8, 4)):
        got = toy_rollout(published, PATH, size)
        assert told(published)[1:] == expected(PATH)[1:]
        exact = toy_rollout(published._orig_mod, PATH, size)
        assert any(not torch.equal(one, other) for one, other in zip(got, exact, strict=True)), "steps were reused"
    assert "failure" not in str(lightint_compile.report(published).to_dict())


def test_cameras_that_cannot_be_understood_end_what_is_told(published) -> None:
    toy_rollout(published, PATH[:, :16])
    assert told(published)
    toy_rollout(published, PATH[:, :16] * 1.5)
    assert told(published) == []


def test_a_rollout_that_runs_exactly_leaves_no_decision_to_tell_of(published) -> None:
    toy_rollout(published, PATH)
    assert any(decision.reused_steps for decision in lightint_compile.decisions(published))
    noise = torch.randn(1, 4, 4, 4, 6, requires_grad=True)
    published(noise, torch.randn(1, 4, 8, 4, 6), PATH[:, :12])
    assert lightint_compile.decisions(published) == [], "a graph that needs gradients is left alone"
    toy_rollout(published, PATH)
    assert told(published)[1:] == expected(PATH)[1:]


def test_hysteresis_does_not_end_where_another_graph_takes_over() -> None:
    """The first history is static; those behind it run in a second graph, which must know what the first decided."""
    module = compiled_toy(preset="all", drift=1e9)
    path = there_and_back(40, 7.0)
    history = None
    for first in range(0, 40, 4):
        with torch.no_grad():
            latents = module(torch.randn(1, 4, 4, 4, 6), history, path[:, : first + 4].contiguous())
        history = latents if history is None else torch.cat([history, latents], 2)
    made = lightint_compile.decisions(module)
    assert [decision.chunk for decision in made] == list(range(len(made)))
    assert [decision.threshold for decision in made[1:]] == [0.68 if not before.novel else 0.72 for before in made[:-1]]


def test_models_of_one_class_do_not_answer_for_each_other() -> None:
    options = {"delegate": "eager", "preset": "published"}
    first = compiled_toy(**options)
    second = torch.compile(ToyWorld().eval(), backend="lightint", options=options)
    toy_rollout(first, PATH)
    toy_rollout(second, PATH[:, :4])
    assert told(first)[1:] == expected(PATH)[1:] and told(second) == []
