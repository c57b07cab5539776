from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from lightint_compile.errors import OptionError
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics
from lightint_compile.testing import differential, fuzz
from lightint_compile.testing.capturing import captured, disturbed
from lightint_compile.testing.differential import check
from lightint_compile.testing.features import CHOICES, Features
from lightint_compile.testing.finding import shrunk
from lightint_compile.testing.forms import FORMS
from lightint_compile.testing.generator import build

SDPA = torch.ops.aten.scaled_dot_product_attention.default
BATCH = 10
REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.json"))


pytestmark = pytest.mark.usefixtures("one_thread")


def batches(quick: int) -> list[object]:
    """The first seed of every batch of 200; those from ``quick`` on are slow. The first 20 draw every choice."""
    return [pytest.param(first, marks=[pytest.mark.slow] * (first >= quick)) for first in range(0, 200, BATCH)]


def in_calls() -> list[object]:
    """Batches and forms whose chunk is several calls; of the first 20 seeds, the forms in turn are not slow."""
    forms = [form for form in FORMS if form != "module"]
    quick = [(number * BATCH, form) for number, form in enumerate(forms)]
    every = [(first, form) for first in range(0, 200, BATCH) for form in forms]
    return [pytest.param(*each, marks=[pytest.mark.slow] * (each not in quick)) for each in every]


@pytest.mark.parametrize("first", batches(20))
def test_generated_models(first: int) -> None:
    findings = [found for seed in range(first, first + BATCH) if (found := check(Features.from_seed(seed)))]
    assert not findings, "\n".join(map(str, findings))


@pytest.mark.parametrize(("first", "form"), in_calls())
def test_generated_models_whose_chunk_is_several_calls(first: int, form: str) -> None:
    findings = [found for seed in range(first, first + BATCH) if (found := check(Features.from_seed(seed), form))]
    assert not findings, "\n".join(map(str, findings))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_what_once_failed(path: Path, form: str) -> None:
    found = check(Features.from_dict(json.loads(path.read_text())["case"]), form)
    assert found is None, str(found)


@pytest.mark.parametrize("prefix", ["first", "last"])
def test_the_forms_of_a_chunk_compute_the_same(prefix: str) -> None:
    model, args = build(Features(steps=2, layers=2, prefix=prefix, context=True, rope="split", mask="bool"))
    with torch.no_grad():
        results = {
            name: form.play(form.modules, args) for name, form in ((n, make(model)) for n, make in FORMS.items())
        }
    cached = results.pop("in-place cache")
    for name, result in results.items():
        torch.testing.assert_close(result[0], results["module"][0], msg=name)
    torch.testing.assert_close(cached[1], results["module"][0])
    assert all(buffer[:, :, :-2].any() and not buffer[:, :, -2:].any() for buffer in cached[2:])


def test_a_seed_is_one_model_and_features_survive_json() -> None:
    features = Features.from_seed(7)
    assert features == Features.from_seed(7) != Features.from_seed(8)
    assert Features.from_dict(json.loads(json.dumps(features.to_dict()))) == features
    one, two = (build(features)[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_every_choice_is_drawn() -> None:
    drawn = [Features.from_seed(seed) for seed in range(20)]
    for name, choices in CHOICES.items():
        assert {getattr(features, name) for features in drawn} == set(choices)


def test_unknown_features_are_refused_with_a_hint() -> None:
    with pytest.raises(OptionError, match="did you mean 'steps'"):
        Features.from_dict({"step": 2})
    with pytest.raises(OptionError, match="is not a value of mask"):
        Features.from_dict({"mask": "triangle"})


def test_generating_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    build(Features.from_seed(3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_disturbed_program_computes_the_same() -> None:
    model, args = build(Features(layers=2, norm="rms", rope="split"))
    with torch.no_grad():
        program, inputs = captured(model, args)
        other = disturbed(program, 5)
        names = [[node.name for node in p.graph.nodes] for p in (program, other)]
        assert len(names[1]) > len(names[0])
        assert [name for name in names[1] if name in names[0]] != names[0]
        assert torch.equal(other.graph_module(*inputs)[0], program.graph_module(*inputs)[0])


@dataclass(frozen=True, kw_only=True)
class HalvesTheScale(Pass):
    """A wrong pass: it forgets half of the scale where heads are grouped."""

    name: ClassVar[str] = "halves-the-scale"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, program: Program) -> PassResult:
        calls = [node for node in program.calls(SDPA) if node.kwargs.get("enable_gqa")]
        for node in calls:
            node.kwargs = {**node.kwargs, "scale": node.kwargs["scale"] / 2}
        program.graph_module.recompile()
        return PassResult(bool(calls))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = (*differential.available()[:1], HalvesTheScale())
    monkeypatch.setattr(differential, "available", lambda: passes)


@pytest.mark.usefixtures("broken")
def test_a_wrong_pass_is_found_and_shrunk_to_what_it_needs() -> None:
    found = check(Features(seed=1, layers=2, key_heads=1, rope="split", norm="layer", mask="bool", prefix="first"))
    assert found is not None and found.check == "numbers after halves-the-scale"
    assert shrunk(found, check).case == Features(seed=1, key_heads=1)
    assert check(Features(seed=1, layers=2, mask="bool")) is None


@pytest.mark.usefixtures("broken")
def test_fuzzing_saves_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Features, "from_seed", classmethod(lambda cls, seed: cls(seed=seed, key_heads=seed % 2)))
    assert fuzz.main(["--seeds", "2", "--save", str(tmp_path)]) == 1
    (written,) = tmp_path.iterdir()
    assert json.loads(written.read_text())["case"] == {"seed": 1, "key_heads": 1}
    assert fuzz.main(["--seeds", "1"]) == 0
