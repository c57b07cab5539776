"""Expected facts of whole models: the grid of queries and keys at every kind of attention site, and its number."""

from __future__ import annotations

from collections import Counter

import pytest
import worldplay_tiny
import zoo

from lightint_compile.passes.analysis.attention_sites import AttentionSites
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.program import Program

#: (kind of site, queries, keys, mask) and how many there are.
Row = tuple[str, str, str, str]

TABLE: dict[str, dict[Row, int]] = {
    "wan": {("prefill", "4x8x8", "4x8x8", "none"): 2, ("cross", "4x8x8", "12", "none"): 2},
    "wan22_ti2v": {("prefill", "4x8x8", "4x8x8", "none"): 2, ("cross", "4x8x8", "12", "none"): 2},
    "skyreels_v2_df": {("prefill", "4x8x8", "4x8x8", "boolean"): 2, ("cross", "4x8x8", "12", "none"): 2},
    "helios": {
        ("other", "2x2x2 | 1x4x4 | 3x8x8 | 2x8x8", "2x2x2 | 1x4x4 | 3x8x8 | 2x8x8", "none"): 2,
        ("cross", "2x8x8", "12", "none"): 2,
    },
    "hunyuan_video": {
        ("text", "12", "12", "boolean"): 1,
        ("prefill", "4x8x8 | 12", "4x8x8 | 12", "boolean"): 2,
    },
    "hunyuan_video15": {("prefill", "4x8x8 | 12", "4x8x8 | 12", "boolean"): 2},
    "cosmos": {("prefill", "2x8x8", "2x8x8", "none"): 2, ("cross", "2x8x8", "12", "boolean"): 2},
    "cosmos_v2w": {("prefill", "2x8x8", "2x8x8", "none"): 2, ("cross", "2x8x8", "12", "none"): 2},
    "sana_wm": {("prefill", "4x8x8", "4x8x8", "none"): 4, ("cross", "4x8x8", "12", "boolean"): 4},
    "cogvideox": {("prefill", "12 | 2x8x8", "12 | 2x8x8", "none"): 2},
    "latte": {
        ("prefill", "1x4x4", "1x4x4", "none"): 1,
        ("cross", "1x4x4", "8", "none"): 1,
        ("text", "2", "2", "none"): 1,
    },
    "ltx": {("prefill", "2x4x4", "2x4x4", "none"): 2, ("cross", "2x4x4", "12", "additive"): 2},
    "kandinsky5": {
        ("text", "12", "12", "none"): 1,
        ("prefill", "2x8x8", "2x8x8", "none"): 2,
        ("cross", "2x8x8", "12", "none"): 2,
    },
}

#: The node whose axes seed the grid that the output unpatchifies; empty where the model gives flat tokens.
SEEDS = {
    "wan": {"conv3d"},
    "helios": {"conv3d"},
    "cosmos": {"hidden_states"},
    "cogvideox": {"conv2d"},
    "kandinsky5": {"hidden_states"},
    "ltx": set(),
}


def rows(program: Program) -> dict[Row, int]:
    sites = program.fact(AttentionSites)
    return dict(
        Counter((str(site.kind), str(site.query_axis), str(site.key_axis), str(site.mask_kind)) for site in sites)
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "sana_wm" else ()) for name in TABLE]
)
def test_sites_of_a_model(name: str):
    assert rows(zoo.program(name)) == TABLE[name]


@pytest.mark.parametrize("name", SEEDS)
def test_grids_are_confirmed_by_the_unpatchified_output(name: str):
    assert zoo.program(name).fact(TokenGrid).confirmed == SEEDS[name]


def test_a_text_length_that_depends_on_data_is_a_symbol_behind_the_grid():
    sites = [site for site in zoo.program("mochi").fact(AttentionSites) if site.query_grid]
    assert [str(site.query_grid) for site in sites] == ["2x8x8", "2x8x8"]
    assert all(not isinstance(site.key_axis.suffix, int) for site in sites)


def test_frames_alone_are_no_grid_and_the_reason_says_so():
    (site,) = (site for site in zoo.program("latte").fact(AttentionSites) if site.kind == "text")
    assert site.reason == "neither queries nor keys are a grid: it holds axis 2 of hidden_states only"


def test_a_world_model_chunk_with_symbolic_context():
    sites = worldplay_tiny.program().fact(AttentionSites)
    depth, steps = worldplay_tiny.CONFIG.depth, worldplay_tiny.CONFIG.steps
    kinds = Counter(str(site.kind) for site in sites)
    assert kinds == {"text": depth + 2, "prefill": depth, "denoise": depth * steps}
    for site in sites:
        if site.kind == "denoise":
            assert str(site.query_axis) == "4x4x6"
            assert [str(span.kind) for span in site.key_spans] == ["text"] * 3 + ["context", "current"]
            assert [span.sources for span in site.key_spans[:3]] == [("vision",), ("glyphs",), ("text",)]
            assert site.key_grid and not isinstance(site.key_grid.frames, int)
            assert len(site.key_pieces) == len(site.value_pieces) == 3
