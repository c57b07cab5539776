"""Drivers on disk: a second process starts warm, with the report beside the kernels.

A record is found by its key (``keys.py``) and holds when the guards it was made under hold for the sizes at hand. Files
are checked against their hashes before anything of them is run, and the folder against its owner (``cachefolder.py``).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._inductor.standalone_compile import CompiledArtifact
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from lightint_compile.lowering import Lowered
from lightint_compile.lowering.artifact_folder import CacheFolder, ShippedFolder
from lightint_compile.lowering.artifact_keys import key_of as key_of
from lightint_compile.lowering.driver import Driver
from lightint_compile.lowering.fresh_results import FreshResults
from lightint_compile.lowering.host_region import host_compiler, host_variant
from lightint_compile.lowering.kept_sites import Sites
from lightint_compile.lowering.region import Compiler, Leaf, RegionSource, Variant, below_autograd
from lightint_compile.lowering.region_sizes import BoundSymbol
from lightint_compile.lowering.stretches import Stretches
from lightint_compile.passes.ir.decision_points import point_from
from lightint_compile.passes.ir.input_writes import InputWrites
from lightint_compile.read_back import UnreadableError, an_object, read_back
from lightint_compile.reporting.section import Section
from lightint_compile.torch_compat import cache_dir, shape_env_of

log = logging.getLogger(__name__)

TRACE = ".trace"
"""How the files of kept traces end."""

_MOST_TRACES = 8
"""Traces of one program that are kept under one key: one for each state of what the guards are about."""


@dataclass(frozen=True)
class Stored:
    """What comes back: the driver, the section of its report, and the guard on the whole graph's sizes."""

    driver: Driver
    section: Section
    guard: str | None


