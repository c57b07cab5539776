"""The driver: generated Python over the root graph, calling leaves.

It keeps no state but the memos it names and the decisions of its decision points. Branches of the graph (``cond``) are
functions beside ``forward``; which one runs is decided on the host, so the other one costs nothing.
"""

from __future__ import annotations

import itertools
import linecache
import math
import operator
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.errors import StateError
from lightint_compile.lowering.direct_calls import DIRECT, SPELLED
from lightint_compile.lowering.kept_sites import Sites
from lightint_compile.lowering.region import Leaf
from lightint_compile.lowering.result_memo import Memo
from lightint_compile.lowering.stretches import Stretches
from lightint_compile.lowering.watchers import CallWatchers, Watchers
from lightint_compile.passes.ir.decision_points import KeepPoint, PointSpec, StepPoint
from lightint_compile.passes.ir.input_writes import InputWrites
from lightint_compile.runtime.content_check import Watch
from lightint_compile.runtime.decisions import Decisions
from lightint_compile.runtime.per_element import choose_each
from lightint_compile.runtime.stretch_replay import Replays


def choose(condition: bool, then: Callable[..., Any], otherwise: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """``cond`` with a condition that is known on the host."""
    return (then if condition else otherwise)(*operands)


#: The names a driver's source may use besides ``self``; one that needs more is not kept on disk.
NAMES: Mapping[str, Any] = {
    "torch": torch,
    "device": torch.device,
    "inf": math.inf,
    "nan": math.nan,
    "NoneType": type(None),
    "math": math,
    "operator": operator,
    "_operator": operator,
    "pytree": pytree,
    "choose": choose,
    "choose_each": choose_each,
    **DIRECT,
}

_OPERATORS = {
    "torch.ops.higher_order.cond(": "choose(",
    "torch.ops.higher_order.lightint_each(": "choose_each(",
    # What a region runs operator by operator may lie in memory in another way than its fake form says.
    "torch.ops.aten.view.default(": "torch.ops.aten.reshape.default(",
    **SPELLED,
}


def driver_source(root: fx.GraphModule) -> str:
    """The root graph as a Python function ``forward(self, ...)`` whose ``self`` holds the leaves."""
    root.graph.set_codegen(fx.graph.CodeGen())
    source = str(root.graph.python_code(root_module="self").src)
    for name, own in _OPERATORS.items():
        source = source.replace(name, own)
    return source


def is_self_contained(root: fx.GraphModule) -> bool:
    """Whether the driver's source needs no object besides :data:`NAMES`, so that it can be kept on disk."""
    code = root.graph.python_code(root_module="self")
    words = set(re.findall(r"\w+", code.src))
    return all(NAMES.get(name) is value for name, value in code.globals.items() if name in words)


class Driver:
    """A compiled program: call it with the program's inputs, get its flat outputs.

    Attributes:
        source: the generated Python, for a person to read.
        leaves: the compiled regions by name.
        sites: what is kept between calls, and what it comes from.
        memos: the calls of regions whose results are kept, by the names that the source calls them by.
        branches: the sources of the functions that ``choose`` picks from, by name.
        decisions: what answers the decision points.
        constants: tensors that the captured graph holds itself.
        writes: what it writes to.
        stretches: the functions that are recorded as CUDA graphs.
        replays: their recordings.
    """

    def __init__(
        self,
        source: str,
        leaves: Mapping[str, Leaf],
        extra: Mapping[str, Any] | None = None,
        *,
        sites: Sites | None = None,
        branches: Mapping[str, str] | None = None,
        points: Mapping[str, PointSpec] | None = None,
        constants: Mapping[str, torch.Tensor] | None = None,
        writes: InputWrites | None = None,
        stretches: Stretches | None = None,
    ) -> None:
        self.source = source
        self.leaves = dict(leaves)
        self.sites = sites or Sites()
        self._watch = Watch(self.sites.positions(), keeps=bool(self.sites.memos))
        self.memos = {
            name: Memo(leaves[site.region], name, site, self._watch) for name, site in self.sites.memos.items()
        }
        self.branches = dict(branches or {})
        outside = Watch(self.sites.outside)
        self.decisions = Decisions(points or {}, self._watch, self.sites.plan, outside)
        self.constants = dict(constants or {})
        self.writes = writes or InputWrites()
        self._extra = dict(extra or {})
        self.stretches = stretches or Stretches()
        self.replays = Replays(group=self.stretches.group, strict=any(leaf.strict for leaf in self.leaves.values()))
        called: dict[str, Callable[..., Any]] = {**self.leaves, **self._outside_recordings()}
        self._self = SimpleNamespace(**{**self.constants, **called})
        names = {**NAMES, **self._extra}
        for name, text in self.branches.items():
            setattr(self._self, name, partial(compiled_source(text, names), self._self))
        for name, stretch in self.stretches.by_name.items():
            function = partial(compiled_source(stretch.source, names), self._self)
            setattr(self._self, name, self.replays.stretch(function, stretch.written))
        self._forward = compiled_source(source, names)
        self._inside = Watchers(vars(self._self), called)
        self._calls = CallWatchers()

    def _outside_recordings(self) -> dict[str, Callable[..., Any]]:
        """What is kept between calls and decided; none of it holds what a recording will overwrite."""
        functions: dict[str, Callable[..., Any]] = {**self.memos, **self.decisions.bound}
        if not self.stretches.by_name:
            return functions
        points = self.decisions.points
        reads = {name for name, spec in points.items() if isinstance(spec, (KeepPoint, StepPoint))}
        return {
            name: function if name in reads else self.replays.outside(function) for name, function in functions.items()
        }

    @property
    def sources(self) -> tuple[str, ...]:
        """All generated Python, the program's own first."""
        return (self.source, *self.branches.values(), *(stretch.source for stretch in self.stretches.by_name.values()))

    @property
    def compilations(self) -> int:
        """How many times a region was compiled in this process; a warm start begins at 0."""
        return sum(leaf.compilations for leaf in self.leaves.values())

    def __call__(self, *args: Any) -> Any:
        """Run the program."""
        held = tuple(self.constants.values())
        with self._watch.call((*args, *held)), self.decisions.call(args, held):
            forward = self._calls.around(self._run) if self._calls else self._run
            return forward(*args)

    def _run(self, *args: Any) -> Any:
        if not self.stretches.by_name:
            return self._forward(self._self, *args)
        with self.replays.call(args, bool(self._inside)):
            return self.replays.copied_out(self._forward(self._self, *args))

    def watched(self, watcher: Callable[..., Any]) -> AbstractContextManager[None]:
        """Run every region as ``watcher(name, region, *arguments)`` while the context lasts: for measurements.

        A call whose result is kept has a name of its own.
        """
        return self._inside.added([*self.leaves, *self.memos], watcher)

    def watched_points(self, watcher: Callable[..., Any]) -> AbstractContextManager[None]:
        """Ask every decision point as ``watcher(name, answer, *arguments)`` while the context lasts, likewise."""
        return self._inside.added(self.decisions.bound, watcher)

    def watched_calls(self, watcher: Callable[..., Any]) -> AbstractContextManager[None]:
        """Run every call of the program as ``watcher(function, *arguments)`` while the context lasts, likewise."""
        return self._calls.added(watcher)

    def reset(self, parameters: Iterable[torch.Tensor] | None = None) -> None:
        """Forget every result kept between calls, and the decisions of the model with these parameters (of all)."""
        for memo in self.memos.values():
            memo.reset()
        self.decisions.reset(parameters)

    def __reduce__(self) -> Any:
        raise StateError(
            "a compiled program cannot be pickled",
            why="it holds kernels loaded into this process and results kept between calls",
            fix="pickle the module itself and compile it again, or use lightint_compile.export",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Driver:
        """A driver with the same kernels, no kept results and no decisions made."""
        return self.with_points(self.decisions.points)

    def with_points(self, points: Mapping[str, PointSpec]) -> Driver:
        """The same, with decision points of other thresholds."""
        return Driver(
            self.source,
            self.leaves,
            self._extra,
            sites=self.sites,
            branches=self.branches,
            points=points,
            constants=self.constants,
            writes=self.writes,
            stretches=self.stretches,
        )


_number = itertools.count()


def compiled_source(source: str, names: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that ``source`` defines; its lines are there for tracebacks and for whoever times them."""
    namespace = dict(names)
    place = f"<lightint driver {next(_number)}>"
    exec(compile(source, place, "exec"), namespace)
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
    forward: Callable[..., Any] = namespace["forward"]
    weakref.finalize(forward, linecache.cache.pop, place, None)
    return forward
