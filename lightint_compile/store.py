"""Drivers on disk: a second process starts warm, with the report beside the kernels.

A record is found by the captured graph (targets, constants, shapes, module paths), the options, Inductor's
configuration and the versions and sources of everything involved. It holds when the guards it was made under hold for
the sizes at hand.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx
from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.standalone_compile import CompiledArtifact
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from lightint_compile.driver import Driver
from lightint_compile.freshshapes import BoundSymbol
from lightint_compile.leaf import Compiler, Leaf, RegionSource, Variant
from lightint_compile.lowering import Lowered
from lightint_compile.options import LightintOptions
from lightint_compile.passes.decisions.points import point_from
from lightint_compile.passes.remarks import source_of
from lightint_compile.reporting.section import Section
from lightint_compile.sites import Sites

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """What comes back: the driver, the section of its report, and the guard on the whole graph's sizes."""

    driver: Driver
    section: Section
    guard: str | None


class Store:
    """A folder of records, one a compiled graph. A record appears whole or not at all."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(cache_dir()) / "lightint"

    def calibration(self, key: str) -> Path:
        """Where what a calibration measured is kept."""
        return self._folder / "calibration" / f"{key}.json"

    def save(self, key: str, lowered: Lowered, section: Section, guard: str | None) -> bool:
        """Keep a driver under ``key``; ``False`` when a region has no form on disk."""
        if not lowered.storable:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            record = _record(lowered, section, guard, staging)
            if record is None:
                return False
            (staging / "record.json").write_text(json.dumps(record))
            os.replace(staging, self._folder / key)
            return True
        except OSError as error:  # another process won the race, or the disk is full: the next start is cold
            log.debug("the record %s was not kept: %s", key, error)
            return False
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def load(self, key: str, compiler: Compiler, regions: RegionSource, *, strict: bool = False) -> Stored | None:
        """The record under ``key``. ``regions`` makes a region again, for sizes that the kept kernels do not cover."""
        folder = self._folder / key
        try:
            record = json.loads((folder / "record.json").read_text())
            leaves = {name: _leaf(name, data, folder, compiler, regions) for name, data in record["leaves"].items()}
            for leaf in leaves.values():
                leaf.strict = strict
            points = {name: point_from(data) for name, data in record["points"].items()}
            sites, branches = Sites.from_dict(record["sites"]), record["branches"]
            driver = Driver(record["source"], leaves, sites=sites, branches=branches, points=points)
            return Stored(driver, Section.from_dict(record["section"]), record["guard"])
        except FileNotFoundError:
            return None
        except Exception as error:  # a record that cannot be read is a cold start, never a failure of the user's call
            log.warning("the kept program %s cannot be read and is made again: %s", key, error)
            shutil.rmtree(folder, ignore_errors=True)
            return None


def _record(lowered: Lowered, section: Section, guard: str | None, folder: Path) -> dict[str, Any] | None:
    driver = lowered.driver
    leaves = {}
    for name, leaf in driver.leaves.items():
        variant = leaf.variants[0]
        if variant.save is None:
            return None
        try:
            variant.save(str(folder / f"{name}.bin"))
        except (RuntimeError, AssertionError) as error:
            log.info("the program is not kept on disk: region %s has no artifact (%s)", name, error)
            return None
        bindings = [asdict(bound) for bound in variant.bindings]
        leaves[name] = {
            "guard": variant.guard,
            "bindings": bindings,
            "extra": list(variant.extra),
            "floats": list(variant.floats),
        }
    return {
        "source": driver.source,
        "leaves": leaves,
        "sites": driver.sites.to_dict(),
        "branches": driver.branches,
        "points": {name: spec.to_dict() for name, spec in driver.decisions.points.items()},
        "section": section.to_dict(),
        "guard": guard,
    }


def _leaf(name: str, data: Mapping[str, Any], folder: Path, compiler: Compiler, regions: RegionSource) -> Leaf:
    artifact = CompiledArtifact.load(path=str(folder / f"{name}.bin"), format="binary")
    bindings = tuple(BoundSymbol(**bound) for bound in data["bindings"])
    variant = Variant(artifact, data["guard"], bindings, tuple(data["extra"]), tuple(data["floats"]))
    return Leaf(name, functools.partial(regions, name), compiler, [variant])


def key_of(
    graph_module: fx.GraphModule, options: LightintOptions, config: Mapping[str, Any], weights: Sequence[Any] = ()
) -> str | None:
    """The record's key, or ``None`` for a graph that calls code whose content cannot be hashed.

    Args:
        weights: inputs whose parameters the record depends on: a sample of each is part of the key.
    """
    digest = hashlib.sha256()
    known = (str(options), repr(sorted(config.items())), *_surroundings(), *_samples(weights))
    try:
        for line in (*_graph_lines(graph_module), *known):
            digest.update(line.encode())
            digest.update(b"\n")
    except _Unhashable as reason:
        log.debug("the program is not kept on disk: %s", reason)
        return None
    return digest.hexdigest()


def _samples(inputs: Sequence[Any]) -> Iterator[str]:
    """A few numbers of every parameter, spread over it."""
    with unset_fake_temporarily(), torch.no_grad():
        for value in inputs:
            if isinstance(value, torch.nn.Parameter) and value.numel() and value.device.type != "meta":
                flat = value.detach().reshape(-1)
                yield repr(flat[:: max(len(flat) // 16, 1)].double().tolist())


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


def _surroundings() -> tuple[str, ...]:
    modes = [(d, torch.is_autocast_enabled(d), str(torch.get_autocast_dtype(d))) for d in ("cpu", "cuda")]
    state = (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled())
    return (_machine(), _own_sources(), repr(inductor_config.get_hash()), repr(modes), repr(state))


@functools.cache
def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return repr((torch.__version__, platform.machine(), platform.python_version(), device))


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


def guard_of(symbols: Sequence[torch.SymInt]) -> str | None:
    """The guards that the sizes of a captured graph are under by now, as text; see :func:`guard_holds`."""
    if not symbols:
        return None
    text: str | None = symbols[0].node.shape_env.produce_guards_expression(symbols)
    return text


def guard_holds(guard: str | None, symbols: Sequence[torch.SymInt]) -> bool:
    """Whether the guard holds; when it does, it becomes part of the guards of the capture at hand.

    ``min`` and ``max`` stay symbolic: Python's own would compare, and tie the capture to one side of the comparison.
    """
    if guard is None or not symbols:
        return guard is None
    names = {**SYMPY_INTERP, "min": torch.sym_min, "max": torch.sym_max}
    return bool(eval(guard, names, {"L": {f"t{index}": size for index, size in enumerate(symbols)}}))
