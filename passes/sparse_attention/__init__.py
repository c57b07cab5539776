"""Attention over a token grid becomes block-sparse attention: tiles of keys are scored, and the best ones are read.

The idea is that of the published method for interactive video models: mean-pooled queries and keys of 3-D tiles decide
which key tiles a query tile reads; text and the neighbourhood are always read. In a denoising step the release reads
all frames being made as well; here they are chosen among like all others, which loses less at the same budget. A site
is found by what its axes mean, not by the model's name.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from lightint_compile.errors import OptionError
from lightint_compile.kernels import cost, dispatch
from lightint_compile.kernels.checks import SUPPORTED_DTYPES
from lightint_compile.kernels.tiles import Layout, part_of
from lightint_compile.passes.analysis.attention_sites import AttentionSite, AttentionSites, SiteKind
from lightint_compile.passes.analysis.stated_inputs import entry_of
from lightint_compile.passes.analysis.stated_roles import FRAMES_OF
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.base import Pass, PassResult, spelt
from lightint_compile.passes.ir.fake_values import hinted_shape, refresh, size_of
from lightint_compile.passes.ir.flops import flops_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind, at, module_path_of
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.sizes import same
from lightint_compile.passes.sparse_attention.context_pools import ContextPools
from lightint_compile.passes.sparse_attention.frame_masks import FrameMask
from lightint_compile.passes.sparse_attention.grid_sizes import GridSizes
from lightint_compile.passes.sparse_attention.rewrite import Choice, one_sided, rewrite_site
from lightint_compile.passes.sparse_attention.sample_rows import SampleMasks, Samples
from lightint_compile.passes.sparse_attention.segments import MaskRows, is_told_apart
from lightint_compile.passes.sparse_attention.site_density import Stated, check, stated_of, without_site
from lightint_compile.passes.sparse_attention.site_masks import Mask, SiteMasks, Unknown


class Obstacle(NamedTuple):
    """Why a site stays dense."""

    rule: str
    message: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class SparseAttention(Pass):
    """Makes attention block-sparse where its axes hold one block of frames.

    Attributes:
        density: kept fraction of the visual key tiles where the grid attends to itself.
        context_density: budget of a denoising step: as many tiles as the current frames have, and this share of the
            context's, however many frames it has in a call; ``none`` applies ``density`` to all tiles there as well.
        keep_current: spend that budget on all of the current frames first, as the release does, not on the best tiles.
        coverage: softmax mass of the pooled scores at which a query tile may stop before its budget.
        tile: (frames, height, width) tokens of a tile.
        protect_frames: latest frames that every query keeps.
        neighbours: Manhattan radius in tiles that every query keeps.
        skipped_means: approximate a skipped tile by this many mean keys and values, or as many as the tile
            can be cut into; 0 leaves them out, as the release does.
        min_tokens: keys below which a site stays dense, and from which it is sparse; ``none`` asks the device's cost
            model. Either is asked once, here, unless a size of the site is only known at each call.
        min_frame_tiles: tiles of a frame (rows x columns) below which a site stays dense too where ``min_tokens`` is
            ``none``: the mean of so large a part of a picture does not tell which part matters.
        skip_first: leave sites in the first blocks dense; the block is the first number in the module path.
        site_density: what replaces both densities at sites of these module paths, see :mod:`.site_density`.
    """

    name: ClassVar[str] = "sparse-attention"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE

    density: float = 0.3
    context_density: float | None = 0.05
    keep_current: bool = False
    coverage: float | None = None
    tile: tuple[int, ...] = (4, 8, 4)
    protect_frames: int = 0
    neighbours: int = 1
    skipped_means: int = 2
    min_tokens: int | None = None
    min_frame_tiles: int = 24
    skip_first: int = 0
    site_density: Stated = ()

    def __post_init__(self) -> None:
        for name in ("density", "context_density", "coverage"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                fix = f"for example {spelt(name)}=0.3"
                raise OptionError(f"{name} is a kept fraction in (0, 1]", where=self.name, why=f"got {value}", fix=fix)
        if len(self.tile) != 3 or any(extent < 1 for extent in self.tile):
            raise OptionError("a tile has three positive extents", where=self.name, fix="for example tile=4x8x4")
        if self.skipped_means not in _PARTS:
            why = f"got {self.skipped_means}"
            raise OptionError("skipped_means is 0, 1, 2, 4 or 8", where=self.name, why=why, fix="skipped-means=2")
        self.check_not_negative("protect_frames", "neighbours", "min_tokens", "min_frame_tiles", "skip_first")
        check(self.site_density, self.name)

    def run(self, program: Program) -> PassResult:
        """Rewrite every site that can and should be sparse, and say of every other why not."""
        rewriter = Rewriter(program, self.name)
        masks = SiteMasks(program, rewriter)
        grids = program.fact(TokenGrid)
        sizes = GridSizes(program)
        verdicts = [(site, self._judge(site, sizes, masks.of(site))) for site in program.fact(AttentionSites)]
        chosen = [(site, choice) for site, choice in verdicts if isinstance(choice, Choice)]
        pools = ContextPools([(site, choice.layout.tile) for site, choice in chosen])
        remarks = [
            _missed(site, verdict, sizes) if isinstance(verdict, Obstacle) else _applied(site, verdict, pools, sizes)
            for site, verdict in verdicts
        ]
        remarks += _refused(program, grids.past.refused)
        remarks += _unnamed(self.site_density, [site for site, _ in verdicts])
        changed, rows, samples = [], MaskRows(), SampleMasks(rewriter)
        for site, choice in chosen:
            with rewriter.at(site.node, rule=str(site.kind)):
                found = rewrite_site(site, choice, sizes, pools, rows, samples, rewriter)
            call = masks.calls.get(site.node)
            rewriter.replace(site.node if call is None else call.result, found)
            changed.append(found)
        masks.give_up(rewriter)
        if masks.calls and not changed:
            program.changed()
        refresh(program, changed)
        return PassResult(bool(changed), tuple(remarks))

    def _judge(self, site: AttentionSite, sizes: GridSizes, mask: Mask | Unknown | None) -> Choice | Obstacle:
        obstacle = next(_obstacles(site, mask, sizes), None)
        if obstacle is not None or isinstance(mask, Unknown):
            assert obstacle is not None  # an unknown mask is one
            return obstacle
        if _block_number(site) < self.skip_first:
            return Obstacle("skip-first", f"the first {self.skip_first} blocks stay dense")
        if self._stated(site) == 1:
            return Obstacle("site-density", "1 is stated of it")
        layout = self._layout(site, sizes)
        if layout is None:
            return Obstacle("data-dependent", "a size of its grid is only known at run time")
        query = site.query.meta["val"]
        kernel = dispatch.implementation(query, layout.tile)
        if (
            kernel == "reference" and query.device.type != "meta"
        ):  # nothing runs on meta tensors: they stand for any device's
            return Obstacle("no-kernel", kernel.reason)
        choice = self._choice(site, layout, kernel, mask)
        return self._no_gain(site, choice) or choice

    def _stated(self, site: AttentionSite) -> float | None:
        return stated_of(self.site_density, _path(site)) if self.site_density else None

    def _layout(self, site: AttentionSite, sizes: GridSizes) -> Layout | None:
        assert site.query_grid is not None
        current = sizes.hints(site.query_axis.grids)
        if current is None:
            return None
        keys = [sizes.frames_seen(grid, current[1] * current[2]) for grid in site.key_axis.grids]
        if None in keys:
            return None
        total = sum(frames for frames in keys if frames)
        prefix = hinted_shape(site.key.meta["val"])[2] - total * current[1] * current[2]
        return Layout.of(current, (total, *current[1:]), self.tile, prefix)

    def _choice(self, site: AttentionSite, layout: Layout, kernel: dispatch.Choice, mask: Mask | None) -> Choice:
        """A share of everything, or as many tiles as the current frames have and a share of the context."""
        assert site.query_grid is not None
        frames, stated, context_density = site.query_grid.frames, self._stated(site), None
        density, protected = self.density if stated is None else stated, self.protect_frames
        has_budget = stated is None and site.kind is SiteKind.DENOISE and isinstance(frames, int)
        if has_budget and self.context_density is not None:
            density, context_density = 1.0, self.context_density
            protected = max(protected, frames if self.keep_current else 0)
        parts = _parts_of(layout.tile, self.skipped_means)
        kept = (density, context_density, self.coverage, protected, self.neighbours, parts)
        is_decided = _is_static(site) and not isinstance(mask, FrameMask)  # a group's call may be small
        return Choice(layout, *kept, 0 if is_decided else self.min_tokens, kernel, mask)

    def _no_gain(self, site: AttentionSite, choice: Choice) -> Obstacle | None:
        batch, heads, queries, head_dim = hinted_shape(site.query.meta["val"])
        keys = choice.layout.key_tokens
        if choice.keeps_all:
            blocks = f"{choice.layout.key_blocks} tiles of keys, and all would be kept"
            return Obstacle("nothing-to-skip", f"it has {blocks}", "use a smaller tile or density")
        if self.min_tokens is not None:
            if keys < self.min_tokens:
                return Obstacle("too-short", f"{keys} keys, fewer than min-tokens {self.min_tokens}")
            return None
        tiles = choice.layout.row_blocks
        if tiles < self.min_frame_tiles:
            frame = f"{choice.layout.height} x {choice.layout.width} tokens"
            why = f"a frame of {frame} is {tiles} tiles, too few to choose from"
            return Obstacle("coarse-tiles", why, "use a smaller tile; min-tokens=0 rewrites regardless")
        query = site.query.meta["val"]
        shape = (batch, heads, head_dim, queries, keys)
        density, kernel = min(choice.read_keys / keys, 1.0), str(choice.kernel)
        if cost.prefers_sparse(query.device, query.dtype, *shape, density, kernel):
            return None
        why = f"skipping does not pay with {keys} keys and the {kernel} kernel"
        return Obstacle("too-short", why, "min-tokens=0 rewrites regardless")


def _parts_of(tile: tuple[int, int, int], wanted: int) -> int:
    """The most parts, up to ``wanted``, that a tile can be cut into."""
    for parts in sorted(_PARTS, reverse=True):
        if parts <= wanted:
            with suppress(ValueError):
                part_of(tile, parts)
                return parts
    return 0


_PARTS = (0, 1, 2, 4, 8)


def _is_static(site: AttentionSite) -> bool:
    """Whether all that dense or sparse depends on is known now, and not only at each call."""
    values = (site.query.meta["val"], site.key.meta["val"])
    return all(isinstance(size_of(size), int) for value in values for size in value.shape)


_JOINED = "join the cache, whole frames of it, with torch.cat in front of the keys of the current frames"


def _obstacles(site: AttentionSite, mask: Mask | Unknown | None, sizes: GridSizes) -> Iterator[Obstacle]:
    """What keeps a site dense whatever its size, most telling first."""
    if site.kind is SiteKind.TEXT:
        yield Obstacle("no-grid", site.reason)
    if site.kind is SiteKind.CROSS:
        yield Obstacle("cross-attention", site.reason)
    if site.kind is SiteKind.CACHE:
        yield Obstacle("cache", site.reason, _JOINED)
    if site.query_grid is None:
        yield Obstacle("several-grids", site.reason)
    if isinstance(mask, Unknown):
        yield Obstacle("mask", *mask)
    if site.dropout:
        yield Obstacle("dropout", f"it drops scores with probability {site.dropout}", "call the model in eval mode")
    yield from _operand_obstacles(site)
    if not one_sided(site.query_axis) or not _are_told_apart(site, mask, sizes):
        yield Obstacle("text-on-both-sides", f"queries {site.query_axis}, keys {site.key_axis}")


def _are_told_apart(site: AttentionSite, mask: Mask | Unknown | None, sizes: GridSizes) -> bool:
    """Whether the text of the keys can be put in front of their frames."""
    if isinstance(mask, FrameMask | Samples) or any(map(sizes.is_counted, site.key_axis.grids)):
        return one_sided(site.key_axis)
    return is_told_apart(site.key_axis)


def _operand_obstacles(site: AttentionSite) -> Iterator[Obstacle]:
    query, key, value = (tensor_of(node) for node in (site.query, site.key, site.value))
    assert query is not None and key is not None and value is not None
    if query.dim() != 4:
        yield Obstacle("layout", f"its operands have {query.dim()} axes", "use [batch, heads, tokens, head_dim]")
        return
    if query.dtype not in SUPPORTED_DTYPES:
        yield Obstacle("dtype", f"there is no kernel for {query.dtype}")
    pairs = [*zip(key.shape, value.shape, strict=True), (query.shape[0], key.shape[0]), (query.shape[3], key.shape[3])]
    if not all(same(size_of(left), size_of(right)) for left, right in pairs):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (query, key, value))
        yield Obstacle("layout", f"query, key and value do not share batch, tokens and head_dim: {shapes}")
    if any(free_unbacked_symbols(tensor) for tensor in (query, key, value)):
        yield Obstacle("data-dependent", "the number of tokens depends on data (boolean indexing, nonzero)")


def _path(site: AttentionSite) -> str:
    """The module's path, the same for each call of it."""
    return module_path_of(site.node).split("@")[0]


