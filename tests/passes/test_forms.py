"""Every pass in every form of a chunk: one module, call by call, and with a cache that the calls write in place.

Results and the cache are compared with eager and float64, over chunks with writes of the caller's in between. What each
pass does in each call is a row of a table, with the reason where it does nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from formed_world import CHUNK, SIGMAS, World, moved
from forms import EVERY_TILE, FORMS, QUICK, Scene, Side, Trio, compiled, farther
from step_world import FRAMES, SEEN
from toy_world import there_and_back

import lightint_compile
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.registry import PASSES

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "one_thread")

CALLS = [name for form in FORMS.values() for name in form.PARTS]
NOTHING = "it found no place that looks like what it rewrites"
NO_CONTEXT = "which frames are context is not decided at run time"


@dataclass(frozen=True)
class Row:
    """What a pass does in each call.

    Attributes:
        text: the pass as it runs; by default its name.
        front, behind: passes that run with it.
        idle: why it does nothing, by call; it rewrites in all others.
        static, float32: the same where sizes are fixed, and in that dtype.
        error: what it may add to a result, relative to the largest value.
        layers: of the world.
    """

    text: str = ""
    front: str = ""
    behind: str = ""
    idle: Mapping[str, str] = field(default_factory=dict)
    static: Mapping[str, str] = field(default_factory=dict)
    float32: Mapping[str, str] = field(default_factory=dict)
    error: float = 0.0
    layers: int = 2

    def reasons(self, dtype: torch.dtype, dynamic: bool) -> dict[str, str]:
        """Why it does nothing, by call."""
        return {**self.idle, **({} if dynamic else self.static), **(self.float32 if dtype == torch.float32 else {})}

    def pipeline(self, name: str) -> str:
        return ",".join(filter(None, (self.front, self.text or name, self.behind)))


PARTS = [name for name in CALLS if name != "whole"]
PREFILLS = ("keys", "fill", "own fill")
STEPS = [name for name in PARTS if name not in PREFILLS]
NO_PATH = "no cameras that say what these frames saw"
RETURNED, WRITTEN = (f"{does} something for every context frame" for does in ("returns", "writes"))
WRITES = "the step writes to an input, which a reused step would leave out"

ROWS: dict[str, Row] = {
    "canonicalize-attention": Row(),
    "distinct-rows": Row(behind="sink-row-repeats", idle=dict.fromkeys(PREFILLS, NOTHING)),
    "sink-row-repeats": Row(),
    "narrow-linears": Row(text="narrow-linears{min-rows=1}", error=2**-6),
    "hoist-invariants": Row(behind="outline-regions"),
    "dead-tail": Row(idle=dict.fromkeys(STEPS, NOTHING)),
    "adaptive-context": Row(
        idle={**dict.fromkeys(STEPS, NOTHING), "keys": RETURNED, "fill": WRITTEN, "own fill": WRITTEN},
        static=dict.fromkeys(("whole", *PREFILLS), "context frames are fixed in the captured graph"),
    ),
    "context-reuse": Row(
        front="canonicalize-attention,hoist-invariants,dead-tail,adaptive-context",
        text="context-reuse{age=4}",
        error=0.01,
        idle=dict.fromkeys(PARTS, NO_CONTEXT),
        static={"whole": NO_CONTEXT},
    ),
    "sparse-attention": Row(front="canonicalize-attention", text=EVERY_TILE),
    "fp8-linear": Row(
        text="fp8-linear{on-cpu=true,min-rows=1,keep-first=0,keep-last=0}",
        float32=dict.fromkeys(CALLS, "it computes in float32, and only 16 bits are changed"),
        error=0.1,
        layers=3,
    ),
    "split-linears": Row(text="split-linears{on-cpu=true,min-rows=1}"),
    "outline-regions": Row(layers=3),
    "step-cache": Row(
        front="canonicalize-attention,hoist-invariants,outline-regions",
        text="step-cache{drift=0.0}",
        idle={**dict.fromkeys(PREFILLS, NOTHING), **dict.fromkeys(("slide", "own slide"), WRITES), "rolled": NO_PATH},
        layers=3,
    ),
}
"""By pass. ``shard-sequence`` needs several ranks: its forms are in ``tests/passes/shard_sequence/test_ranks.py``."""


def weights(side: Side) -> None:
    """Other weights of all that is kept between calls, exact in every dtype."""
    block = side.world.stack[0]
    block.text.weight.mul_(2)
    block.qkv.weight.data.mul_(0.5)
    side.world.placed.weight.data.copy_(side.world.placed.weight.data * 2)


def halved(side: Side) -> None:
    """The caller writes to the keys and values that it holds."""
    for each in side.held:
        each.mul_(0.5)


def play(trio: Trio, error: float) -> None:
    """Chunks one after another, with something else in between each time."""
    for number, (frames, seed) in enumerate([(4, 0), (4, 0), (4, 1), (8, 1), (4, 2)]):
        if number == 1:
            trio.each(weights)
        found = trio.chunk(Scene.behind(frames, seed), halved if number == 2 else None)
        assert not (worse := farther(*found, error)), f"chunk {number}: {worse}"


def reported(side: Side, call: str, name: str) -> list[str]:
    """What the report says of a pass in a call, graph by graph: nothing where it rewrote, else why not."""
    sections = [s for s in lightint_compile.report(side.calls[call]).sections if s.name == side.PARTS[call].__name__]
    assert sections and not any(s.of_kind(RemarkKind.FAILURE) for s in sections)
    return [_reason([r for r in s.remarks if r.pass_name == name]) for s in sections]


def _reason(remarks: list[Any]) -> str:
    if any(remark.kind is RemarkKind.APPLIED for remark in remarks):
        return ""
    return next((remark.message for remark in remarks if remark.kind is RemarkKind.MISSED), NOTHING)


OF_BOTH = ("adaptive-context", "step-cache")
"""Passes that do something else in each form of the fast suite; of the others it has the forms in turn."""


def cases() -> list[Any]:
    """Every pass and form; in the fast suite in one form and dtype, with a history that grows."""
    found = []
    for number, (name, row) in enumerate(ROWS.items()):
        forms = QUICK if name in OF_BOTH else (QUICK[number % 2],)
        for form in FORMS:
            for dtype in (torch.float32, torch.bfloat16):
                for dynamic in (True, False):
                    told = torch.bfloat16 if row.float32 else torch.float32
                    quick = form in forms and dynamic and dtype == told
                    marks = [] if quick else [pytest.mark.slow]
                    id = f"{name}-{form}-{str(dtype)[6:]}-{'dynamic' if dynamic else 'static'}".replace(" ", "-")
                    found.append(pytest.param(name, form, dtype, dynamic, marks=marks, id=id))
    return found


@pytest.mark.parametrize(("name", "form", "dtype", "dynamic"), cases())
def test_a_pass_computes_what_was_there_and_says_what_it_did(
    name: str, form: str, dtype: torch.dtype, dynamic: bool
) -> None:
    row = ROWS[name]
    trio = Trio(form, World(dtype, row.layers), compiled(dynamic, passes=row.pipeline(name)), dynamic=dynamic)
    play(trio, row.error)
    reasons = row.reasons(dtype, dynamic)
    for call in FORMS[form].PARTS:
        expected = reasons.get(call, "")
        for reason in reported(trio.compiled, call, name):
            assert expected in reason and bool(expected) == bool(reason), f"{call}: {reason or 'it rewrote'}"


def test_every_pass_has_a_row() -> None:
    assert ROWS.keys() == PASSES.keys() - {"shard-sequence"}


def computed(trio: Trio, number: int, touched: int | None = None) -> list[bool]:
    """Whether each step of a chunk was computed, on a path that turns back; the caller writes in front of one."""
    views = there_and_back(FRAMES)[:, number * CHUNK : (number + 1) * CHUNK]
    scene = Scene.behind(4, number)
    sides = trio.of(dataclasses.replace(scene, cameras=views, noisy=scene.noisy.eq(1).float()))
    latents, found = [scene.noise for _, scene in sides], []
    for step in range(len(SIGMAS) - 1):
        if step == touched:
            trio.each(halved)
        ours, eagers, _ = (side.step(scene, step, x) for (side, scene), x in zip(sides, latents, strict=True))
        found.append(torch.allclose(ours, eagers, rtol=1e-4, atol=1e-5))
        latents = [moved(latents[0], ours, step).to(x.dtype) for x in latents]
    return found


def test_a_step_is_not_reused_over_keys_and_values_that_were_written_between_the_steps() -> None:
    """Called step by step, with keys and values that the caller keeps for several chunks."""
    passes = "canonicalize-attention,hoist-invariants,outline-regions,step-cache{drift=1e9}"
    trio = Trio("call by call", World(torch.float32, 3), compiled(dynamic=False, passes=passes), dynamic=False)
    for side, scene in trio.of(Scene.behind(4)):
        side.prefill(scene)
    assert all(computed(trio, number) == [True] * 4 for number in range(SEEN))
    assert computed(trio, SEEN) == [True, False, False, True]
    assert computed(trio, SEEN + 1, touched=1) == [True, True, False, True]
    assert computed(trio, SEEN + 2, touched=2) == [True, False, True, True]
