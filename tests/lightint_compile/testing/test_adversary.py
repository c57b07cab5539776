"""An adversary plays calls and writes against compiled modules: 300 seeds here, 5,000 by a command.

By default few run, short ones among the first 1,000, that draw between them all that any of the 300 draws; the others
of the 300 are slow.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lightint_compile
from lightint_compile.errors import OptionError
from lightint_compile.lowering import result_memo as memo
from lightint_compile.passes import hoist_invariants
from lightint_compile.passes.ir.memory_sharing import memory_of
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.testing import adversary, fuzz
from lightint_compile.testing.adversary import judge, play
from lightint_compile.testing.compiling import Compiler
from lightint_compile.testing.events import VERBS, Event
from lightint_compile.testing.finding import Finding, shrunk
from lightint_compile.testing.scenario import Scenario, Setup
from lightint_compile.testing.several import OPERATORS, USES
from lightint_compile.testing.side import Side
from lightint_compile.testing.world_features import CHOICES, WorldFeatures
from lightint_compile.testing.writes import MODULE_WAYS, VALUES, WAYS

SEEDS, CANDIDATES, BATCH = range(300), range(1000), 6
REGRESSIONS = sorted((Path(__file__).parent / "adversary").glob("*.json"))


pytestmark = pytest.mark.usefixtures("one_thread")


def drawn_by(seed: int) -> set[tuple[str, str, object]]:
    """Every choice of the seed's world and setup; how its events happen, to what, and which values they write."""
    scenario = Scenario.from_seed(seed)
    drawn = {
        (kind.WHAT, name, getattr(kind, name)) for kind in (scenario.world, scenario.setup) for name in kind.CHOICES
    }
    for event in scenario.events:
        drawn |= {(event.verb, "how", event.how), ("event", "what", event.what), ("event", "value", event.value)}
    return drawn


def covering(seeds: Sequence[int]) -> list[int]:
    """Candidates that draw between them all that ``seeds`` draw: each time the one that adds the most for its length.

    What few draw counts for more: those that must be taken anyway come first, and fewer are needed behind them.
    """
    drawn, chosen = {seed: drawn_by(seed) for seed in CANDIDATES}, []
    lengths = {seed: length_of(seed) for seed in CANDIDATES}
    often = Counter(itertools.chain(*drawn.values()))
    missing = set().union(*map(drawn_by, seeds))

    def worth(seed: int) -> float:
        return sum(len(CANDIDATES) / often[each] for each in drawn[seed] & missing) / lengths[seed] ** 0.5

    while missing:
        chosen.append(max(CANDIDATES, key=worth))
        missing -= drawn[chosen[-1]]
    return sorted(chosen)


def length_of(seed: int) -> int:
    """Grows with the time that a scenario takes: its calls, and how much is traced."""
    scenario = Scenario.from_seed(seed)
    return 2 + sum(event.calls for event in scenario.events) + scenario.world.steps * scenario.world.blocks


def batches() -> Iterator[object]:
    quick = covering(SEEDS)
    for seeds, marks in ((quick, ()), (sorted({*SEEDS} - {*quick}), pytest.mark.slow)):
        for first in range(0, len(seeds), BATCH):
            batch = seeds[first : first + BATCH]
            yield pytest.param(batch, marks=marks, id=",".join(map(str, batch)))


@pytest.mark.parametrize("seeds", batches())
def test_nothing_differs_from_eager(seeds: list[int]) -> None:
    found = [finding for seed in seeds if (finding := judge(Scenario.from_seed(seed)))]
    assert not found, "\n".join(map(str, found))


def test_what_runs_by_default_draws_all_that_the_seeds_draw() -> None:
    quick = covering(SEEDS)
    assert len(quick) < len(SEEDS) // 4
    assert set().union(*map(drawn_by, quick)) >= set().union(*map(drawn_by, SEEDS))


#: Worlds in which every way of writing is tried on every target, one after the other, with a call behind each.
WRITTEN = {
    "stream": (WorldFeatures(text="pooled", use="keys"), Setup(), ("text", "pooled", "latents", "parameter", "buffer")),
    "views": (WorldFeatures(text="norm", layout="slice"), Setup(preset="all"), ("text", "parameter")),
    "shared": (WorldFeatures(text="linear", layout="shared"), Setup(), ("text", "latents")),
    "rollout": (
        WorldFeatures(kind="rollout"),
        Setup(preset="all", dynamic="marked"),
        ("history", "noise", "parameter"),
    ),
    "steps": (
        WorldFeatures(kind="rollout", blocks=2, steps=4, text="linear"),
        Setup(preset="all", dynamic="marked"),
        ("history", "text", "parameter"),
    ),
}


