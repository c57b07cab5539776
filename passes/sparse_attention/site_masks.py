"""What says which keys the queries of a site see: a mask of keys, one of frames, or samples in a row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import AttentionSite
from lightint_compile.passes.sparse_attention.frame_masks import FrameMask, frame_mask_of
from lightint_compile.passes.sparse_attention.key_mask import KeyMask, key_mask_of
from lightint_compile.passes.sparse_attention.sample_rows import Samples

Mask: TypeAlias = KeyMask | FrameMask | Samples


class SiteMasks:
    """The masks of sites, with the calls that were tried as sites; a mask that several sites share is read once."""

    def __init__(self, tried: Iterable[Samples]) -> None:
        self.tried = {each.site: each for each in tried}
        self._frames: dict[tuple[fx.Node, str, str], FrameMask | None] = {}

    def of(self, site: AttentionSite) -> Mask | str | None:
        """What a site has, ``None`` where every query sees every key, or in words why it is nothing that is known."""
        samples = self.tried.get(site.node)
        if samples is not None:
            return samples
        found = key_mask_of(site)
        return (self._of_frames(site) or found) if isinstance(found, str) else found

    def _of_frames(self, site: AttentionSite) -> FrameMask | None:
        if site.mask is None:
            return None
        key = site.mask, str(site.query_axis), str(site.key_axis)
        if key not in self._frames:
            self._frames[key] = frame_mask_of(site)
        return self._frames[key]
