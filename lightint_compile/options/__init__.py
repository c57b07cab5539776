"""What a user may ask for: one frozen value, checked when it is made, equal and hashed by content.

``torch.compile(model, backend="lightint", options={"preset": "sparse", "density": 0.25})`` reaches
:meth:`LightintOptions.from_mapping`. Equal options compare equal, so Dynamo does not compile a second time for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.options.error_limits import Budget

DELEGATES = ("inductor", "eager")
"""Who runs the rewritten regions: Inductor, or plain PyTorch (for debugging and for machines without a compiler)."""

ROLES = ("latent", "context", "camera", "intrinsics", "timestep", "text", "action", "parameter")
"""What an input can be to a world model; see ``roles`` of :class:`LightintOptions`."""

DEFAULT_PRESET = "all"

THRESHOLDS = ("density", "context_density", "coverage", "overlap", "drift", "age")
"""Options that say how far to approximate; a budget sets them, so that they do not go together with one."""


@dataclass(frozen=True, kw_only=True)
class LightintOptions:
    """Options of the backend, of ``explain`` and of ``export``.

    Attributes:
        preset: which rewrites run; see ``presets.py``.
        passes: a pipeline text that replaces the preset's, ``"canonicalize-attention,dead-tail"``; ``""`` runs no pass.
        approximate: let the preset ``all`` approximate a model that has no cameras and no trajectory, too. By itself it
            does not: nothing says there which quality is wanted.
        roles: input path to role, overriding what is inferred; kept as sorted pairs.
        require: passes that must rewrite something; else compiling raises :class:`~lightint_compile.errors.PassError`.
        strict: a pass that fails raises instead of being undone.
        delegate: ``"inductor"`` or ``"eager"``.
        density: kept fraction of the visual key tiles of sparse attention, in (0, 1].
        context_density: the same for context tiles in a denoising step.
        coverage: softmax mass of the pooled scores at which a query tile may stop before its budget, in (0, 1].
        min_tokens: keys below which a site stays dense.
        tile: (frames, height, width) tokens of a tile.
        overlap: share of the coming view that earlier frames must have seen for it to count as seen before, in [0, 1].
        drift: largest relative change of the first block's output at which a denoising step is reused, 0 or more; above
            it, keys and values of context frames are kept for less long.
        age: most chunks for which keys and values of context frames are kept; 0, as presets have it, makes them anew in
            every chunk.
        kept_frames: most frames of which they are kept, which costs memory; as many as the model gathers by default.
        without: passes of the pipeline that are left out.
        max_relative_error: a budget: how far a result may be from what ``exact`` gives, as relative L2 distance, in
            [0, 1). 0 is ``exact``. Any other starts as ``exact`` too, until :func:`lightint_compile.calibrate` has
            measured which thresholds keep it.
        min_psnr: the same in decibels, above 0, with the range of the exact result as the peak; infinity is ``exact``.

    ``density`` to ``kept_frames`` go to the passes that have an option of that name; ``None`` leaves it to the pass.

    Raises:
        OptionError: a value that cannot be taken, with the nearest one that can.
    """

    preset: str = DEFAULT_PRESET
    passes: str | None = None
    approximate: bool = False
    roles: tuple[tuple[str, str], ...] = ()
    require: tuple[str, ...] = ()
    strict: bool = False
    delegate: str = "inductor"
    density: float | None = None
    context_density: float | None = None
    coverage: float | None = None
    min_tokens: int | None = None
    tile: tuple[int, ...] | None = None
    overlap: float | None = None
    drift: float | None = None
    age: int | None = None
    kept_frames: int | None = None
    without: tuple[str, ...] = ()
    max_relative_error: float | None = None
    min_psnr: float | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(getattr(self, name)))
        _check_who_sets_thresholds(self)

    @property
    def budget(self) -> Budget | None:
        """How far results may be from the exact ones; ``None`` where nothing is said about it."""
        budget = Budget(self.max_relative_error, self.min_psnr)
        return budget if budget.is_stated else None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> LightintOptions:
        """The options that a user's dictionary spells; an unknown key is an :class:`OptionError` with a hint."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in mapping or {}:
            if key not in known:
                raise OptionError(
                    f"there is no option {key!r}", where=f"options[{key!r}]", fix=did_you_mean(str(key), known)
                )
        return cls(**(mapping or {}))

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain data; :meth:`from_mapping` takes it back."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        plain = {"roles": dict, "require": list, "tile": list, "without": list}
        return {name: plain[name](value) if name in plain else value for name, value in given.items()}

    def __str__(self) -> str:
        rest = {name: value for name, value in self.to_dict().items() if name != "preset"}
        return ", ".join([f"preset={self.preset}", *(f"{name}={value}" for name, value in rest.items())])


def _one_of(option: str, known: Iterable[str]) -> Callable[[Any], str]:
    names = tuple(known)

    def check(value: Any) -> str:
        if value not in names:
            raise OptionError(
                f"{value!r} is no {option}", where=f"options[{option!r}]", fix=did_you_mean(str(value), names)
            )
        return str(value)

    return check


