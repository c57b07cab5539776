"""One table of options: what is made from it agrees with it, and a further option is one field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lightint_compile import LightintOptions
from lightint_compile.errors import OptionError
from lightint_compile.options.checks import number
from lightint_compile.options.pipelines import pipeline_of, unasked_passes
from lightint_compile.options.presets import PRESETS, Preset
from lightint_compile.options.table import markdown, option, table_of
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics
from lightint_compile.passes.registry import PASSES, pass_class

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, kw_only=True)
class WithHaze(LightintOptions):
    haze: float | None = option(
        None,
        number("metres, 0 or more", "30", lambda value: value >= 0),
        values="metres",
        help="from where on nothing is drawn",
        to_passes=True,
        threshold=True,
    )


@dataclass(frozen=True, kw_only=True)
class Fade(Pass):
    """Reads the option."""

    name: ClassVar[str] = "fade"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE
    haze: float = 10.0

    def run(self, program: Program) -> PassResult:
        return PassResult(False)


@pytest.fixture
def fade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lightint_compile.passes.pipeline.pass_class",
        lambda name, *place: Fade if name == "fade" else pass_class(name, *place),
    )
    monkeypatch.setitem(PRESETS, "all", Preset("", ("dead-tail", "fade")))


def refused(**given: Any) -> str:
    with pytest.raises(OptionError) as caught:
        WithHaze.from_mapping(given)
    return str(caught.value)


def test_a_further_option_is_one_field() -> None:
    options = WithHaze.from_mapping({"haze": 40, "preset": "exact"})
    assert options.haze == 40.0 and WithHaze.from_mapping(options.to_dict()) == options
    assert options.to_dict() == {"haze": 40.0, "preset": "exact"}
    assert "haze=40.0" in str(options)
    assert "expected metres, 0 or more" in refused(haze=-1)
    assert "did you mean 'haze'?" in refused(hase=1)
    assert "haze cannot be set together with max_relative_error" in refused(haze=1, max_relative_error=0.1)
    assert "| `haze` | metres | from where on nothing is drawn |" in markdown(WithHaze)
    assert "haze" not in markdown(LightintOptions)


@pytest.mark.usefixtures("fade")
def test_a_further_option_goes_to_the_pass_that_reads_it() -> None:
    assert str(pipeline_of(WithHaze(haze=40))) == "dead-tail,fade{haze=40.0}"
    assert unasked_passes(WithHaze()) == ("fade",) and unasked_passes(WithHaze(haze=40)) == ()
    with pytest.raises(OptionError, match="no pass of the pipeline takes the option 'haze'"):
        pipeline_of(WithHaze(haze=40, passes="dead-tail"))


def test_every_option_is_a_row_with_a_default_that_its_check_takes() -> None:
    rows = table_of(LightintOptions)
    assert [row.name for row in rows] == [field.name for field in dataclasses.fields(LightintOptions)]
    for row in rows:
        assert row.check(row.name, row.default) == row.default and row.values and row.help


def test_what_goes_to_passes_has_a_pass_that_reads_it() -> None:
    fields = {field.name for name in PASSES for field in dataclasses.fields(pass_class(name))}
    assert {row.name for row in table_of(LightintOptions) if row.to_passes} <= fields


def test_thresholds_go_to_passes() -> None:
    thresholds = [row for row in table_of(LightintOptions) if row.threshold]
    assert len(thresholds) >= 6 and all(row.to_passes for row in thresholds)


def test_the_how_to_has_the_table() -> None:
    page = (ROOT / "docs/how-to/options.md").read_text(encoding="utf-8")
    assert f"\n{markdown(LightintOptions)}\n\n" in page, "lightint options --markdown prints it"


def test_the_docstring_has_the_options() -> None:
    assert all(
        f"{row.name} ({row.values}): {row.help}." in LightintOptions.__doc__ for row in table_of(LightintOptions)
    )
