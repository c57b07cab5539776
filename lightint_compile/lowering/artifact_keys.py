"""The key of a kept program: everything that changes the code that is made for a graph.

The graph itself (targets, constants, shapes, module paths), the options, Inductor's configuration, our sources, those
of passes that come from other packages, and what surrounds them: versions, devices, and the switches of torch that
decide which kernels run and how exactly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx
from torch._inductor import config as inductor_config
from torch._subclasses.fake_tensor import unset_fake_temporarily

from lightint_compile.kernels import cost
from lightint_compile.lowering.extension_sources import UnknownSourceError, extension_lines
from lightint_compile.lowering.weight_samples import samples_of
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.ranks import Ranks
from lightint_compile.passes.ir.remarks import source_of
from lightint_compile.torch_switches import CHOOSE_KERNELS

log = logging.getLogger(__name__)


def key_of(
    graph_module: fx.GraphModule,
    options: LightintOptions,
    config: Mapping[str, Any],
    weights: Sequence[torch.Tensor] = (),
) -> str | None:
    """The record's key, or ``None`` where a graph or a pass runs code whose content cannot be hashed.

    Args:
        weights: what the record depends on besides: a sample of each is part of the key.
    """
    digest = hashlib.sha256()
    ranks = repr(Ranks.of(options.gpus, options.mesh))  # each has code of its own
    found = replace(options, artifacts=None, traces=False, trace_blocks_once=False)  # these do not change a program
    asked = str(found)
    known = (asked, ranks, repr(sorted(config.items())), *surroundings())
    try:
        for line in (*_graph_lines(graph_module), *known, *extension_lines(options)):
            digest.update(line.encode())
            digest.update(b"\n")
    except (_Unhashable, UnknownSourceError) as reason:
        log.debug("the program is not kept on disk: %s", reason)
        return None
    with unset_fake_temporarily():
        for sample in samples_of(weights):
            digest.update(sample)
    return digest.hexdigest()


class _Unhashable(Exception):  # noqa: N818 - control flow, not an error
    """A part of a graph whose meaning is not in its name."""


def _graph_lines(graph_module: fx.GraphModule) -> Iterator[str]:
    for node in graph_module.graph.nodes:
        where = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        value = node.meta.get("example_value", node.meta.get("val"))
        yield f"{node.op} {node.name} {_target(node)} {node.args!r} {node.kwargs!r} {where} {source_of(node)}"
        if node.op == "placeholder":
            yield _described(value)
        if node.op == "get_attr":
            yield from _attribute_lines(graph_module, str(node.target))


def _target(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, (str, torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return str(target)
    module = getattr(target, "__module__", None) or ""
    if module.split(".")[0] not in ("torch", "_operator", "operator", "math", "builtins", "einops"):
        raise _Unhashable(f"{node.name} calls {module}.{getattr(target, '__qualname__', target)}")
    return f"{module}.{getattr(target, '__qualname__', target)}"


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    layout = (value.dtype, value.device, tuple(value.shape), value.stride(), value.requires_grad, type(value).__name__)
    return repr(layout)


def _attribute_lines(graph_module: fx.GraphModule, name: str) -> Iterator[str]:
    value = functools.reduce(getattr, name.split("."), graph_module)
    if isinstance(value, fx.GraphModule):
        yield from _graph_lines(value)
    elif isinstance(value, torch.Tensor):
        yield (
            _described(value) + hashlib.sha256(value.detach().cpu().contiguous().view(torch.uint8).numpy()).hexdigest()
        )
    else:
        raise _Unhashable(f"the attribute {name} is a {type(value).__name__}")


def _autocast() -> Any:
    return [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")]


@functools.cache
def _machine() -> Any:
    return torch.__version__, torch.version.git_version, platform.machine(), platform.python_version()


@functools.cache
def _devices() -> Any:
    """The CPU's vector instructions; every visible GPU's name, capability and multiprocessors; CUDA and its driver."""
    cpu = torch.backends.cpu.get_cpu_capability()
    if not torch.cuda.is_available():
        return cpu
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = [(gpu.name, gpu.major, gpu.minor, gpu.multi_processor_count) for gpu in gpus]
    return cpu, found, torch.version.cuda, _driver()


def _driver() -> int:
    """The newest CUDA that the driver knows (13010 for 13.1), 0 where no driver of NVIDIA's can be asked."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value


@functools.cache
def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


@functools.cache
def _own_sources() -> str:
    """A hash over this package's sources: a changed rule must never meet a record made by the old one."""
    import lightint_compile.kernels
    import lightint_compile.passes

    digest = hashlib.sha256()
    for package in (lightint_compile, lightint_compile.passes, lightint_compile.kernels):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "torch and Python": _machine,
    "devices and driver": _devices,
    "Triton": _triton,
    "our sources": _own_sources,
    "Inductor's configuration": inductor_config.get_hash,
    "rates of the cost model": cost.fingerprint,
    "autocast": _autocast,
    **CHOOSE_KERNELS,
}
"""What a kept program depends on besides its graph and options, by a name for people. A test changes each."""


def surroundings() -> tuple[str, ...]:
    """:data:`SURROUNDINGS` as they are now."""
    return tuple(f"{name}: {read()!r}" for name, read in SURROUNDINGS.items())
