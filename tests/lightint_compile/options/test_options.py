"""Options: equality, hashing, the dictionary form, and an error with a hint for everything that cannot be taken."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.fx as fx

import lightint_compile
from lightint_compile import LightintOptions
from lightint_compile.backend import lightint
from lightint_compile.errors import OptionError
from lightint_compile.options.ladder import ladder_of
from lightint_compile.options.pipelines import asked_passes, pipeline_of
from lightint_compile.options.presets import PRESETS
from lightint_compile.passes.registry import PASSES, pass_class


def test_defaults_are_all_rewrites_through_inductor() -> None:
    options = LightintOptions()
    assert (options.preset, options.delegate, options.strict, options.passes) == ("all", "inductor", False, None)
    assert LightintOptions.from_mapping(None) == LightintOptions.from_mapping({}) == options


def test_equal_options_are_equal_and_hash_alike() -> None:
    left = LightintOptions.from_mapping({"roles": {"b": "camera", "a": "latent"}, "require": ["dead-tail"]})
    right = LightintOptions(roles=(("a", "latent"), ("b", "camera")), require=("dead-tail",))
    assert left == right and hash(left) == hash(right)
    assert left != LightintOptions()


def test_the_dictionary_form_round_trips() -> None:
    given = {"preset": "sparse", "density": 0.25, "tile": [2, 4, 4], "roles": {"x": "latent"}, "require": ["dead-tail"]}
    options = LightintOptions.from_mapping(given)
    assert options.to_dict() == given
    assert LightintOptions.from_mapping(options.to_dict()) == options


def test_options_are_frozen() -> None:
    with pytest.raises(AttributeError):
        LightintOptions().preset = "off"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"presset": "exact"}, "did you mean 'preset'?"),
        ({"zzz": 1}, "known: age, also, approximate, artifacts, chunk_frames, clip_frames, context_density, coverage"),
        ({"preset": "exakt"}, "did you mean 'exact'?"),
        ({"preset": "zzz"}, f"known: {', '.join(sorted(PRESETS))}"),
        ({"preset": None}, "is no preset"),
        ({"delegate": "inductr"}, "did you mean 'inductor'?"),
        ({"roles": {"x": "latnet"}}, "did you mean 'latent'?"),
        ({"roles": "latent"}, "input names with a role each"),
        ({"roles": 3}, "input names with a role each"),
        ({"require": ["ded-tail"]}, "did you mean 'dead-tail'?"),
        ({"require": "dead-tail"}, "a list of pass names"),
        ({"strict": 1}, "true or false"),
        ({"approximate": "yes"}, "true or false"),
        ({"density": 0}, "above 0 and at most 1"),
        ({"density": 1.5}, "above 0 and at most 1"),
        ({"density": True}, "above 0 and at most 1"),
        ({"density": "half"}, "above 0 and at most 1"),
        ({"density": float("nan")}, "above 0 and at most 1"),
        ({"context_density": 2}, "above 0 and at most 1"),
        ({"coverage": -0.1}, "above 0 and at most 1"),
        ({"min_tokens": -1}, "0 or more"),
        ({"min_tokens": 2.5}, "0 or more"),
        ({"tile": [4, 8]}, "three extents"),
        ({"tile": [4, 8, 0]}, "three extents"),
        ({"tile": "4x8x4"}, "three extents"),
        ({"chunk_frames": 0}, "latent frames, 1 or more"),
        ({"clip_frames": 1.5}, "latent frames, 1 or more"),
        ({"fov": 60}, "horizontal, vertical"),
        ({"fov": [60, 180]}, "between 0 and 180 degrees"),
        ({"view_depth": 0}, "a distance above 0"),
        ({"without": ["step-cash"]}, "did you mean 'step-cache'?"),
        ({"max_relative_eror": 0.1}, "did you mean 'max_relative_error'?"),
        ({"max_relative_error": 1.0}, "from 0 to below 1"),
        ({"max_relative_error": -0.1}, "from 0 to below 1"),
        ({"max_relative_error": float("nan")}, "from 0 to below 1"),
        ({"max_relative_error": "5%"}, "from 0 to below 1"),
        ({"min_psnr": 0}, "decibels above 0"),
        ({"min_psnr": True}, "decibels above 0"),
        ({"max_relative_error": 0.1, "drift": 0.2}, "drift cannot be set together with max_relative_error"),
        ({"min_psnr": 30, "density": 0.5, "overlap": 0.7}, "density and overlap cannot be set together with min_psnr"),
        ({"passes": 3}, "a pipeline text"),
        ({"passes": "outline-region"}, "did you mean 'outline-regions'?"),
        ({"passes": "outline-regions,"}, "does not parse"),
        ({"PRESET": "exact"}, "did you mean 'preset'?"),
        ({"preset": "EXACT"}, "did you mean 'exact'?"),
        ({"passes": "DEAD-TAIL"}, "did you mean 'dead-tail'?"),
        ({"roles": {"x": "Camera"}}, "did you mean 'camera'?"),
        ({"without": ["step_cache"]}, "there is no pass called 'step_cache'"),
        ({"without": ["STEP_CACHE"]}, "did you mean 'step-cache'?"),
        ({"require": ["nope"]}, "there is no pass called 'nope'"),
        ({"require": [3]}, "there is no pass called 3"),
        ({"grids": {"x": [1, 2]}}, "where: options['grids']['x']\n"),
        ({"also": "nope"}, "where: options['also']\n"),
        ({"also": "dead-tail{"}, "where: options['also'], column 1"),
        ({"also": "fp8-linear{rows=1}"}, "where: options['also'], 'rows=1'"),
        ({"also": "fp8-linear{min-rows=-4}"}, "where: options['also'], fp8-linear{min-rows=-4}"),
        ({"also": "dead-tail", "without": ["dead-tail"]}, "options['without'] names dead-tail too"),
        ({"passes": "sparse-attention{density=}"}, "expected a number\n  fix: for example density=0.3"),
        ({"passes": "sparse-attention{tile=4xx}"}, "expected a whole number\n  fix: for example tile=4x8x4"),
        ({"passes": "sparse-attention{density=0.3,density=0.4}"}, "sparse-attention is given density twice"),
        ({"passes": "fp8-linear{on-cpu=yes}"}, "expected true or false\n  fix: for example on-cpu=false"),
        ({"preset": "off", "min_psnr": 30}, 'min_psnr can do nothing under the preset "off"'),
        ({"preset": "off", "also": "fp8-linear"}, 'fp8-linear cannot run under the preset "off"'),
        ({"preset": "off", "max_relative_error": 0.1}, "max_relative_error can do nothing"),
    ],
)
def test_what_cannot_be_taken_is_an_error_with_a_hint(mapping: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        LightintOptions.from_mapping(mapping)
    assert said in str(caught.value)
    assert caught.value.where


@pytest.mark.parametrize("given", ["exact", "", 3, 0, ["preset"], [], ("preset", "exact")])
def test_options_are_a_mapping(given: Any) -> None:
    for take in (
        LightintOptions.from_mapping,
        lambda options: lightint_compile.explain(torch.nn.Identity(), torch.ones(2), options=options),
        lambda options: lightint_compile.export(torch.nn.Identity(), (torch.ones(2),), "absent.pt2", options=options),
        lambda options: lightint(fx.GraphModule({}, fx.Graph()), [], options=options),
    ):
        with pytest.raises(OptionError, match="a mapping is wanted") as caught:
            take(given)
        assert caught.value.where == "options" and caught.value.fix == 'options={"preset": "exact"}'
    with pytest.raises(OptionError, match="accelerate takes no options=") as caught:
        lightint_compile.accelerate(torch.nn.Identity(), options=given)
    assert "accelerate(model, preset=" in caught.value.fix


def _numbers() -> list[tuple[str, str]]:
    kinds = {name: pass_class(name) for name in PASSES}
    return [
        (name, field.name)
        for name, kind in kinds.items()
        for field in dataclasses.fields(kind)
        if any(word in str(field.type) for word in ("int", "float")) and "tuple" not in str(field.type)
    ]


@pytest.mark.parametrize(("name", "field"), _numbers())
def test_no_pass_takes_a_number_below_0(name: str, field: str) -> None:
    with pytest.raises(OptionError) as caught:
        LightintOptions(also=f"{name}{{{field.replace('_', '-')}=-1}}")
    error = caught.value
    assert error.where.startswith(f"options['also'], {name}{{") and (error.fix or error.why)


def test_a_budget_of_nothing_may_stand_beside_off() -> None:
    assert LightintOptions(preset="off", max_relative_error=0).runs_nothing
    assert not LightintOptions(preset="off", passes="dead-tail", min_psnr=30).runs_nothing


def test_the_settings_of_a_budget_leave_out_what_runs_besides_the_preset() -> None:
    options = LightintOptions(preset="sparse", also="fp8-linear,dead-tail", min_psnr=30)
    applied = [setting.applied_to(options) for setting in ladder_of(options)]
    assert not any(step.name == "fp8-linear" for step in pipeline_of(applied[0]).passes)
    assert any(step.name == "fp8-linear" for step in pipeline_of(applied[-1]).passes)


def test_a_pipeline_text_replaces_that_of_the_preset() -> None:
    assert str(pipeline_of(LightintOptions(passes="outline-regions"))) == "outline-regions"
    assert str(pipeline_of(LightintOptions(passes=""))) == ""


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_pipeline_that_parses_back(preset: str) -> None:
    pipeline = pipeline_of(LightintOptions(preset=preset))
    assert type(pipeline).parse(str(pipeline)) == pipeline
    assert [step.name for step in pipeline.passes] == list(PRESETS[preset].passes)


def test_an_option_goes_to_the_pass_that_has_it() -> None:
    text = str(pipeline_of(LightintOptions(preset="sparse", density=0.25, min_tokens=64, tile=(2, 4, 4))))
    assert "sparse-attention{density=0.25,tile=2x4x4,min-tokens=64}" in text


def test_an_option_that_no_pass_takes_is_an_error() -> None:
    with pytest.raises(OptionError, match="no pass of the pipeline takes the option 'density'"):
        pipeline_of(LightintOptions(passes="outline-regions", density=0.5))


def test_a_required_pass_must_be_in_the_pipeline() -> None:
    with pytest.raises(OptionError, match="'sparse-attention' is not part of the pipeline"):
        pipeline_of(LightintOptions(passes="outline-regions", require=("sparse-attention",)))


def test_passes_count_as_asked_for_when_written_or_when_the_preset_is_there_for_them() -> None:
    assert asked_passes(LightintOptions()) == ()
    assert asked_passes(LightintOptions(preset="sparse")) == ("sparse-attention",)
    assert asked_passes(LightintOptions(passes="outline-regions")) == ("outline-regions",)


def test_a_pass_left_out_leaves_the_others_and_is_not_asked_for() -> None:
    options = LightintOptions(preset="published", without=("step-cache",))
    assert [step.name for step in pipeline_of(options).passes] == list(PRESETS["published"].passes[:-1])
    assert "step-cache" not in asked_passes(options) and "sparse-attention" in asked_passes(options)
    assert LightintOptions.from_mapping(options.to_dict()) == options


@pytest.mark.parametrize("budget", [{"max_relative_error": 0}, {"min_psnr": float("inf")}])
def test_a_budget_of_nothing_is_exact(budget: dict[str, float]) -> None:
    exact = pipeline_of(LightintOptions(preset="exact"))
    assert pipeline_of(LightintOptions(preset="all", **budget)) == exact


@pytest.mark.parametrize("budget", [{"max_relative_error": 0.1}, {"min_psnr": 20}])
def test_a_budget_that_is_not_calibrated_approximates_nothing(budget: dict[str, float]) -> None:
    exact = pipeline_of(LightintOptions(preset="exact"))
    assert pipeline_of(LightintOptions(preset="all", min_tokens=0, tile=(2, 4, 4), **budget)) == exact
    with pytest.raises(OptionError, match="no pass of the pipeline takes the option 'min_tokens'"):
        pipeline_of(LightintOptions(preset="cache", min_tokens=0, **budget))
