"""What decides in a process how Inductor compiles: read in one, put in force in another."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from lightint_compile import torch_switches
from lightint_compile.lowering.workers.rules import Rules, of_others

_CONFIGURATIONS = ("torch._inductor.config", "torch._functorch.config", "torch.fx.experimental._config")

_ITS_OWN = frozenset(("compile_threads", "worker_start_method"))
"""Settings that each process has for itself. They change no code."""

_MOST_TOLD = 5
"""Rules that are told of those that differ."""

_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class OnlyHereError(Exception):
    """A setting that has no form in bytes."""


@dataclass(frozen=True)
class Switches:
    """Settings of torch's and of the process.

    Attributes:
        configurations: torch's modules of settings, each setting by name.
        torch: the switches that have functions of their own, by their place in the table.
        kernels: all that choose kernels, as text, to be compared.
        rules: what Inductor was told of operators, to be compared.
        inference: whether inference mode is on.
        device: the current CUDA device; ``None`` where CUDA is not in use.
        environment: where the caches are.
    """

    configurations: Mapping[str, Mapping[str, Any]]
    torch: Mapping[str, Any]
    kernels: str
    rules: Rules
    inference: bool
    device: int | None
    environment: Mapping[str, str]

    @classmethod
    def now(cls) -> Switches:
        """Those of this process.

        Raises:
            OnlyHereError: one of them is an object that another process does not have.
        """
        if torch.get_default_device().type != "cpu":
            raise OnlyHereError("a default device")
        if (own := of_others()) is not None:
            raise OnlyHereError(own)
        return cls(
            {name: _plain(importlib.import_module(name)) for name in _CONFIGURATIONS},
            {name: value for name, (read, _) in _TORCH.items() if (value := _read(read)) is not _UNKNOWN},
            torch_switches.of_kernels(),
            Rules.now(),
            torch.is_inference_mode_enabled(),
            torch.cuda.current_device() if torch.cuda.is_initialized() else None,
            {**{name: os.environ[name] for name in _CACHES if name in os.environ}, _CACHES[0]: cache_dir()},
        )

    def put_in_force(self) -> None:
        """Make this process compile as the other one does; call it inside of the same inference mode.

        Raises:
            OnlyHereError: it does not.
        """
        os.environ.update(self.environment)
        if self.device is not None:
            torch.cuda.set_device(self.device)
        for name, value in self.torch.items():
            read, write = _TORCH[name]
            if _read(read) != value:
                write(value)
        for name, wanted in self.configurations.items():
            module: Any = importlib.import_module(name)
            here = module.get_config_copy()
            module.load_config({each: value for each, value in wanted.items() if here.get(each) != value})
            if _plain(module) != wanted:
                raise OnlyHereError(f"settings of {name}")
        if torch_switches.of_kernels() != self.kernels:
            raise OnlyHereError(f"{torch_switches.of_kernels()} here, {self.kernels} there")
        if beyond := self.rules.beyond(Rules.now()):
            raise OnlyHereError(f"a rule or a kernel of an operator: {', '.join(beyond[:_MOST_TOLD])}")


def _plain(module: Any) -> dict[str, Any]:
    """The settings of one module; objects that nobody has changed are left out."""
    found = {name: value for name, value in module.get_config_copy().items() if name not in _ITS_OWN}
    for name, value in list(found.items()):
        if not _is_plain(value):
            if not module._is_default(name):
                raise OnlyHereError(f"{module.__name__}.{name}")
            del found[name]
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, bytes, type(None)))


_UNKNOWN = object()


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # allow_tf32 raises once the newer fp32_precision is in use; what it is, is compared as text
        return _UNKNOWN


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _attributes(of: str, owner: Any, *names: str) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    return {f"{of} {name}": _attribute(owner, name) for name in names}


_CUDA, _CUDNN, _MKLDNN = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
_DETERMINISTIC: Any = torch.utils.deterministic

_TORCH: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "filling": _attribute(_DETERMINISTIC, "fill_uninitialized_memory"),
    "float32 products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "flash": (_CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    "efficient": (_CUDA.mem_efficient_sdp_enabled, _CUDA.enable_mem_efficient_sdp),
    "math": (_CUDA.math_sdp_enabled, _CUDA.enable_math_sdp),
    "cuDNN attention": (_CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
    **_attributes("products", _CUDA.matmul, *torch_switches.OF_PRODUCTS),
    **_attributes("cuDNN", _CUDNN, *torch_switches.OF_CUDNN),
    **_attributes("oneDNN", _MKLDNN, "enabled", "fp32_precision", "deterministic"),
}
