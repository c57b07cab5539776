"""Passes and presets of other packages: found by name, told apart from broken ones, part of the key."""

from __future__ import annotations

import logging
from pathlib import Path

import other_package
import pytest
import torch
from rich.console import Console

from lightint_compile import entry_points, explain
from lightint_compile.cli.doctor import State, examine
from lightint_compile.cli.listing import print_passes
from lightint_compile.errors import ExtensionError, OptionError
from lightint_compile.lowering import extension_sources
from lightint_compile.lowering.artifact_keys import key_of
from lightint_compile.options import LightintOptions, presets
from lightint_compile.options.ladder import ladder_of
from lightint_compile.options.pipelines import asked_passes, pipeline_of
from lightint_compile.passes import registry

PASS = """
from dataclasses import dataclass
from typing import ClassVar

from lightint_compile.options.presets import PRESETS, Preset
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind


@dataclass(frozen=True, kw_only=True)
class Count{title}(Pass):
    '''Counts the calls of a graph.'''

    name: ClassVar[str] = "count-{name}"
    numerics: ClassVar[Numerics] = Numerics.{numerics}
    least: int = 1
    density: float = 0.5

    def run(self, program):
        calls = len(list(program.calls()))
        remark = Remark(kind=RemarkKind.ANALYSIS, pass_name=self.name, rule="count", message=f"{{calls}} calls")
        return PassResult(False, (remark,) if calls >= self.least else ())


COUNTED = PRESETS["exact"].running("count-{name}", after="dead-tail", summary="exact, with calls counted")
BROKEN = Preset("names a pass that is not there", ("no-such-pass",))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package with a pass ``count-NAME`` and a preset ``counted-NAME``."""
    registry._of_another_package.cache_clear()
    presets._of_another_package.cache_clear()

    def install(name: str, passes: dict[str, str] | None = None, numerics: str = "EXACT", **more: str) -> None:
        module = f"lightint_counting_{name}"
        files = {f"{module}.py": PASS.format(name=name, title=name.title(), numerics=numerics)}
        groups = {
            registry.GROUP: {f"count-{name}": f"{module}:Count{name.title()}", **(passes or {})},
            "lightint.presets": {f"counted-{name}": f"{module}:COUNTED", **more},
        }
        other_package.install(tmp_path, monkeypatch, f"counting-{name}", files, groups)

    return install


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).eval()


def said(**options: object) -> list[str]:
    report = explain(model(), torch.randn(4, 8), options=options)
    return [remark.message for section in report.sections for remark in section.remarks if remark.rule == "count"]


def test_built_in_names_look_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_for: list[str] = []
    monkeypatch.setattr(entry_points, "extensions", lambda group: looked_for.append(group) or [])
    pipeline_of(LightintOptions(preset="sparse", require=["dead-tail"], without=["step-cache"]))
    assert not looked_for
    with pytest.raises(OptionError, match="there is no pass called"):
        LightintOptions(passes="no-such-pass")
    assert looked_for == [registry.GROUP] * 2


def test_a_pass_runs_where_a_pipeline_a_preset_or_an_option_names_it(package) -> None:
    package("sheep")
    assert said(passes="count-sheep{least=1}") == ["2 calls"] and said(passes="count-sheep{least=9}") == []
    assert said(preset="counted-sheep") == ["2 calls"]
    options = LightintOptions(preset="counted-sheep", density=0.25)
    names = [step.name for step in pipeline_of(options).passes]
    assert names[names.index("dead-tail") + 1] == "count-sheep" and asked_passes(options) == ("count-sheep",)
    assert "count-sheep{density=0.25}" in str(pipeline_of(options)), "options go to foreign passes as well"
    assert said(preset="counted-sheep", without=["count-sheep"]) == []
    with pytest.raises(OptionError, match="required pass 'count-sheep' is not part of the pipeline"):
        pipeline_of(LightintOptions(require=["count-sheep"]))


def test_a_name_that_nobody_has_is_an_error_with_a_hint(package) -> None:
    package("goats")
    for options in ({"passes": "count-goat"}, {"require": ["count-goat"]}, {"without": ["count-goat"]}):
        with pytest.raises(OptionError, match="did you mean 'count-goats'"):
            LightintOptions(**options)
    with pytest.raises(OptionError, match="did you mean 'counted-goats'"):
        LightintOptions(preset="counted-goat")
    for wrong in ({"require": [3]}, {"require": [["a"]]}, {"preset": ["a"]}):
        with pytest.raises(OptionError, match="is no"):
            LightintOptions(**wrong)


