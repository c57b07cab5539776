"""Pose strings: which keys are held for how many latent frames, as `"w-31"` or `"w+left-15,s-16"`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from lightint_compile.errors import InputError, did_you_mean

Keys = Mapping[str, tuple[float, float]]
"""Key to what it does along two axes; keys that sum to zero cancel."""

_SEGMENT = re.compile(r"(?P<keys>[a-z]+(?:\+[a-z]+)*)-(?P<count>[0-9]+)", re.ASCII)


def held_keys(text: str, tables: Sequence[Keys]) -> Iterator[tuple[list[str], int]]:
    """Keys and latent frames of every segment `KEYS-COUNT`; segments are joined by commas, keys by `+`.

    Raises:
        InputError: an unknown key, keys that cancel, a missing or zero count; it names the segment and its position.
    """
    position = 0
    for segment in text.split(","):
        yield _parse_segment(segment, position, tables)
        position += len(segment) + 1


def total(keys: Sequence[str], table: Keys) -> tuple[float, float]:
    """What the keys of this table do together."""
    chosen = [table[key] for key in keys if key in table]
    return sum(first for first, _ in chosen), sum(second for _, second in chosen)


def _parse_segment(segment: str, position: int, tables: Sequence[Keys]) -> tuple[list[str], int]:
    match = _SEGMENT.fullmatch(segment.strip())
    if match is None:
        raise _segment_error(segment, position, "it is not KEYS-COUNT", 'write for example "w-31" or "w+left-8"')
    count = int(match["count"])
    if count == 0:
        raise _segment_error(segment, position, "its count is 0", "give at least one latent frame")
    keys = match["keys"].split("+")
    known = [key for table in tables for key in table]
    for key in keys:
        if key not in known:
            raise _segment_error(segment, position, f"the key {key!r} is unknown", did_you_mean(key, known))
    sums = [value for table in tables for value in total(keys, table)]
    if len(set(keys)) != len(keys) or any(abs(value) > 1 for value in sums):
        raise _segment_error(segment, position, "a key is repeated", "name each key once")
    if not any(sums):
        raise _segment_error(segment, position, "its keys cancel", "leave opposite keys out")
    return keys, count


def _segment_error(segment: str, position: int, why: str, fix: str) -> InputError:
    where = f"pose string, position {position}: {segment!r}"
    return InputError("The pose string has a bad segment.", where=where, why=why, fix=fix)