@pytest.mark.parametrize(
    ("world", "setup", "targets"),
    [pytest.param(*each, marks=pytest.mark.slow if name == "steps" else (), id=name) for name, each in WRITTEN.items()],
)
def test_every_write_is_seen(world: WorldFeatures, setup: Setup, targets: tuple[str, ...]) -> None:
    values = ("element", "swapped", "negated", "fresh")
    writes = [(way, what, value) for way in WAYS for what in targets for value in values]
    tensors = [Event("write", *write, place) for place, write in enumerate(writes)]
    modules = [Event("module", way, place=place) for place, way in enumerate(MODULE_WAYS)]
    assert play(Scenario(0, world, setup, (*tensors, *modules)), "lightint") is None


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_what_an_operator_with_several_results_makes_is_the_callers(operator: str) -> None:
    scribbles = [Event("scribble", "last", place=place) for place in range(3)]
    for place, (use, operand) in enumerate(zip(USES, itertools.cycle(CHOICES["operand"]), strict=False)):
        world = WorldFeatures(text="linear", cache="slice", operator=operator, operand=operand, parts=use)
        setup = Setup(preset=Setup.CHOICES["preset"][place % 2])
        found = judge(Scenario(0, world, setup, (*scribbles, Event("write", "data-copy", "text"))))
        assert found is None, str(found)


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_what_once_differed(path: Path) -> None:
    found = judge(Scenario.from_dict(json.loads(path.read_text())["case"]))
    assert found is None, str(found)


def test_a_play_leaves_the_configuration_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(side: Side) -> None:
        """What calls in two threads do under torch 2.11 when they meet."""
        torch._dynamo.config.assume_static_by_default = False

    monkeypatch.setattr(Side, "run", spoil)
    before = torch._dynamo.config.assume_static_by_default
    try:
        assert play(Scenario(), "lightint") is None
        assert torch._dynamo.config.assume_static_by_default is before
    finally:
        torch._dynamo.config.assume_static_by_default = before


def test_a_seed_is_one_scenario_and_scenarios_survive_json() -> None:
    scenario = Scenario.from_seed(7)
    assert scenario == Scenario.from_seed(7) != Scenario.from_seed(8)
    assert Scenario.from_dict(json.loads(json.dumps(scenario.to_dict()))) == scenario


def test_every_choice_is_drawn() -> None:
    drawn = [Scenario.from_seed(seed) for seed in range(1000)]
    for name, choices in CHOICES.items():
        assert {getattr(scenario.world, name) for scenario in drawn} == set(choices)
    for name, choices in Setup.CHOICES.items():
        assert {getattr(scenario.setup, name) for scenario in drawn} == set(choices)
    events = [event for scenario in drawn for event in scenario.events]
    assert {(event.verb, event.how) for event in events} == {(v, how) for v, (ways, _) in VERBS.items() for how in ways}
    assert {event.value for event in events} == set(VALUES)


def test_unknown_slots_are_refused_with_a_hint() -> None:
    with pytest.raises(OptionError, match="did you mean 'blocks'"):
        Scenario.from_dict({"world": {"block": 2}})


#: Worlds, what is told of their sizes, and passes that have their say in them under ``all``.
REACHED = {
    "stream": (
        WorldFeatures(text="linear", attention="matmul", rows=True, blocks=2),
        "auto",
        {"canonicalize-attention", "sink-row-repeats", "hoist-invariants", "outline-regions"},
    ),
    "one block": (WorldFeatures(kind="rollout"), "marked", {"adaptive-context", "context-reuse"}),
    "two blocks": (WorldFeatures(kind="rollout", blocks=2, steps=4), "marked", {"adaptive-context", "step-cache"}),
}


@pytest.mark.parametrize(("world", "dynamic", "names"), REACHED.values(), ids=REACHED)
def test_passes_apply_to_drawn_worlds(world: WorldFeatures, dynamic: str, names: set[str]) -> None:
    torch._dynamo.reset()
    side = Side(world, Compiler(Setup(preset="all", dynamic=dynamic), keeps=world.blocks == 1), is_ours=True)
    side.run()
    report = lightint_compile.report(getattr(side.call, "compiled", side.call))
    remarks = [remark for section in report.sections for remark in section.remarks]
    assert {remark.pass_name for remark in remarks if remark.kind is RemarkKind.APPLIED} >= names


TEXT = WorldFeatures(text="linear")
WRITE = Event("write", "item", "text")


def held_forever(setup: Setup, backend: str, keeps: bool):
    """In the place of a compiler: what is called gives its first result again and again."""

    def compiled(module):
        kept: dict[str, torch.Tensor] = {}
        return lambda **arguments: (kept or kept.update(result=module(**arguments)) or kept)["result"].clone()

    return compiled