BROKEN = {
    "count-absent": ("lightint_no_such_module:Pass", "cannot be imported"),
    "count-missing": ("lightint_counting_cows:NoSuch", "cannot be imported"),
    "count-renamed": ("lightint_counting_cows:CountCows", "the pass has another name"),
    "count-function": ("os.path:join", "this is no pass"),
    "count-abstract": ("lightint_compile.passes.base:Pass", "this is no pass"),
    "dead-tail": ("lightint_counting_cows:CountCows", "the name is built in"),
}


def test_a_broken_one_says_so_and_is_in_nobodys_way(package, capsys: pytest.CaptureFixture[str]) -> None:
    package("cows", {name: value for name, (value, _) in BROKEN.items()}, broken="lightint_counting_cows:BROKEN")
    assert said(passes="count-cows") == ["2 calls"] and said(preset="exact") == []
    for name, (_, why) in BROKEN.items():
        if name in registry.PASSES:
            assert registry.pass_class(name).__module__.startswith("lightint_compile")
            continue
        with pytest.raises(ExtensionError, match=why) as caught:
            LightintOptions(passes=name)
        assert "counting-cows 0.1" in caught.value.where and "counting-cows" in caught.value.fix
    with pytest.raises(ExtensionError, match="there is no pass called 'no-such-pass'"):
        LightintOptions(preset="broken")

    print_passes(Console(width=500))
    listed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "exact, with calls" in listed and listed.count("cannot be used") == len(BROKEN) + 1
    findings = {finding.subject: finding for finding in examine()}
    assert (
        findings["count-cows"].state is State.GOOD and "a pass from counting-cows 0.1" in findings["count-cows"].detail
    )
    for name, (_, why) in BROKEN.items():
        assert findings[name].state is State.ABSENT and why in findings[name].detail


def test_who_takes_a_built_in_name_is_warned_of_once(package, caplog: pytest.LogCaptureFixture) -> None:
    package("bees", {"dead-tail": "lightint_counting_bees:CountBees"})
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        for _ in range(2):
            LightintOptions(passes="dead-tail,count-bees")
    (record,) = [each for each in caplog.records if each.name == entry_points.__name__]
    assert "'dead-tail': the name is built in" in record.getMessage() and "counting-bees 0.1" in record.getMessage()


def test_two_packages_with_one_name_are_refused(package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package("hens")
    taken = {registry.GROUP: {"count-hens": "lightint_counting_hens:CountHens"}}
    other_package.install(tmp_path, monkeypatch, "other-hens", {}, taken)
    with pytest.raises(ExtensionError, match="two packages register this name") as caught:
        LightintOptions(passes="count-hens")
    assert "counting-hens 0.1" in caught.value.why and "other-hens 0.1" in caught.value.why


def test_an_approximate_one_is_taken_whole_or_not_at_all_by_a_budget(package) -> None:
    package("geese", numerics="APPROXIMATE")
    options = LightintOptions(preset="counted-geese", max_relative_error=0.1)
    exact, whole = ladder_of(options)
    assert str(exact) == "exact" and [name for name, _ in whole.runs] == ["count-geese"]
    running = [[step.name for step in pipeline_of(rung.applied_to(options)).passes] for rung in (exact, whole)]
    assert ["count-geese" in names for names in running] == [False, True]
    assert "count-geese" not in [step.name for step in pipeline_of(options).passes], "not before it is calibrated"


def test_the_key_of_a_kept_program_moves_with_the_code_of_the_passes_that_run(package, tmp_path: Path) -> None:
    package("pigs")
    graph = torch.fx.symbolic_trace(lambda x: torch.relu(x))

    def key(**options: object) -> str | None:
        extension_sources._content.cache_clear()
        return key_of(graph, LightintOptions(**options), {})

    before, plain = key(preset="counted-pigs"), key(preset="exact")
    assert before == key(preset="counted-pigs") != plain
    source = tmp_path / "lightint_counting_pigs.py"
    source.write_text(source.read_text() + "# another rule\n")
    assert key(preset="counted-pigs") != before and key(preset="exact") == plain
    changed = key(preset="counted-pigs")
    metadata = tmp_path / "counting-pigs-0.1.dist-info"
    (metadata / "METADATA").write_text((metadata / "METADATA").read_text().replace("0.1", "0.2"))
    assert key(preset="counted-pigs") != changed
    source.unlink()
    assert key(preset="counted-pigs") is None, "code that cannot be read makes no key"


def test_an_extension_is_listed_once_however_often_its_folder_is_on_the_path(
    package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package("ducks")
    monkeypatch.syspath_prepend(tmp_path)
    assert [each.name for each in entry_points.extensions(registry.GROUP)].count("count-ducks") == 1
