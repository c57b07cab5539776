"""The ways in which a side of a scenario gets its function: eager, the stock backend, or ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.testing.scenario import Setup

#: At these nothing may be skipped, reused or dropped, though every pass has its say.
REFUSING: dict[str, Any] = {
    "density": 1.0,
    "context_density": 1.0,
    "coverage": 1.0,
    "min_tokens": 1,
    "drift": 0.0,
    "overlap": 1.0,
}

_DYNAMIC = {"auto": None, "all": True, "marked": None, "none": False}
_MARKS = {"latents": 1, "text": 1, "history": 2, "extrinsics": 1}


def eager(module: nn.Module) -> Callable[..., Any]:
    """The module itself."""
    return module


@dataclass(frozen=True)
class Compiler:
    """Compiles a module as a setup says, with a backend.

    Attributes:
        keeps: keep keys and values of context frames between calls: exact where they come from their own frame alone.
    """

    setup: Setup
    backend: str = "lightint"
    keeps: bool = False

    def __call__(self, module: nn.Module) -> Callable[..., Any]:
        """The function that is called in the module's place."""
        compiled = self._compiled(module)
        return (
            _marking(compiled, inspect.signature(type(module).forward)) if self.setup.dynamic == "marked" else compiled
        )

    def _compiled(self, module: nn.Module) -> Callable[..., Any]:
        how: dict[str, Any] = {
            "backend": self.backend,
            "dynamic": _DYNAMIC[self.setup.dynamic],
            "options": self._options(),
        }
        if self.setup.target == "in-place":
            module.compile(**how)
            return module
        if self.setup.target == "blocks":
            for block in module.get_submodule("blocks").children():
                block.compile(**how)
            return module
        targets: Mapping[str, Callable[..., Any]] = {
            "module": module,
            "forward": module.forward,
            "function": lambda *places, **arguments: module(*places, **arguments),
        }
        return torch.compile(targets[self.setup.target], **how)

    def _options(self) -> dict[str, Any] | None:
        if self.backend != "lightint":
            return None
        options = {"preset": self.setup.preset, "delegate": self.setup.delegate}
        return options | (REFUSING | {"age": 4 * self.keeps} if self.setup.preset == "all" else {})


def _marking(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    def marked(*places: Any, **arguments: Any) -> Any:
        given = signature.bind(None, *places, **arguments).arguments
        for name, axis in _MARKS.items():
            if isinstance(given.get(name), Tensor):
                torch._dynamo.maybe_mark_dynamic(given[name], axis)
        return function(*places, **arguments)

    marked.compiled = function  # type: ignore[attr-defined]
    return marked
