"""What says which keys the queries of a site see: a mask of keys, one of frames, or samples in a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import AttentionSite
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.sparse_attention.flex_sites import FlexSite, flex_sites
from lightint_compile.passes.sparse_attention.frame_masks import FrameMask, frame_mask_of
from lightint_compile.passes.sparse_attention.key_mask import KeyMask, key_mask_of
from lightint_compile.passes.sparse_attention.sample_rows import Samples, tried

Mask: TypeAlias = KeyMask | FrameMask | Samples


class Unknown(NamedTuple):
    """A mask that is nothing of these: what a site has, and what to do."""

    what: str
    hint: str


class SiteMasks:
    """The masks of sites; a mask that several sites share is read once.

    Attributes:
        calls: what stands for attention in the graph, by the site that was made of it to be looked at.
    """

    def __init__(self, program: Program, rewriter: Rewriter) -> None:
        found: list[Samples | FlexSite] = [*tried(program, rewriter), *flex_sites(program, rewriter)]
        self.calls = {each.site: each for each in found}
        self._frames: dict[tuple[fx.Node, str, str], FrameMask | None] = {}
        self._flex: dict[tuple[Any, ...], FrameMask | str] = {}

    def of(self, site: AttentionSite) -> Mask | Unknown | None:
        """What a site has; ``None`` where every query sees every key."""
        call = self.calls.get(site.node)
        if isinstance(call, FlexSite):
            frames = self._of_flex(call, site)
            return Unknown(f"it is flex_attention, and {frames}", _FLEX) if isinstance(frames, str) else frames
        if call is not None:
            return call
        found = key_mask_of(site)
        return (self._of_frames(site) or _unknown(site, found)) if isinstance(found, str) else found

    def _of_flex(self, call: FlexSite, site: AttentionSite) -> FrameMask | str:
        key = call.mask.code, call.tables, call.why, str(site.query_axis), str(site.key_axis)
        if key not in self._flex:
            self._flex[key] = call.frames(site)
        found = self._flex[key]
        return found if isinstance(found, str) else replace(found, source=call)

    def _of_frames(self, site: AttentionSite) -> FrameMask | None:
        if site.mask is None:
            return None
        key = site.mask, str(site.query_axis), str(site.key_axis)
        if key not in self._frames:
            self._frames[key] = frame_mask_of(site)
        return self._frames[key]

    def give_up(self, rewriter: Rewriter) -> None:
        """Take the sites that were made out of the graph."""
        for site in self.calls:
            rewriter.erase_unused(site)


_OF_KEYS = "a mask of keys, [batch, 1, 1, keys], is taken; where the mask is all true (no padding), leave it out"
_FLEX = "compute what mask_mod reads from sizes and constants inside of the model, frame by frame"


def _unknown(site: AttentionSite, why: str) -> Unknown:
    if site.mask is None:
        return Unknown("it is causal", why)
    shape = "x".join(map(str, site.mask_shape))
    return Unknown(f"it has a {site.mask_kind} mask of {shape}", f"{why}; {_OF_KEYS}")
