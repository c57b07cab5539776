"""What a call asks of the backend, and the key of its traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lightint_compile.asking import asked_inside, depends_on_rollout, options_asked
from lightint_compile.capture.host_values import are_numbers_read
from lightint_compile.kept_traces.descriptions import code_text, digest
from lightint_compile.lowering.artifact_keys import surroundings
from lightint_compile.lowering.extension_sources import UnknownSourceError, extension_lines
from lightint_compile.options import LightintOptions
from lightint_compile.torch_frames import opens_frames
from lightint_compile.torch_switches import switches
from lightint_compile.trace_parts import Frame, UnkeepableError


@dataclass(frozen=True)
class Asked:
    """The options of ``torch.compile``.

    Attributes:
        config: Inductor's configuration for the regions.
        dynamic: as given to ``torch.compile``.
        inside: whether in a rollout; ``None`` where that makes no difference.
    """

    options: LightintOptions
    config: dict[str, Any]
    dynamic: bool | None
    inside: bool | None

    @classmethod
    def by(cls, frame: Frame, backend: Callable[..., Any]) -> Asked | None:
        """What a call asks of ``backend``; ``None`` where it asks another one, or for no kept trace."""
        options = options_asked(frame, backend)
        if options is None or not options.traces or why_never(options):
            return None
        inside = depends_on_rollout(options)
        config = inductor_config(frame.backend.kwargs.get("mode"))
        return cls(asked_inside(options, inside), config, frame.backend.dynamic, inside)

    def key(self, frame: Frame) -> str:
        """Everything but the call itself that a trace and its program depend on.

        Raises:
            UnkeepableError: a pass's source cannot be read.
        """
        plain = dataclasses.replace(self.options, artifacts=None)
        code = (frame.code.co_filename, frame.code.co_qualname, code_text(frame.code))
        mine = (plain, sorted(self.config.items()), self.dynamic, are_numbers_read(), switches(), code)
        try:
            lines = [*map(repr, mine), *surroundings(), *extension_lines(self.options)]
        except UnknownSourceError as error:
            raise UnkeepableError(str(error)) from None
        return digest("\n".join(lines))[:32]


def why_never(options: LightintOptions) -> str:
    """Why no trace is kept of anything with these options here; empty where traces may be."""
    if not opens_frames():
        return f"torch {torch.__version__} has another way from a call to compiled code; torch 2.14 has the known one"
    if options.is_shared:
        return "several ranks have to trace alike"
    if options.delegate == "eager":
        return "with delegate='eager' there is no program to keep beside it"
    return "" if options.budget is None else "an error budget runs at a setting that may change"


def inductor_config(mode: str | None) -> dict[str, Any]:
    """Inductor's configuration for a ``mode`` of ``torch.compile``."""
    return dict(torch._inductor.list_mode_options(mode)) if mode else {}
