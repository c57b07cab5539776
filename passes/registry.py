"""The passes by name: those built in, and those of other packages, which register them as entry points.

A pass is imported when a pipeline names it, so that listing the names costs nothing. Another package's pyproject.toml:

    [project.entry-points."lightint.passes"]
    fuse-modulation = "my_package.fuse_modulation:FuseModulation"

A pass of another package runs where a pipeline text or a preset names it; see ``docs/write-a-pass.md``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from lightint_compile.entry_points import Extension, extension, names
from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.passes.base import Pass
from lightint_compile.passes.ir.remarks import Numerics

#: Pass name to ``module:class``, in the order in which a pipeline normally runs them.
PASSES: dict[str, str] = {
    "canonicalize-attention": "canonicalize_attention:CanonicalizeAttention",
    "distinct-rows": "distinct_rows:DistinctRows",
    "sink-row-repeats": "sink_row_repeats:SinkRowRepeats",
    "narrow-linears": "narrow_linears:NarrowLinears",
    "hoist-invariants": "hoist_invariants:HoistInvariants",
    "dead-tail": "dead_tail:DeadTail",
    "adaptive-context": "adaptive_context:AdaptiveContext",
    "context-reuse": "context_reuse:ContextReuse",
    "sparse-attention": "sparse_attention:SparseAttention",
    "shard-sequence": "shard_sequence:ShardSequence",
    "fp8-linear": "fp8_linear:Fp8Linear",
    "split-linears": "split_linears:SplitLinears",
    "outline-regions": "outline_regions:OutlineRegions",
    "step-cache": "step_cache:StepCache",
}

GROUP = "lightint.passes"
"""Entry points of other packages: the pass's name, and ``module:class``."""


def pass_names() -> list[str]:
    """Every name that a pipeline may hold."""
    return names(GROUP, PASSES)


def is_pass(name: str) -> bool:
    """Whether there is a pass of this name.

    Raises:
        ExtensionError: two packages register it.
    """
    return name in PASSES or extension(GROUP, name, PASSES) is not None


def pass_class(name: str, where: str = "passes") -> type[Pass]:
    """The class of the pass called ``name``, which stands at ``where``.

    Raises:
        OptionError: there is none; with a hint.
        ExtensionError: another package registers it, and it cannot be imported or is no pass.
    """
    if name in PASSES:
        module, _, attribute = PASSES[name].partition(":")
        found: type[Pass] = getattr(importlib.import_module(f"lightint_compile.passes.{module}"), attribute)
        return found
    return _of_another_package(name, where)


@functools.cache
def _of_another_package(name: str, where: str) -> type[Pass]:
    found = extension(GROUP, name, PASSES)
    if found is None:
        raise OptionError(f"there is no pass called {name!r}", where=where, fix=did_you_mean(name, pass_names()))
    return checked(found)


def checked(found: Extension) -> type[Pass]:
    """The class that an entry point names, held to the form of a pass.

    Raises:
        ExtensionError: it cannot be imported or has not that form.
    """
    kind: Any = found.load()
    if not isinstance(kind, type) or not issubclass(kind, Pass) or inspect.isabstract(kind):
        why = f"{kind!r} is no class with a run method that is derived from lightint_compile.passes.base.Pass"
        raise found.error("this is no pass", why)
    if getattr(kind, "name", None) != found.name:
        raise found.error("the pass has another name", f"its class is called {getattr(kind, 'name', None)!r}")
    if not isinstance(getattr(kind, "numerics", None), Numerics):
        raise found.error("the pass does not say what it does to the numbers", "its class has no numerics")
    if "__dataclass_params__" not in vars(kind):
        why = f"{kind.__name__} is not decorated with @dataclass(frozen=True, kw_only=True)"
        raise found.error("the pass is no frozen value", why)
    try:
        kind()
    except Exception as error:
        raise found.error("the pass cannot be made without options", str(error)) from error
    return kind
