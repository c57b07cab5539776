"""What must not leak from one rollout to another: cuts, sizes, models, threads, batches, copies."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from toy_world import ToyWorld, there_and_back, toy_rollout, walk

import lightint_compile
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import PublishedRules

AWAY, BACK, ON = walk(24, 8.0, 0.0), there_and_back(24), walk(24, 0.0, 0.3)


def made(seed: int = 0):
    torch.manual_seed(seed)
    options = {"preset": "published", "delegate": "eager", "strict": True}
    return torch.compile(ToyWorld().eval(), backend="lightint", options=options)


@pytest.fixture(scope="module")
def compiled():
    torch._dynamo.reset()
    module = made()
    toy_rollout(module, BACK)
    return module


@pytest.fixture
def alone(compiled):
    """What rollouts give in a module that has forgotten everything."""

    def run(path, **more):
        lightint_compile.reset(compiled)
        return toy_rollout(compiled, path, **more)

    return run


def chosen(module):
    return [decision.context_frames for decision in lightint_compile.decisions(module)]


def test_a_scene_cut_starts_another_rollout(compiled, alone) -> None:
    expected = alone(ON, seed=2)
    alone(BACK, seed=1)
    torch.testing.assert_close(toy_rollout(compiled, ON, seed=2), expected)
    assert chosen(compiled)[1:] == [each.context_frames for each in plan(ON[0], PublishedRules())][1:]


def test_a_cut_in_the_middle_of_a_history_forgets_the_chunk_before(compiled, alone) -> None:
    history = torch.randn(1, 4, 20, 4, 6)
    noise = torch.randn(1, 4, 4, 4, 6)
    lightint_compile.reset(compiled)
    with torch.no_grad():
        expected = compiled(noise, history, ON)
        alone(BACK)
        torch.testing.assert_close(compiled(noise, history, ON), expected)
    assert [decision.chunk for decision in lightint_compile.decisions(compiled)] == [5]


def test_another_resolution_and_back(compiled, alone) -> None:
    alone(BACK, size=(6, 8))  # from here on one graph serves every size
    small, large = alone(BACK), alone(BACK, size=(6, 8))
    assert large[0].shape[-2:] == (6, 8)
    again = [toy_rollout(compiled, BACK), toy_rollout(compiled, BACK, size=(6, 8))]
    torch.testing.assert_close(again, [small, large])


def test_a_first_chunk_that_decides_belongs_to_its_own_rollout(compiled, alone) -> None:
    """One graph for every size reuses steps of the first chunk too, under a planner of its own."""
    alone(BACK, size=(6, 8))
    chunks, noise = alone(BACK), torch.randn(1, 4, 4, 4, 6)

    def told():
        return [decision.chunk for decision in lightint_compile.decisions(compiled)]

    assert told() == [0, 1, 2, 3, 4, 5]
    with torch.no_grad():
        compiled(noise, torch.cat(chunks[:5], 2), ON)
        assert told() == [5]
        compiled(noise, None, ON[:, :4].contiguous())
        assert told() in ([], [0])
        compiled(noise, chunks[0], ON[:, :8].contiguous())
        assert told() == [0, 1]


def test_two_models_in_turn_keep_to_themselves(compiled, alone) -> None:
    expected, other = alone(BACK), made(seed=1)
    others = toy_rollout(other, AWAY)
    torch.testing.assert_close(toy_rollout(compiled, BACK), expected)
    assert chosen(compiled)[1:] == [each.context_frames for each in plan(BACK[0], PublishedRules())][1:]
    assert chosen(other)[1:] == [each.context_frames for each in plan(AWAY[0], PublishedRules())][1:]
    lightint_compile.reset(compiled)
    assert lightint_compile.decisions(compiled) == [] and chosen(other)
    torch.testing.assert_close(toy_rollout(other, AWAY), others)


def test_two_threads_on_one_module(compiled, alone) -> None:
    paths = (BACK, ON)
    expected = [alone(path, seed=seed) for seed, path in enumerate(paths)]
    found: dict[int, list[torch.Tensor]] = {}
    together = threading.Barrier(2)

    def work(seed: int) -> None:
        together.wait()
        for _ in range(3):
            found[seed] = toy_rollout(compiled, paths[seed], seed=seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close([found[0], found[1]], expected)


def test_a_batch_of_one_path_is_each_of_them(compiled, alone) -> None:
    noise = torch.randn(2, 4, 24, 4, 6)
    both, apart = [], [[], []]
    for element in (None, 0, 1):
        lightint_compile.reset(compiled)
        rows = slice(None) if element is None else slice(element, element + 1)
        history = None
        for first in range(0, 24, 4):
            cameras = BACK[:, : first + 4].expand(len(noise[rows]), -1, -1, -1).contiguous()
            with torch.no_grad():
                latents = compiled(noise[rows, :, first : first + 4].contiguous(), history, cameras)
            history = latents.clone() if history is None else torch.cat([history, latents], 2)
            (both if element is None else apart[element]).append(latents)
    for pair, *each in zip(both, *apart, strict=True):
        torch.testing.assert_close(pair, torch.cat(each))


def test_a_batch_of_two_paths_never_reuses_what_one_of_them_must_not(compiled, alone) -> None:
    mixed = torch.cat([BACK, AWAY])
    latents = alone(mixed)
    assert all(bool(chunk.isfinite().all()) for chunk in latents)
    decided = lightint_compile.decisions(compiled)[1:]
    each = [plan(path, PublishedRules())[1:] for path in mixed]
    assert [d.reused_steps for d in decided] == [
        tuple(step for step in a.reused_steps if step in b.reused_steps) for a, b in zip(*each, strict=True)
    ]


def test_a_copy_of_a_compiled_module_decides_for_itself(compiled, alone) -> None:
    expected = alone(BACK)
    other = copy.deepcopy(compiled)
    torch.testing.assert_close(toy_rollout(other, BACK), expected)
    decided = chosen(other)
    lightint_compile.reset(compiled)
    toy_rollout(compiled, AWAY)
    assert chosen(other) == decided