def _block_number(site: AttentionSite) -> float:
    """The first number in the module path, ``blocks.3.attn1``; infinite where there is none."""
    found = re.search(r"\.(\d+)(?:\.|$)", _path(site))
    return float(found[1]) if found else math.inf


def _missed(site: AttentionSite, obstacle: Obstacle, sizes: GridSizes) -> Remark:
    return Remark(
        kind=RemarkKind.MISSED,
        pass_name=SparseAttention.name,
        rule=obstacle.rule,
        message=f"stays dense: {obstacle.message}",
        hint=obstacle.hint,
        flops_before=flops_of(site.node),
        args={"query": str(site.query_axis), "key": str(site.key_axis), FRAMES_OF: sizes.kept_inputs(site)},
        **at(site.node),
    )


def _unnamed(stated: Stated, sites: Sequence[AttentionSite]) -> Iterator[Remark]:
    """One remark for every entry of ``site_density`` that names no site."""
    for entry, hint in without_site(stated, [_path(site) for site in sites]):
        message = f"site_density names {entry}, where no attention of this graph is"
        yield Remark(
            kind=RemarkKind.MISSED, pass_name=SparseAttention.name, rule="site-density", message=message, hint=hint
        )


def _refused(program: Program, refused: Mapping[str, str]) -> Iterator[Remark]:
    """One remark for every entry that states frames which are not read as such."""
    nodes = dict(zip((entry.path for entry in program.inputs), program.placeholders(), strict=True))
    entries, paths = entry_of(program), defaultdict[str, list[str]](list)
    for path in refused:
        paths[entries[path]].append(path)
    for entry, (first, *rest) in paths.items():
        told = f"{entry} is stated to hold frames, and they are not read as such: {refused[first]}"
        remark = Miss(nodes[first], told, _STATED).remark(SparseAttention.name, "stated-frames")
        yield replace(remark, args={FRAMES_OF: [first, *rest]})


