"""Rollout loops of pipelines: adapters that tell the runtime where such a loop is, on the pipeline's public methods.

An adapter looks at a pipeline's structure and either installs itself or gives ``None``. Other packages name theirs in
the entry-point group ``lightint.integrations``; they are asked after the built-in ones, by name:

    [project.entry-points."lightint.integrations"]
    my-pipeline = "my_package.rollout:install"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from lightint_compile.entry_points import Extension, extensions, refusal
from lightint_compile.integrations import camera_rollout, memory_clips
from lightint_compile.integrations.loop import Adapter, Calls, Loop
from lightint_compile.integrations.loop_rules import LoopRules

GROUP = "lightint.integrations"
"""Entry points of other packages: any name, and ``module:attribute`` of an
:data:`~lightint_compile.integrations.loop.Adapter`."""

ADAPTERS: dict[str, Adapter] = {"camera-rollout": camera_rollout.install, "memory-clips": memory_clips.install}


def installed(pipeline: Any, calls: Mapping[str, Calls], rules: LoopRules) -> Loop | None:
    """The first adapter that fits a pipeline, installed; ``None`` where none does.

    Raises:
        ExtensionError: an adapter of another package cannot be imported, or two have one name.
    """
    return next((loop for adapter in _adapters() if (loop := adapter(pipeline, calls, rules)) is not None), None)


def checked(found: Extension) -> Adapter:
    """The adapter that an entry point names.

    Raises:
        ExtensionError: it cannot be imported, or is nothing that can be called.
    """
    adapter = found.load()
    if not callable(adapter):
        raise found.error("this is no adapter", f"it is a {type(adapter).__name__}")
    return cast("Adapter", adapter)


def _adapters() -> Iterator[Adapter]:
    yield from ADAPTERS.values()
    for each in extensions(GROUP):
        refused = refusal(each, ADAPTERS)
        if refused is not None:
            raise refused
        yield checked(each)
