"""What the user may ask of a compiled function between its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import lightint_compile
from lightint_compile.errors import LightintError


def ask(compiled: Callable[..., Any], what: str, arguments: Mapping[str, Any]) -> None:
    """Call one of lightint's questions about a compiled function; its own refusals are answers."""
    compiled = getattr(compiled, "compiled", compiled)
    with suppress(LightintError):
        if what == "explain":
            lightint_compile.explain(compiled, options={"preset": "exact"}, **arguments)
        else:
            getattr(lightint_compile, what)(compiled)
