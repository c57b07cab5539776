"""The options themselves: one frozen value, checked when it is made, equal and hashed by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.options.checks import (
    ROLES,
    choice,
    device_mesh,
    input_grids,
    input_roles,
    is_number,
    is_whole,
    none_or,
    number,
    pass_names,
    pipeline_text,
    preset_name,
    several,
    shipped_folder,
    site_densities,
    truth,
    whole,
)
from lightint_compile.options.error_limits import Budget
from lightint_compile.options.presets import DEFAULT_PRESET as DEFAULT_PRESET
from lightint_compile.options.presets import PRESETS
from lightint_compile.options.table import names_of, option, table_of, with_attributes
from lightint_compile.options.together import check_together
from lightint_compile.passes.ir.exchange_ways import EXCHANGES

DELEGATES = ("inductor", "eager")
"""Who runs the rewritten regions: Inductor, or plain PyTorch (for debugging and for machines without a compiler)."""


def _listed(names: Iterable[str], quote: str = '"') -> str:
    return ", ".join(f"`{quote}{name}{quote}`" for name in names)


_FRACTION = number("a fraction above 0 and at most 1", "0.3", lambda value: 0 < value <= 1)
_FRAMES = whole("a number of latent frames, 1 or more", "4", least=1)


def _is_angle(value: Any) -> bool:
    return is_number(value) and 0 < value < 180


@with_attributes
@dataclass(frozen=True, kw_only=True)
class LightintOptions:
    """Options of the backend, of ``explain`` and of ``export``.

    Each field is a row of the table of options (:mod:`lightint_compile.options.table`), which a how-to prints.

    Raises:
        OptionError: a value that cannot be taken, with the nearest one that can.
    """

    preset: str = option(
        DEFAULT_PRESET,
        preset_name,
        values=_listed(PRESETS),
        help=f'which passes run; `"{DEFAULT_PRESET}"` is the default',
    )
    passes: str | None = option(
        None,
        pipeline_text,
        values="text",
        help='a pipeline that replaces the preset\'s: `"canonicalize-attention,dead-tail"`; `""` runs none',
    )
    also: str | None = option(
        None,
        pipeline_text,
        values="text",
        help='passes that run besides the preset\'s, each at its usual place: `"fp8-linear"`',
    )
    approximate: bool = option(
        False,
        truth,
        values="`True`, `False`",
        help='whether `"all"` also approximates a model without cameras or a trajectory; `False` is the default',
    )
    roles: tuple[tuple[str, str], ...] = option(
        (),
        input_roles,
        values="`{input: role}`",
        help=f"what an input is, where the inference is wrong: {_listed(ROLES, '')}. `*` in a name stands for any "
        "characters",
        plain=dict,
    )
    grids: tuple[tuple[str, tuple[int | None, int, int]], ...] = option(
        (),
        input_grids,
        values="`{input: [frames, height, width]}` in tokens",
        help="the frames at the end of kept keys and values, where sizes and names do not tell; `None` as frames: as "
        "many as there are. Names as for `roles`",
        plain=lambda value: {path: list(grid) for path, grid in value},
    )
    require: tuple[str, ...] = option(
        (),
        pass_names,
        values="list of passes",
        help="each must rewrite something in the model, else `PassError` is raised",
        plain=list,
    )
    strict: bool = option(
        False,
        truth,
        values="`True`, `False`",
        help="a fault of lightint raises; otherwise less is rewritten, or Inductor gets the graph, and the report "
        "says so",
    )
    delegate: str = option(
        "inductor", choice(DELEGATES), values=_listed(DELEGATES), help="who runs the rewritten graph"
    )
    artifacts: str | None = option(
        None,
        shipped_folder,
        values="a folder",
        help="programs that `lightint compile` made, here or on another machine of this kind; they are looked up "
        "before those that this machine keeps itself",
    )
    traces: bool = option(
        False,
        truth,
        values="`True`, `False`",
        help="what Dynamo traced is kept beside the programs, and a later process takes it in place of tracing",
    )
    trace_blocks_once: bool = option(
        False,
        truth,
        values="`True`, `False`",
        help="Dynamo traces each distinct block of a model once, and the others are guarded as it is (torch 2.14; the "
        "report says where every call was traced)",
    )
    cuda_graphs: bool = option(
        False,
        truth,
        values="`True`, `False`",
        help="what runs between two decisions is recorded as a CUDA graph, so that a host that is slower than its GPU "
        'no longer sets the pace; it costs memory. `mode="reduce-overhead"` asks for it too',
    )
    density: float | None = option(
        None,
        _FRACTION,
        values="above 0, at most 1",
        help="kept fraction of the visual key tiles of sparse attention",
        to_passes=True,
        threshold=True,
    )
    context_density: float | None = option(
        None,
        _FRACTION,
        values="above 0, at most 1",
        help="the same for context tiles in a denoising step",
        to_passes=True,
        threshold=True,
    )
    coverage: float | None = option(
        None,
        _FRACTION,
        values="above 0, at most 1",
        help="share of the softmax of the pooled scores at which a query tile may stop early",
        to_passes=True,
        threshold=True,
    )
    site_density: tuple[tuple[str, float], ...] | None = option(
        None,
        site_densities,
        values="`{module path: above 0, at most 1}`",
        help="what replaces both densities in attention of these modules; `1` leaves it dense. Patterns as for `roles`",
        to_passes=True,
        plain=dict,
    )
    min_tokens: int | None = option(
        None,
        whole("a number of keys, 0 or more", "4096", least=0),
        values="a number",
        help="keys from which a site is sparse; below it is dense. By default the device's cost model decides",
        to_passes=True,
    )
    tile: tuple[int, ...] | None = option(
        None,
        several(
            3,
            lambda extent: is_whole(extent, 1),
            "three extents in tokens, 1 or more: frames, height, width",
            "[4, 8, 4]",
        ),
        values="`[frames, height, width]`",
        help="tokens of a tile",
        to_passes=True,
        plain=list,
    )
    overlap: float | None = option(
        None,
        number("a share from 0 to 1", "0.7", lambda value: 0 <= value <= 1),
        values="0 to 1",
        help="share of the coming view that earlier frames must have seen for it to count as seen before",
        to_passes=True,
        threshold=True,
    )
    drift: float | None = option(
        None,
        number("a relative change, 0 or more", "0.25", lambda value: value >= 0),
        values="0 or more",
        help="relative change of the first block's output up to which a denoising step is reused; above it, keys and "
        "values of context frames are kept for less long",
        to_passes=True,
        threshold=True,
    )
    age: int | None = option(
        None,
        whole("a number of chunks, 0 or more", "4", least=0),
        values="0 or more chunks",
        help="how long keys and values of context frames are kept; 0, as in the presets, computes them in every chunk",
        to_passes=True,
        threshold=True,
    )
    kept_frames: int | None = option(
        None,
        whole("a number of latent frames, 1 or more", "64", least=1),
        values="frames",
        help="how many frames are kept at most, which costs memory; by default as many as the model gathers",
        to_passes=True,
    )
    kept_bytes: int | None = option(
        None,
        whole("a number of bytes, 1 or more", "4000000000", least=1),
        values="bytes",
        help="how much memory the kept frames of one prompt may take; what does not fit is computed in every chunk",
        to_passes=True,
    )
    chunk_frames: int | None = option(
        None,
        _FRAMES,
        values="latent frames",
        help="how many come at once, where neither the steps' cameras nor the denoised latents say it; 4 otherwise",
        to_passes=True,
        asks=False,
    )
    clip_frames: int | None = option(
        None,
        _FRAMES,
        values="latent frames",
        help="length of a remembered clip, the unit in which context is chosen; 4 by default",
        to_passes=True,
        asks=False,
    )
    fov: tuple[float, ...] | None = option(
        None,
        several(2, _is_angle, "two angles between 0 and 180 degrees: horizontal, vertical", "[60, 35]"),
        values="`[horizontal, vertical]` in degrees",
        help="field of view of the cameras, in place of what intrinsics say; 60 by 35 where nothing says it",
        to_passes=True,
        asks=False,
        plain=list,
    )
    view_depth: float | None = option(
        None,
        number("a distance above 0, in the unit of the cameras' translations", "8", lambda value: value > 0),
        values="above 0, in the unit of the cameras' translations",
        help="how far a camera sees; 8 by default",
        to_passes=True,
        asks=False,
    )
    gpus: int | None = option(
        None,
        whole("a number of ranks, 1 or more", "4", least=1),
        values="ranks",
        help="deal the tokens out to the ranks of the default process group, of which there are so many; every rank "
        "makes the same call",
        to_passes=True,
        asks=False,
    )
    mesh: str | None = option(
        None,
        device_mesh,
        values="a `DeviceMesh` of one dimension",
        help="the same for the ranks of a part of the process group",
        to_passes=True,
        asks=False,
    )
    exchanges: str | None = option(
        None,
        none_or(choice(EXCHANGES)),
        values=_listed(EXCHANGES),
        help="how ranks exchange tokens for heads: by the backend of the process group, or by copies from GPU to GPU "
        "on one host, which take nothing from what runs meanwhile; `collectives` by default",
        to_passes=True,
        asks=False,
    )
    without: tuple[str, ...] = option(
        (), pass_names, values="list of passes", help="passes that are left out of the pipeline", plain=list
    )
    max_relative_error: float | None = option(
        None,
        number("a share of the result, from 0 to below 1", "0.05", lambda value: 0 <= value < 1),
        values="0 to below 1",
        help="an error budget; `0` is `exact`",
    )
    min_psnr: float | None = option(
        None,
        number("decibels above 0", "30", lambda value: value > 0),
        values="decibels above 0",
        help="the same in decibels; infinity is `exact`",
    )

    def __post_init__(self) -> None:
        for row in table_of(type(self)):
            object.__setattr__(self, row.name, row.check(row.name, getattr(self, row.name)))
        check_together(self)

    @property
    def is_shared(self) -> bool:
        """Whether several processes share the work of one call."""
        return self.gpus not in (None, 1) or not (self.mesh or "1@").startswith("1@")

    @property
    def runs_nothing(self) -> bool:
        """Whether graphs go to Inductor as they are."""
        return self.preset == "off" and self.passes is None and not self.is_shared

    @property
    def budget(self) -> Budget | None:
        """How far results may be from the exact ones; ``None`` where nothing is said about it."""
        budget = Budget(self.max_relative_error, self.min_psnr)
        return budget if budget.is_stated else None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> Self:
        """The options that a user's dictionary spells; an unknown key is an :class:`OptionError` with a hint."""
        if mapping is None:
            return cls()
        if not isinstance(mapping, Mapping):
            why, fix = f"a mapping is wanted, this is {type(mapping).__name__}", 'options={"preset": "exact"}'
            raise OptionError(f"{mapping!r} cannot be taken as options", where="options", why=why, fix=fix)
        known = [row.name for row in table_of(cls)]
        for key in mapping:
            if key not in known:
                raise OptionError(
                    f"there is no option {key!r}", where=f"options[{key!r}]", fix=did_you_mean(str(key), known)
                )
        return cls(**mapping)

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain data; :meth:`from_mapping` takes it back."""
        given = [(row, getattr(self, row.name)) for row in table_of(type(self))]
        return {
            row.name: value if row.plain is None else row.plain(value) for row, value in given if value != row.default
        }

    def __str__(self) -> str:
        rest = {name: value for name, value in self.to_dict().items() if name != "preset"}
        return ", ".join([f"preset={self.preset}", *(f"{name}={value}" for name, value in rest.items())])


def forwarded(kind: type[LightintOptions] = LightintOptions) -> tuple[str, ...]:
    """Options that belong to whichever passes of the pipeline have a field of the same name."""
    return names_of(kind, lambda row: row.to_passes)
