"""lightint: a torch.compile backend and FX pass set for interactive video world models.

``torch.compile(model, backend="lightint")`` needs no import of this module: torch finds the backend by its entry point.
The names below load on first use, so importing the package costs milliseconds and needs neither Triton nor CUDA.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightint_compile.acceleration import accelerate as accelerate
    from lightint_compile.compiled import decisions as decisions
    from lightint_compile.compiled import report as report
    from lightint_compile.compiled import reset as reset
    from lightint_compile.error_budget.calibrating import calibrate as calibrate
    from lightint_compile.errors import LightintError as LightintError
    from lightint_compile.explaining import explain as explain
    from lightint_compile.exporting import export as export
    from lightint_compile.exporting import load as load
    from lightint_compile.integrations.video_decoder import streaming_decoder as streaming_decoder
    from lightint_compile.lowering.shipped_programs import keep_artifacts as keep_artifacts
    from lightint_compile.options import LightintOptions as LightintOptions
    from lightint_compile.runtime.rollout import rollout as rollout
    from lightint_compile.world_state import WorldState as WorldState
    from lightint_compile.world_state import fork_state as fork_state
    from lightint_compile.world_state import load_state as load_state
    from lightint_compile.world_state import save_state as save_state

__version__ = "0.1.0"

_HOME = {
    "accelerate": "lightint_compile.acceleration",
    "LightintOptions": "lightint_compile.options",
    "LightintError": "lightint_compile.errors",
    "calibrate": "lightint_compile.error_budget.calibrating",
    "explain": "lightint_compile.explaining",
    "decisions": "lightint_compile.compiled",
    "report": "lightint_compile.compiled",
    "reset": "lightint_compile.compiled",
    "export": "lightint_compile.exporting",
    "load": "lightint_compile.exporting",
    "keep_artifacts": "lightint_compile.lowering.shipped_programs",
    "rollout": "lightint_compile.runtime.rollout",
    "WorldState": "lightint_compile.world_state",
    "fork_state": "lightint_compile.world_state",
    "load_state": "lightint_compile.world_state",
    "save_state": "lightint_compile.world_state",
    "streaming_decoder": "lightint_compile.integrations.video_decoder",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
