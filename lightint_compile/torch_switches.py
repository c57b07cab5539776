"""The switches of torch's and of the process that a trace of Dynamo's depends on as a whole."""

from __future__ import annotations

import importlib
from typing import Any

import torch


def state() -> str:
    """The switches of the process that Dynamo guards as a whole; they stay as they are while a call is traced."""
    frames: Any = importlib.import_module("torch._dynamo.convert_frame")
    device: Any = importlib.import_module("torch.utils._device")
    modules: Any = torch.nn.modules.module
    hooks = {name: len(value) for name, value in vars(modules).items() if name.startswith("_global_") and value}
    saved = torch._C._autograd._top_saved_tensors_default_hooks(True)
    switches = (frames.initial_global_state.__getstate__(), device.CURRENT_DEVICE, hooks, saved is not None)
    return repr((*switches, _place_among_ranks()))


def _place_among_ranks() -> tuple[int, int] | None:
    group = torch.distributed
    return (group.get_rank(), group.get_world_size()) if group.is_available() and group.is_initialized() else None


def switches() -> str:
    """What of Dynamo's own configuration changes a trace; a setting that is an object counts by its type."""
    modules: list[Any] = [importlib.import_module(name) for name in _CONFIGURATIONS]
    return "\n".join(f"{name}={_setting(value)}" for each in modules for name, value in _settings_of(each))


_CONFIGURATIONS = ("torch._dynamo.config", "torch.fx.experimental._config")


def _settings_of(module: Any) -> list[tuple[str, Any]]:
    return sorted(module.get_config_copy().items())


def _setting(value: Any) -> str:
    if isinstance(value, (set, frozenset)):
        return repr(sorted(map(_setting, value)))
    if isinstance(value, (tuple, list)):
        return repr(list(map(_setting, value)))
    if isinstance(value, dict):
        return repr(sorted((_setting(key), _setting(each)) for key, each in value.items()))
    plain = isinstance(value, (bool, int, float, str, type(None)))
    return repr(value) if plain else getattr(value, "__qualname__", type(value).__qualname__)
