"""Kinds of faults that are known and not mended yet: the adversary leaves them out, and this table only shrinks."""

from __future__ import annotations

_VERSION = "kept results are told by identity and version counter, which this write does not raise"
_VIEW = "an operator without an alias annotation returns what is kept"

#: A slot of a world or a verb of an event, with the choice that fails, and why.
OPEN: dict[tuple[str, str], str] = {
    **{
        ("write", way): _VERSION
        for way in (
            *("data-add", "data-copy", "data-assign", "numpy", "dlpack", "storage", "storage-bytes", "memory"),
            "version-kept",
        )
    },
    **{("module", way): _VERSION for way in ("merge", "average", "vector", "there-and-back", "apply", "optimise")},
    **{
        ("result", f"{view}{twice}"): _VIEW
        for view in ("einsum", "broadcast", "sum_to_size")
        for twice in ("", "-twice")
    },
    ("write", "swap"): "weak references of stamps block swap_tensors",
    ("flow", "vmap"): "capture runs under the functorch level of the caller",
    ("flow", "cond"): "subgraphs have no fake value: passes are undone",
    ("flow", "while"): "subgraphs have no fake value: passes are undone",
    ("flow", "reduce"): "reductions of 0-d tensors: hoist-invariants is undone",
    ("use", "joined"): "a region that sees two symbolic sizes only as their sum",
    ("numbers", "float"): "a Python number that changes",
    ("numbers", "int"): "a Python number that changes",
    ("numbers", "all"): "a Python number that changes",
}
