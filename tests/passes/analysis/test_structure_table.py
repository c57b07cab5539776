"""Regions, the loop and roles over real models: what is found, or the reason why not."""

from __future__ import annotations

import pytest
import zoo

from lightint_compile.passes.analysis.loop import DenoisingLoop
from lightint_compile.passes.analysis.regions import Regions
from lightint_compile.passes.analysis.roles import Role, Roles

#: Copies of each repeated block by the module that holds them; a model with one layer of a kind repeats nothing.
BLOCKS = {
    "wan": {"blocks": 2},
    "wan22_ti2v": {"blocks": 2},
    "skyreels_v2_df": {"blocks": 2},
    "helios": {"blocks": 2},
    "hunyuan_video": {},
    "hunyuan_video15": {"model.transformer_blocks": 2},
    "cosmos": {"transformer_blocks": 2},
    "cosmos_v2w": {"transformer_blocks": 2},
    "sana_wm": {"blocks": 4},
    "cogvideox": {"transformer_blocks": 2},
    "latte": {},
    "ltx": {"transformer_blocks": 2},
    "kandinsky5": {"visual_transformer_blocks": 2},
    "mochi": {"transformer_blocks": 2},
}

TEXT = {name: "encoder_hidden_states" for name in BLOCKS} | {"hunyuan_video15": "text"}


@pytest.mark.parametrize("name", zoo.names())
def test_structure(name: str) -> None:
    program = zoo.program(name)
    blocks: dict[str, set[str]] = {}
    for group in program.fact(Regions):
        for path in group.paths:
            holder, _, index = path.rpartition(".")
            blocks.setdefault(holder, set()).add(index)
    assert {holder: len(found) for holder, found in blocks.items()} == BLOCKS[name]
    loop = program.fact(DenoisingLoop)
    assert not loop
    assert loop.reason
    roles = program.fact(Roles)
    assert roles.of("hidden_states") is Role.LATENT
    assert roles.of("timestep") is Role.TIMESTEP
    assert roles.of(TEXT[name]) is Role.TEXT
