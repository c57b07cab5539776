"""Kinds of faults that are known and not mended yet: the adversary leaves them out, and this table only shrinks."""

from __future__ import annotations

#: A slot of a world or a verb of an event, with the choice that fails, and why.
OPEN: dict[tuple[str, str], str] = {
    ("flow", "vmap"): "capture runs under the functorch level of the caller",
}