_STATED = (
    'options={"grids": {"<input>": [None, height, width]}} says how many tokens a frame has; keys and values are read '
    "as frames where torch.cat puts both in front of those of the current frames"
)


def _applied(site: AttentionSite, choice: Choice, pools: ContextPools, sizes: GridSizes) -> Remark:
    whys = dict.fromkeys(filter(None, (sizes.past.why_of(grid.seed) for grid in site.key_axis.grids)))
    before = flops_of(site.node)
    layout = choice.layout
    queries = hinted_shape(site.query.meta["val"])[2]
    read = layout.current_tokens * choice.read_keys + (queries - layout.current_tokens) * layout.key_tokens
    after = before * read / (queries * layout.key_tokens)
    return Remark(
        kind=RemarkKind.APPLIED,
        pass_name=SparseAttention.name,
        rule=str(site.kind),
        message="; ".join([_said(site, choice, sizes), *whys]),
        args={
            "decided": choice.decided,
            "kernel": str(choice.kernel),
            "kernel_reason": choice.kernel.reason,
            "query_grid": str(site.query_grid),
            "key_grid": sizes.shown(site.key_axis.grids),
            FRAMES_OF: sizes.kept_inputs(site),
            "prefix": layout.prefix,
            "tile": list(layout.tile),
            "density": round(choice.kept_blocks / int(layout.key_blocks), 4),
            "skipped_means": choice.skipped_means,
            "kept_blocks": choice.kept_blocks,
            "key_blocks": int(layout.key_blocks),
            "context_pool_readers": pools.readers(site, layout.tile),
        },
        flops_before=before,
        flops_after=int(after),
        numerics=Numerics.APPROXIMATE,
        **at(site.node),
    )


def _said(site: AttentionSite, choice: Choice, sizes: GridSizes) -> str:
    """What is kept, what runs it, and where the decision waits for a call."""
    layout, kernel = choice.layout, choice.kernel
    kept = f"{choice.kept_blocks} of {layout.key_blocks} key tiles of {sizes.shown(site.key_axis.grids)}"
    why = f" ({kernel.reason})" if kernel == "portable" else ""  # another kernel might have been expected
    waits = "" if choice.decided == "when compiled" else f"; dense or sparse is decided {choice.decided}"
    masked = "" if choice.mask is None else f", under {choice.mask.told}"
    hidden = isinstance(choice.mask, FrameMask) and not choice.mask.sees_text
    text = "no" if hidden else layout.prefix
    what = f"grid {sizes.shown(site.query_axis.grids)} attends to {kept}, and to {text} text tokens{masked}"
    return f"{what}, by the {kernel} kernel{why}{waits}"
