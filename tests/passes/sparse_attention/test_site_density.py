"""Kept fractions stated of single sites: which sites they reach, what is kept there, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from differential import rewritten
from hypothesis import given
from hypothesis import strategies as st

import lightint_compile
from lightint_compile.errors import OptionError
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.passes.sparse_attention.site_density import stated_of

SMALL = "tile=2x2x2,min-tokens=0"


def kept(text: str) -> dict[str, float]:
    """The kept fraction of each rewritten site of Wan's two blocks."""
    result = rewritten(zoo.program("wan"), f"sparse-attention{{{text}}}")[1]
    return {each.module_path: each.args["density"] for each in applied(result.remarks)}


def applied(remarks: tuple[Remark, ...]) -> list[Remark]:
    return [each for each in remarks if each.kind is RemarkKind.APPLIED]


def test_a_site_has_what_is_stated_of_it_and_the_others_what_they_had():
    one, other = kept(f"{SMALL},density=0.5"), kept(f"{SMALL},density=0.2")
    paths = list(one)
    assert paths == list(other) and len(paths) == 2
    stated = kept(f"{SMALL},density=0.5,site-density={paths[1]}:0.2")
    assert stated == {paths[0]: one[paths[0]], paths[1]: other[paths[1]]}
    assert stated[paths[0]] > stated[paths[1]]


def test_a_site_at_one_stays_dense_and_says_so():
    result = rewritten(zoo.program("wan"), f"sparse-attention{{{SMALL},site-density=blocks.0.*:1}}")[1]
    assert [each.module_path for each in applied(result.remarks)] == ["blocks.1.attn1"]
    (left,) = [each for each in result.remarks if each.rule == "site-density"]
    assert (left.module_path, left.message) == ("blocks.0.attn1", "stays dense: 1 is stated of it")


def test_an_entry_that_names_no_site_is_told_with_the_nearest():
    result = rewritten(zoo.program("wan"), f"sparse-attention{{{SMALL},site-density=blocks.1.atn1:1}}")[1]
    assert len(applied(result.remarks)) == 2
    (told,) = [each for each in result.remarks if each.rule == "site-density"]
    assert told.message == "site_density names blocks.1.atn1, where no attention of this graph is"
    assert told.hint == "did you mean 'blocks.1.attn1'?"


PATHS = st.lists(st.sampled_from(["a.0.b", "a.1.b", "a.10.b", "b.0"]), min_size=1, max_size=4, unique=True)


@given(PATHS, st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_paths_go_before_patterns_and_longer_patterns_before_shorter(paths: list[str], long: float, short: float):
    stated = (("*", short), ("a.*", long), *((path, 0.05) for path in paths))
    for path in ("a.0.b", "a.1.b", "a.10.b", "b.0"):
        wanted = 0.05 if path in paths else long if path.startswith("a.") else short
        assert stated_of(stated, path) == wanted
    assert stated_of(stated[2:], "c") is None
    assert stated_of((("a.1*", short),), "a.0.b") is None


def test_options_and_pipeline_texts_say_the_same():
    options = LightintOptions(preset="sparse", site_density={"blocks.*": 0.5, "blocks.0.*": 1})
    assert LightintOptions(preset="sparse", site_density="blocks.0.*:1+blocks.*:0.5") == options
    assert LightintOptions.from_mapping(options.to_dict()) == options
    text = str(pipeline_of(options))
    assert "site-density=blocks.*:0.5+blocks.0.*:1.0" in text
    assert str(Pipeline.parse(text)) == text
    assert LightintOptions(preset="sparse", site_density={}) == LightintOptions(preset="sparse")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"blocks.0": 0}, "fraction"),
        ({"blocks.0": 1.5}, "fraction"),
        ({"blocks.0": True}, "fraction"),
        ({"blocks,0": 0.5}, "module path"),
        ({"": 0.5}, "module path"),
        ({3: 0.5}, "module path"),
        ("blocks.0", "kept fraction each"),
        ("blocks.0:1+blocks.0:0.5", "kept fraction each"),
        (0.5, "kept fraction each"),
    ],
)
def test_what_cannot_be_taken_is_one_clear_error(given: Any, said: str):
    with pytest.raises(OptionError, match=said):
        LightintOptions(preset="sparse", site_density=given)


@pytest.mark.parametrize("text", ["blocks.0:2", "blocks.0:0", "blocks.0", ":0.5", "a:0.5+a:0.4"])
def test_so_is_a_pipeline_text(text: str):
    with pytest.raises(OptionError, match=r"site[-_]density|not a value"):
        Pipeline.parse(f"sparse-attention{{site-density={text}}}")


def test_exact_takes_none_and_the_model_of_all_dense_sites_is_exact():
    with pytest.raises(OptionError, match="no pass of the pipeline takes"):
        pipeline_of(LightintOptions(preset="exact", site_density={"*": 0.5}))
    model, given = zoo.build("wan")
    options = {"preset": "sparse", "min_tokens": 0, "tile": [2, 2, 2], "delegate": "eager"}
    with torch.no_grad():
        (wanted,) = model(**given)
        dense = torch.compile(model, backend="lightint", options=options | {"site_density": {"*": 1}})
        torch.testing.assert_close(dense(**given)[0], wanted, rtol=1e-5, atol=1e-5)
        assert "1 is stated of it" in str(lightint_compile.report(dense))
        torch._dynamo.reset()
        sparse = torch.compile(model, backend="lightint", options=options)
        assert (sparse(**given)[0] - wanted).norm() > 1e-3 * wanted.norm()


def test_where_no_path_is_near_the_hint_says_where_paths_are_found():
    result = rewritten(zoo.program("wan"), f"sparse-attention{{{SMALL},site-density=decoder:1}}")[1]
    (told,) = [each for each in result.remarks if each.rule == "site-density"]
    assert told.hint == "remarks of this pass name the module of each site"