WRITES = [Event("write", way, what) for way in WAYS for what in ("text", "parameter", "latents")]


@pytest.mark.parametrize(
    "event", [*WRITES, *(Event("module", way) for way in MODULE_WAYS)], ids=lambda event: f"{event.how} {event.what}"
)
def test_every_write_changes_what_eager_computes(event: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversary, "Compiler", held_forever)
    outcome = play(Scenario(0, TEXT, events=(event,)), "inductor")
    assert outcome is not None and outcome[:2] == (2, "numbers")


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memo that never looks again."""
    monkeypatch.setattr(memo.Content, "equals", lambda self, other: True)


def differs(scenario: Scenario) -> Finding[Scenario] | None:
    outcome = play(scenario, "lightint")
    return None if outcome is None else Finding(scenario, *outcome[1:])


@pytest.mark.usefixtures("trusting")
def test_a_stale_result_is_found_and_shrunk_to_the_write() -> None:
    around = (Event("train"), WRITE, Event("scribble", "last"))
    found = differs(Scenario(0, WorldFeatures(text="linear", rows=True), Setup(target="function"), around))
    assert found is not None and found.check == "numbers"
    assert shrunk(found, differs).case == Scenario(0, TEXT, Setup(), (WRITE,))


@pytest.mark.usefixtures("trusting")
def test_fuzzing_saves_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = {0: (), 1: (WRITE,)}
    monkeypatch.setattr(Scenario, "from_seed", classmethod(lambda cls, seed: cls(seed, TEXT, Setup(), events[seed])))
    assert fuzz.main(["calls", "--seeds", "2", "--save", str(tmp_path)]) == 1
    (written,) = tmp_path.iterdir()
    assert Scenario.from_dict(json.loads(written.read_text())["case"]).events == (WRITE,)


def test_results_of_one_operator_that_are_merged_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoist_invariants, "maker_of", memory_of)
    found = differs(Scenario(0, WorldFeatures(operator="topk", parts="twice")))
    assert found is not None and found.check == "memory"


def test_what_is_no_tensor_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        adversary, "Compiler", lambda *setup: lambda module: lambda **given: (module(**given)[0], 7, 43, True)
    )
    found = play(Scenario(0, WorldFeatures(result="sizes")), "inductor")
    assert found is not None and found[1] == "structure"


def test_what_the_stock_backend_does_too_is_not_held_against_us(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()

    def played(scenario: Scenario, backend: str):
        asked[backend] += 1
        return 3, "numbers", backend

    monkeypatch.setattr(adversary, "play", played)
    assert judge(Scenario.from_seed(1)) is None
    assert asked == {"lightint": 1, "eager": 1}


def test_results_that_share_memory_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, torch.Tensor] = {}

    def sharing(module):
        return lambda **arguments: kept.setdefault("result", module(**arguments).clone())

    monkeypatch.setattr(adversary, "Compiler", lambda *setup: sharing)
    found = play(Scenario(0, WorldFeatures(), events=(Event("train"),)), "inductor")
    assert found is not None and found[1] == "memory"


@pytest.mark.parametrize(("check", "nudged"), [("numbers", None), ("kind", Finding)])
def test_numbers_that_the_last_bits_of_the_weights_move_as_far_are_rounding(
    check: str, nudged: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def played(scenario: Scenario, backend: str):
        return (3, check, backend) if backend in ("lightint", "nudged") else None

    monkeypatch.setattr(adversary, "play", played)
    found = judge(Scenario.from_seed(1))
    assert found is None if nudged is None else isinstance(found, nudged)


@pytest.mark.parametrize(
    ("dtype", "off_in_float64", "is_finding"),
    [("bfloat16", False, False), ("bfloat16", True, True), ("float64", False, True)],
)
def test_numbers_that_move_elsewhere_are_rounding_where_float64_shows_none(
    dtype: str, off_in_float64: bool, is_finding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Scenario(0, replace(TEXT, dtype=dtype), Setup(), (WRITE,))

    def played(given: Scenario, backend: str) -> tuple[int, str, str] | None:
        if backend == "lightint":
            return (3, "numbers", "off") if given == scenario or off_in_float64 else None
        return (1, "numbers", "off") if backend == "shaken" else None

    monkeypatch.setattr(adversary, "play", played)
    assert (judge(scenario) is not None) == is_finding


def test_a_nudge_is_within_rounding_where_a_program_is_well_conditioned() -> None:
    assert play(Scenario(0, TEXT, Setup(), (WRITE,)), "nudged") is None
    assert play(Scenario(0, TEXT, Setup(), (WRITE,)), "shaken") is None
