"""What other packages register, each loaded and held to its form."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

from lightint_compile import integrations
from lightint_compile.entry_points import Extension, extensions, refusal
from lightint_compile.errors import LightintError
from lightint_compile.models import registry as families
from lightint_compile.options import presets
from lightint_compile.passes import registry


@dataclass(frozen=True)
class Kind:
    """One kind of thing that packages can add.

    Attributes:
        checked: loads an extension; raises an error of ours for one that cannot be used.
    """

    name: str
    group: str
    built_in: Container[str]
    checked: Callable[[Extension], Any]

    def found(self) -> Iterator[tuple[Extension, Any]]:
        """Every extension of this kind with what it names, or with the error that says why it cannot be used."""
        for each in extensions(self.group):
            try:
                yield each, refusal(each, self.built_in) or self.checked(each)
            except LightintError as error:
                yield each, error


PASS = Kind("pass", registry.GROUP, registry.PASSES, registry.checked)
PRESET = Kind("preset", presets.GROUP, presets.PRESETS, presets.checked)
FAMILY = Kind("model family", families.GROUP, families.FAMILIES, families.checked)
ADAPTER = Kind("adapter", integrations.GROUP, integrations.ADAPTERS, integrations.checked)
KINDS = (PASS, PRESET, FAMILY, ADAPTER)
