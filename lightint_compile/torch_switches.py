"""Switches of torch's and of the process: those that a trace of Dynamo's depends on, and those that choose kernels."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
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


def _settings(owner: Any, *names: str) -> Callable[[], Any]:
    """Reads settings by name; one that a version of torch lacks, or refuses to tell, counts as that."""

    def read() -> list[Any]:
        return [_told(functools.partial(getattr, owner, name, None)) for name in names]

    return read


def _told(read: Callable[[], Any]) -> str:
    try:
        value = read()
        return repr(value() if callable(value) else value)
    except Exception as error:  # allow_tf32 raises once the newer fp32_precision is in use
        return f"{type(error).__name__}: {error}"


OF_PRODUCTS = (
    "allow_tf32",
    "fp32_precision",
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)
"""Switches of ``torch.backends.cuda.matmul``."""

OF_CUDNN = ("enabled", "allow_tf32", "fp32_precision", "benchmark", "deterministic")
"""Switches of ``torch.backends.cudnn``."""

_CUDA, _CUDNN, _MKLDNN = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn

CHOOSE_KERNELS: Mapping[str, Callable[[], Any]] = {
    "threads": _settings(torch, "get_num_threads"),
    "default dtype": _settings(torch, "get_default_dtype"),
    "inference mode": _settings(torch, "is_inference_mode_enabled"),
    "deterministic algorithms": _settings(
        torch, "are_deterministic_algorithms_enabled", "is_deterministic_algorithms_warn_only_enabled"
    ),
    "filling of new memory": _settings(torch.utils.deterministic, "fill_uninitialized_memory"),
    "float32 products": _settings(torch, "get_float32_matmul_precision"),
    "products on CUDA": _settings(_CUDA.matmul, *OF_PRODUCTS),
    "libraries on CUDA": _settings(_CUDA, "preferred_blas_library", "preferred_linalg_library"),
    "cuDNN": _settings(_CUDNN, *OF_CUDNN),
    "oneDNN": _settings(_MKLDNN, "enabled", "fp32_precision", "allow_tf32", "deterministic"),
    "attention": _settings(
        _CUDA, "flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled", "cudnn_sdp_enabled"
    ),
}
"""What decides which kernels run and how exactly, by a name for people; :func:`of_kernels` reads all."""


def of_kernels() -> str:
    """:data:`CHOOSE_KERNELS` as they are now."""
    return repr([read() for read in CHOOSE_KERNELS.values()])
