"""Whether workers are worth starting for a graph, and how many."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx as fx
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import cache_dir

from lightint_compile.lowering.workers.pool import Workers
from lightint_compile.options import LightintOptions

log = logging.getLogger(__name__)

COUNT = "LIGHTINT_COMPILE_WORKERS"
"""The environment variable that says how many workers there are; 0 for none."""

FEWEST_NODES = 1500
"""Operations of a captured graph from which on there are workers. A smaller one is compiled before they are ready."""

_MOST = 8

_MOST_ASKED = 64

_FEWEST_CORES = 4
"""Fewer are kept busy by this process and its compilers of kernels."""

_MEMORY = 4 << 30
"""Bytes of a GPU for a worker: its context, and operands to try kernels on."""

_TIMED = ("max_autotune", "max_autotune_gemm", "max_autotune_pointwise", "coordinate_descent_tuning")
"""Settings under which Inductor measures kernels at length, which other processes would disturb."""


@contextmanager
def workers_for(
    graph_module: fx.GraphModule, options: LightintOptions, config: Mapping[str, Any]
) -> Iterator[Workers | None]:
    """Workers for a graph that is about to be compiled, while the context lasts; ``None`` where it does without.

    Args:
        graph_module: as Dynamo captured it.
        config: Inductor configuration for its regions.
    """
    workers = _started(graph_module, options, config)
    if workers is None:
        yield None
        return
    with workers:
        yield workers


def _started(graph_module: fx.GraphModule, options: LightintOptions, config: Mapping[str, Any]) -> Workers | None:
    try:
        gpu = _gpu_of(graph_module)
        count, cores = _wanted(graph_module, options, config, gpu), _cores()
        return Workers(count, max(1, min(cores, 2 * cores // count)), gpu) if count else None
    except Exception as error:  # of the system's or CUDA's: the graph can be compiled without
        log.debug("there are no workers", exc_info=error)
        return None


def _wanted(graph_module: fx.GraphModule, options: LightintOptions, config: Mapping[str, Any], gpu: int) -> int:
    is_small = len(graph_module.graph.nodes) < FEWEST_NODES
    if is_small or options.delegate == "eager" or not _can_start() or not _keeps() or _measures(config):
        return 0
    cores = _cores()
    asked = _asked(min(_MOST, cores // 2) if cores >= _FEWEST_CORES else 0)
    return min(asked, _fit_on(gpu)) if asked and gpu >= 0 else asked


def _asked(otherwise: int) -> int:
    text = os.environ.get(COUNT, "")
    if text and not text.isdecimal():
        log.warning("%s=%s is no number of processes, and counts as not set", COUNT, text)
    return min(int(text[:9]), _MOST_ASKED) if text.isdecimal() else otherwise


def _can_start() -> bool:
    """Whether this process can start another Python; an application that is frozen would start itself."""
    return os.name == "posix" and bool(sys.executable) and not getattr(sys, "frozen", False)


def _keeps() -> bool:
    """Whether what Inductor compiles in one process is found by another."""
    asked = inductor_config.fx_graph_cache and functorch_config.enable_autograd_cache
    return bool(asked) and not inductor_config.force_disable_caches and os.access(cache_dir(), os.W_OK)


def _measures(config: Mapping[str, Any]) -> bool:
    return any(config.get(name, getattr(inductor_config, name)) for name in _TIMED)


def _cores() -> int:
    """How many compilers Inductor would run at a time, for each of the ranks on this machine."""
    asked = inductor_config.compile_threads or inductor_config.decide_compile_threads()
    return max(1, int(asked) // _ranks_here())


def _ranks_here() -> int:
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(text) if text.isdecimal() and int(text) > 0 else 1


def _gpu_of(graph_module: fx.GraphModule) -> int:
    """The current CUDA device where the graph uses one, below zero where it does not."""
    values = (node.meta.get("example_value") for node in graph_module.graph.find_nodes(op="placeholder"))
    is_used = any(isinstance(value, torch.Tensor) and value.device.type == "cuda" for value in values)
    return torch.cuda.current_device() if is_used else -1


def _fit_on(gpu: int) -> int:
    """How many workers have memory there: half of what is free is theirs."""
    free, _ = torch.cuda.mem_get_info(gpu)
    return int(free // 2 // _MEMORY)