def _preset(value: Any) -> str:
    from lightint_compile.options.presets import PRESETS

    return _one_of("preset", PRESETS)(value)


def _passes(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong("passes", value, "a pipeline text", '"canonicalize-attention,dead-tail"')
    from lightint_compile.passes.pipeline import Pipeline

    return str(Pipeline.parse(value))


def _roles(value: Any) -> tuple[tuple[str, str], ...]:
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise _wrong("roles", value, "input names with a role each", '{"past_latents": "context"}') from None
    for path, role in pairs.items():
        if role not in ROLES:
            fix = did_you_mean(str(role), ROLES)
            raise OptionError(f"{role!r} is no role", where=f"options['roles'][{path!r}]", fix=fix)
    return tuple(sorted((str(path), str(role)) for path, role in pairs.items()))


def _pass_names(option: str) -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise _wrong(option, value, "a list of pass names", '["canonicalize-attention"]')
        names = tuple(value)
        if not names:
            return ()
        from lightint_compile.passes.registry import PASSES

        return tuple(_one_of(option, PASSES)(name) for name in names)

    return check


def _truth(option: str) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise _wrong(option, value, "true or false", "True")
        return value

    return check


def _fraction(option: str) -> Callable[[Any], float | None]:
    def check(value: Any) -> float | None:
        if value is None:
            return None
        if not _is_number(value) or not 0 < value <= 1:
            raise _wrong(option, value, "a fraction above 0 and at most 1", "0.3")
        return float(value)

    return check


def _min_tokens(value: Any) -> int | None:
    if value is not None and not _is_whole(value, 0):
        raise _wrong("min_tokens", value, "a number of keys, 0 or more", "4096")
    return None if value is None else int(value)


def _tile(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(_is_whole(extent, 1) for extent in value):
        raise _wrong("tile", value, "three extents in tokens, 1 or more: frames, height, width", "[4, 8, 4]")
    return tuple(value)


def _overlap(value: Any) -> float | None:
    if value is not None and not (_is_number(value) and 0 <= value <= 1):
        raise _wrong("overlap", value, "a share from 0 to 1", "0.7")
    return None if value is None else float(value)


def _drift(value: Any) -> float | None:
    if value is not None and not (_is_number(value) and value >= 0):
        raise _wrong("drift", value, "a relative change, 0 or more", "0.25")
    return None if value is None else float(value)


def _age(value: Any) -> int | None:
    if value is not None and not _is_whole(value, 0):
        raise _wrong("age", value, "a number of chunks, 0 or more", "4")
    return None if value is None else int(value)


def _kept_frames(value: Any) -> int | None:
    if value is not None and not _is_whole(value, 1):
        raise _wrong("kept_frames", value, "a number of latent frames, 1 or more", "64")
    return None if value is None else int(value)


def _max_relative_error(value: Any) -> float | None:
    if value is not None and not (_is_number(value) and 0 <= value < 1):
        raise _wrong("max_relative_error", value, "a share of the result, from 0 to below 1", "0.05")
    return None if value is None else float(value)


def _min_psnr(value: Any) -> float | None:
    if value is not None and not (_is_number(value) and value > 0):
        raise _wrong("min_psnr", value, "decibels above 0", "30")
    return None if value is None else float(value)


def _check_who_sets_thresholds(options: LightintOptions) -> None:
    given = [name for name in THRESHOLDS if getattr(options, name) is not None]
    if options.budget is None or options.budget.is_exact or not given:
        return
    stated = [name for name in ("max_relative_error", "min_psnr") if getattr(options, name) is not None]
    raise OptionError(
        f"{' and '.join(given)} cannot be set together with {' and '.join(stated)}",
        where=f"options[{given[0]!r}]",
        why="thresholds are what a budget is for: calibration sets them",
        fix=f"leave out {' and '.join(given)}, or {' and '.join(stated)}",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _wrong(option: str, value: Any, expected: str, example: str) -> OptionError:
    why = f"expected {expected}"
    return OptionError(
        f"{value!r} cannot be taken", where=f"options[{option!r}]", why=why, fix=f"for example {example}"
    )


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "preset": _preset,
    "passes": _passes,
    "approximate": _truth("approximate"),
    "roles": _roles,
    "require": _pass_names("require"),
    "without": _pass_names("without"),
    "strict": _truth("strict"),
    "delegate": _one_of("delegate", DELEGATES),
    "density": _fraction("density"),
    "context_density": _fraction("context_density"),
    "coverage": _fraction("coverage"),
    "min_tokens": _min_tokens,
    "tile": _tile,
    "overlap": _overlap,
    "drift": _drift,
    "age": _age,
    "kept_frames": _kept_frames,
    "max_relative_error": _max_relative_error,
    "min_psnr": _min_psnr,
}
