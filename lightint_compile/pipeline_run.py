"""Running the pipeline that options ask for, and telling the log and tlparse what came of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch.fx as fx
from torch._dynamo.utils import get_debug_dir
from torch._inductor import config as inductor_config
from torch._logging._internal import trace_structured

from lightint_compile.asking import approximations, due_after, is_guided, offers
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of, unasked_passes
from lightint_compile.passes.analysis.roles import check_stated
from lightint_compile.passes.analysis.stated_roles import unused_remarks
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.flops import flops_of
from lightint_compile.passes.ir.fresh_sizes import forget_guards
from lightint_compile.passes.ir.garbage import collection_paused
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.provenance import Removals, mark_captured
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind
from lightint_compile.passes.pipeline import PassTiming, Pipeline

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Sees a graph before the first pass and after each."""

    def begin(self, program: Program) -> None:
        """No pass has run yet."""

    def after(self, step: Pass, program: Program, result: PassResult) -> None:
        """One pass has run."""


_WATCHER: ContextVar[Watcher | None] = ContextVar("lightint watcher", default=None)


@dataclass(frozen=True)
class Rewritten:
    """A program after its passes, and everything a report needs to know about how it came to be.

    Attributes:
        program: the rewritten program.
        original: the program as it was captured; its fake values are shared with ``program``.
        remarks: in the order they were made.
        timings: seconds of each pass, verification included.
        pipeline: the passes as text; parses back.
        options: what was asked for.
        flops: of the captured program and after each pass.
        removed: names of captured nodes that a pass erased, each with the pass.
    """

    program: Program
    original: Program
    remarks: tuple[Remark, ...]
    timings: tuple[PassTiming, ...]
    pipeline: str
    options: LightintOptions
    flops: tuple[int, ...]
    removed: Mapping[str, str] = field(default_factory=dict)

    def applied(self) -> int:
        """Places that were rewritten."""
        return _count(self.remarks, RemarkKind.APPLIED)

    def missed(self) -> int:
        """Places that came near a rewrite and were left alone."""
        return _count(self.remarks, RemarkKind.MISSED)


@collection_paused()
def rewrite(program: Program, options: LightintOptions, *, leave_out: Collection[str] = ()) -> Rewritten:
    """Run the passes of ``options`` on ``program``, in place.

    Args:
        leave_out: passes that the caller has no use for (a file format has no regions).

    Raises:
        PassError: a pass failed under ``strict``. ``require`` is about a whole model: see ``modelwide``.
        OptionError: the options do not make a pipeline.
    """
    state(program, options)
    check_stated(program)
    whole = [step for step in pipeline_of(options).passes if step.name not in leave_out]
    guided = any(step.numerics is Numerics.APPROXIMATE for step in whole) and is_guided(program)
    unasked = () if guided else unasked_passes(options)
    pipeline = Pipeline(tuple(step for step in whole if step.name not in unasked))
    mark_captured(program)
    original = program.snapshot()
    flops = [work_of(program.graph_module)]
    left_out = offers(due_after(None, whole, unasked), program, flops[0])
    removals = Removals(original)
    watchers = _watchers()
    for watcher in watchers:
        watcher.begin(program)

    def count(step: Pass, now: Program, result: PassResult) -> None:
        for watcher in watchers:
            watcher.after(step, now, result)
        if result.modified:
            removals.after(step.name, now)
        flops.append(work_of(now.graph_module) if result.modified else flops[-1])
        left_out.extend(offers(due_after(step, whole, unasked), now, flops[-1]))

    result = pipeline.run(program, strict=options.strict, observer=count)
    forget_guards(program)
    program.graph_module.recompile()
    unused = unused_remarks(original, [step.name for step in pipeline.passes], result.remarks)
    remarks = (*result.remarks, *unused, *left_out, *approximations(result.remarks, options, guided))
    rewritten = Rewritten(program, original, remarks, result.timings, str(pipeline), options, tuple(flops), removals.by)
    _tell(rewritten)
    return rewritten


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Show ``watcher`` every graph that this thread rewrites while the context lasts."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def _watchers() -> list[Watcher]:
    """Whoever watches this thread, and the files that ``TORCH_COMPILE_DEBUG=1`` asks for."""
    found: list[Watcher] = [watcher] if (watcher := _WATCHER.get()) is not None else []
    if inductor_config.trace.enabled:
        from lightint_compile.reporting.pass_texts import PassFiles

        found.append(PassFiles(Path(get_debug_dir()) / "lightint"))
    return found


def state(program: Program, options: LightintOptions) -> None:
    """Give a program what the user stated of its inputs."""
    program.roles.update(options.roles)
    program.grids.update(options.grids)


def work_of(graph_module: fx.GraphModule) -> int:
    """FLOPs of a graph and of the regions it calls, each as often as it is called; symbolic sizes at their hints."""
    regions = {
        name: work_of(region) for name, region in graph_module.named_children() if isinstance(region, fx.GraphModule)
    }
    nodes = graph_module.graph.nodes
    total = sum(map(flops_of, nodes))
    for node in nodes if regions else ():
        called = (
            [node.target]
            if node.op == "call_module"
            else [n.target for n in node.all_input_nodes if n.op == "get_attr"]
        )
        total += sum(regions.get(str(name), 0) for name in called)
    return total


def _tell(rewritten: Rewritten) -> None:
    for remark in rewritten.remarks:
        if remark.pass_name == "roles" and remark.rule in ("unfit", "unread"):
            log.warning("%s: %s (%s)", rewritten.program.name, remark.message, remark.hint)
    seconds = sum(timing.seconds for timing in rewritten.timings)
    log.info(
        "%s: %d rewritten, %d near misses, %.0f ms of passes (%s)",
        rewritten.program.name,
        rewritten.applied(),
        rewritten.missed(),
        1000 * seconds,
        rewritten.options,
    )
    _trace(rewritten)


def _trace(rewritten: Rewritten) -> None:
    """Artifacts that tlparse shows; nothing is rendered unless a trace is being written."""
    from lightint_compile.reporting import Report

    _artifact("lightint_report", "json", lambda: json.dumps(Report.of(rewritten).to_dict(), indent=1))
    _artifact("lightint_graph_before", "string", partial(_code, rewritten.original))
    _artifact("lightint_graph_after", "string", partial(_code, rewritten.program))


def _artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload)


def _code(program: Program) -> str:
    return str(program.graph_module.print_readable(print_output=False))


def _count(remarks: Sequence[Remark], kind: RemarkKind) -> int:
    return sum(remark.count for remark in remarks if remark.kind is kind)