_kept_in: ContextVar[Path | None] = ContextVar("lightint artifacts are kept in", default=None)


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Records are read from and written to ``folder`` while the context lasts."""
    token = _kept_in.set(folder)
    try:
        yield
    finally:
        _kept_in.reset(token)


class Store:
    """A folder of records, one a compiled graph. A record appears whole or not at all.

    Args:
        shipped: a folder that came from elsewhere, which is only read; this user's own unless given.
    """

    def __init__(self, shipped: Path | None = None) -> None:
        own = _kept_in.get() or Path(cache_dir()) / "lightint"
        self._folder = CacheFolder(own) if shipped is None else ShippedFolder(shipped)

    def calibration(self, key: str) -> Path:
        """Where what a calibration measured is kept."""
        return self._folder.path / "calibration" / f"{key}.json"

    def save(self, key: str, lowered: Lowered, section: Section, guard: str | None) -> bool:
        """Keep a driver under ``key``; ``False`` when a region has no form on disk or the folder is not to be used."""
        if not lowered.storable or not self._folder.is_ready():
            return False
        staging = Path(tempfile.mkdtemp(dir=self._folder.path, prefix=self._folder.STAGING))
        try:
            record = _record(lowered, section, guard, staging)
            if record is None:
                return False
            _write(record, staging)
            os.replace(staging, self._folder.path / key)
            self._folder.evict()
            return True
        except OSError as error:  # another process won the race, or the disk is full: the next start is cold
            log.debug("the record %s was not kept: %s", key, error)
            return False
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def keep_trace(self, program: str, key: str, name: str, content: bytes) -> bool:
        """Keep a trace beside a program in place of one of that name; ``False`` where the program is not here."""
        folder = self._folder.path / program
        if not folder.is_dir() or not self._folder.is_ready():
            return False
        staging = Path(tempfile.mkdtemp(dir=self._folder.path, prefix=self._folder.STAGING))
        try:
            (staging / "trace").write_bytes(content)
            os.replace(staging / "trace", folder / f"{key}-{name}{TRACE}")
            for old in _oldest_first(folder.glob(f"{key}-*{TRACE}"))[:-_MOST_TRACES]:
                old.unlink()
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return True

    def traces(self, key: str) -> Iterator[bytes]:
        """The traces under ``key``, in the order in which they were made."""
        if not self._folder.path.is_dir() or not self._folder.is_ready():
            return
        for path in _oldest_first(self._folder.path.glob(f"*/{key}-*{TRACE}")):
            try:
                content = path.read_bytes()
            except OSError as error:  # another process removed it, or it is no file: the next may fit
                log.info("the kept trace %s cannot be read: %s", path.name, error)
                continue
            yield content

    def load(self, key: str, compiler: Compiler, regions: RegionSource, *, strict: bool = False) -> Stored | None:
        """The record under ``key``. ``regions`` makes a region again, for sizes that the kept kernels do not cover."""
        folder = self._folder.path / key
        if not folder.is_dir() or not self._folder.is_ready():
            return None
        try:
            found = _loaded(folder, compiler, regions, strict)
            self._folder.used(folder)
            return found
        except Exception as error:  # a record that cannot be read is a cold start, never a failure of the user's call
            log.warning("the kept program %s cannot be read and is made again: %s", key, error)
            self._folder.remove(folder)
            return None


def _oldest_first(paths: Iterable[Path]) -> list[Path]:
    """Those that are there still: another process may delete them meanwhile."""
    times: list[tuple[int, Path]] = []
    for path in paths:
        with suppress(OSError):
            times.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(times)]


def _write(record: Mapping[str, Any], folder: Path) -> None:
    """The record, with the hash of every file beside it, and its own."""
    hashes = {path.name: _hash(path.read_bytes()) for path in sorted(folder.iterdir())}
    (folder / "record.json").write_text(json.dumps(_sealed({**record, "files": hashes})))


def _sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """``record`` with a hash over the rest of it."""
    rest = {name: value for name, value in record.items() if name != "hash"}
    return {**rest, "hash": _hash(json.dumps(rest, sort_keys=True).encode())}


def read_record(folder: Path) -> dict[str, Any]:
    """What :func:`_write` wrote.

    Raises:
        UnreadableError, OSError: a file is not what was written, or not there.
    """
    record = read_back(folder / "record.json", _unsealed)
    for name, expected in record["files"].items():
        if _hash((folder / name).read_bytes()) != expected:
            raise UnreadableError(f"{name} is damaged")
    return record


def _unsealed(data: Any) -> dict[str, Any]:
    record = an_object(data)
    if _sealed(record)["hash"] != record["hash"]:
        raise UnreadableError("record.json is damaged")
    return record


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _loaded(folder: Path, compiler: Compiler, regions: RegionSource, strict: bool) -> Stored:
    record = read_record(folder)
    leaves = {name: _leaf(name, data, folder, compiler, regions) for name, data in record["leaves"].items()}
    for leaf in leaves.values():
        leaf.strict = strict
    points = {name: point_from(data) for name, data in record["points"].items()}
    sites, branches = Sites.from_dict(record["sites"]), record["branches"]
    writes = InputWrites(tuple(record["writes"]["positions"]), record["writes"]["repeatable"])
    stretches = Stretches.from_dict(record["stretches"])
    driver = Driver(
        record["source"], leaves, sites=sites, branches=branches, points=points, writes=writes, stretches=stretches
    )
    return Stored(driver, Section.from_dict(record["section"]), record["guard"])


def _record(lowered: Lowered, section: Section, guard: str | None, folder: Path) -> dict[str, Any] | None:
    driver = lowered.driver
    leaves = {}
    for name, leaf in driver.leaves.items():
        variant = leaf.variants[0]
        if variant.save is None:
            return None
        try:
            variant.save(str(folder / _file(name, variant.is_text)))
        except (RuntimeError, AssertionError) as error:
            log.info("the program is not kept on disk: region %s has no artifact (%s)", name, error)
            return None
        bindings = [asdict(bound) for bound in variant.bindings]
        leaves[name] = {
            "is_text": variant.is_text,
            "guard": variant.guard,
            "bindings": bindings,
            "extra": list(variant.extra),
            "floats": list(variant.floats),
            "memory": list(variant.results.stated),
            "orders": [list(order) for order in variant.results.orders],
        }
    return {
        "source": driver.source,
        "leaves": leaves,
        "sites": driver.sites.to_dict(),
        "branches": driver.branches,
        "stretches": driver.stretches.to_dict(),
        "writes": asdict(driver.writes),
        "points": {name: spec.to_dict() for name, spec in driver.decisions.points.items()},
        "section": section.to_dict(),
        "guard": guard,
    }


def _leaf(name: str, data: Mapping[str, Any], folder: Path, compiler: Compiler, regions: RegionSource) -> Leaf:
    file, again = folder / _file(name, data["is_text"]), functools.partial(regions, name)
    if data["is_text"]:
        return Leaf(name, again, host_compiler, [host_variant(file.read_text(encoding="utf-8"))])
    artifact = CompiledArtifact.load(path=str(file), format="binary")
    bindings = tuple(BoundSymbol(**bound) for bound in data["bindings"])
    results = FreshResults(data["memory"], data["orders"])
    function, extra, floats = below_autograd(artifact), tuple(data["extra"]), tuple(data["floats"])
    variant = Variant(function, data["guard"], bindings, extra, floats, results=results)
    return Leaf(name, again, compiler, [variant])


def _file(name: str, is_text: bool) -> str:
    return f"{name}.py" if is_text else f"{name}.bin"


def guard_of(symbols: Sequence[torch.SymInt]) -> str | None:
    """The guards that the sizes of a captured graph are under by now, as text; see :func:`guard_holds`."""
    if not symbols:
        return None
    text: str | None = shape_env_of(symbols[0]).produce_guards_expression(symbols)
    return text


def guard_holds(guard: str | None, symbols: Sequence[torch.SymInt]) -> bool:
    """Whether the guard holds; when it does, it becomes part of the guards of the capture at hand.

    ``min`` and ``max`` stay symbolic: Python's own would compare, and tie the capture to one side of the comparison.
    """
    if guard is None or not symbols:
        return guard is None
    names = {**SYMPY_INTERP, "min": torch.sym_min, "max": torch.sym_max}
    return bool(eval(guard, names, {"L": {f"t{index}": size for index, size in enumerate(symbols)}}))
