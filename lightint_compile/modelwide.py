"""Warnings and requirements that hold once a model, however many graphs Dynamo makes of it.

``require`` and warnings are about a model: a fragment between two graph breaks that has nothing to rewrite is no fault.
Graphs arrive one at a time, so each thing is decided as soon as it can be:

* a graph that holds attention and is handed on as it is: at once, since no other graph can stand for it;
* a pass that rewrote nothing: when the graph that ends the model's call has arrived, which is the last of the call;
* where no graph ends the call (Dynamo gave the function up): when a report is asked for.
"""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
import torch.fx as fx

from lightint_compile.asking import APPROXIMATE
from lightint_compile.capture import inputs_of
from lightint_compile.capture.calling import Call, call_under_way, ends_the_call
from lightint_compile.capture.core import Core, core_of
from lightint_compile.capture.disabled import disabled_in
from lightint_compile.errors import PassError, did_you_mean
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import asked_passes, pipeline_of
from lightint_compile.passes.analysis.stated_inputs import is_named, is_owned
from lightint_compile.passes.ir.program import InputKind
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.reporting.breaks import LOOK_THROUGH, break_remarks
from lightint_compile.reporting.section import Section
from lightint_compile.torch_marks import compiled_call

if TYPE_CHECKING:
    from lightint_compile.compiled import CompiledGraph

log = logging.getLogger(__name__)

NOTHING_ALIKE = "it found no place that looks like what it rewrites"
"""Why a pass did nothing when it has no near miss to tell of."""


@dataclass(frozen=True)
class Captured:
    """What is to be known of a graph before it is compiled, which may change it.

    Attributes:
        core: the attention in it; ``None`` for a fragment without.
        call: the call that is under way.
        breaks: remarks on how it was cut off.
        ends: no other graph of the call follows it.
    """

    core: Core | None
    call: Call
    breaks: tuple[Remark, ...]
    ends: bool

    @classmethod
    def of(cls, graph: fx.GraphModule) -> Self:
        """Looked up while Dynamo compiles it. What cannot be told is left out: nothing but words depend on it."""
        call = _tried(call_under_way, Call())
        return cls(
            core=_tried(lambda: core_of(graph), None),
            call=call,
            breaks=_tried(lambda: tuple(break_remarks(graph, call)), ()),
            ends=_tried(lambda: ends_the_call(call.compiled), False),
        )

    @property
    def is_whole(self) -> bool:
        """Whether a graph with known arguments is all of a call that ``torch.compile`` was given.

        Never under ``accelerate``: modules of a pipeline share their options.
        """
        return self.call.compiled is not None and self.ends and not self.breaks and not _is_accelerated(self.call)


def owned_by(call: Call) -> tuple[str, ...]:
    """The parameters and buffers of what is called, by name."""
    if not isinstance(call.root, torch.nn.Module):
        return ()
    return tuple(name for named in (call.root.named_parameters, call.root.named_buffers) for name, _ in named())


def _is_accelerated(call: Call) -> bool:
    return isinstance(call.root, torch.nn.Module) and hasattr(compiled_call(call.root), "opened")


T = TypeVar("T")


def _tried(look: Callable[[], T], otherwise: T) -> T:
    try:
        return look()
    except Exception:
        log.debug("what Dynamo is doing cannot be told", exc_info=True)
        return otherwise


@dataclass(frozen=True)
class StatedNames:
    """What a user stated of inputs, looked up in the graphs of a call.

    Attributes:
        missing: option and entry of what none of the graphs has.
        known: names that they have.
    """

    missing: frozenset[tuple[str, str]]
    known: frozenset[str]

    @classmethod
    def of(
        cls,
        graph: fx.GraphModule,
        inputs: Sequence[Any],
        arguments: Sequence[str] | None,
        options: LightintOptions,
    ) -> Self | None:
        """Of one graph; ``None`` where nothing is stated."""
        stated = [("roles", entry) for entry, _ in options.roles] + [("grids", entry) for entry, _ in options.grids]
        if not stated:
            return None
        found, named = inputs_of(graph, inputs), tuple(arguments or ())
        missing = frozenset(each for each in stated if not is_named(found, named, each[1]))
        return cls(
            missing, frozenset(each.path for each in found if each.kind is InputKind.TENSOR).union(named) - {"self"}
        )

    def joined(self, others: StatedNames | None) -> StatedNames:
        """Of these graphs and of others."""
        if others is None:
            return self
        return StatedNames(self.missing & others.missing, self.known | others.known)


@dataclass
class Tally:
    """What the passes did in a model's graphs so far.

    Attributes:
        ran: passes that looked at a graph.
        applied: passes that rewrote something somewhere.
        misses: of each other pass the miss that tells most.
        names: what was stated of inputs, and which of it no graph had.
    """

    ran: set[str] = field(default_factory=set)
    applied: set[str] = field(default_factory=set)
    misses: dict[str, Remark] = field(default_factory=dict)
    names: StatedNames | None = None

    @classmethod
    def of(cls, sections: Iterable[Section]) -> Tally:
        """The tally of graphs that are all there."""
        tally = cls()
        for section in sections:
            tally.add(section)
        return tally

    def add(self, section: Section) -> None:
        """One more graph."""
        self.ran.update(row.name for row in section.passes)
        for remark in section.remarks:
            if remark.kind is RemarkKind.APPLIED:
                self.applied.add(remark.pass_name)
            elif remark.kind in (RemarkKind.MISSED, RemarkKind.FAILURE):
                known = self.misses.setdefault(remark.pass_name, remark)
                if remark.hint and not known.hint:
                    self.misses[remark.pass_name] = remark

    def check_required(self, options: LightintOptions, name: str) -> None:
        """Raise :class:`PassError` for a required pass that rewrote nothing in any graph of the model."""
        for wanted in _required(options):
            if wanted in self.applied:
                continue
            miss = self.misses.get(wanted)
            raise PassError(
                f"the required pass {wanted} rewrote nothing in {name}",
                where=(miss.source or miss.module_path) if miss else "",
                why=miss.message if miss else NOTHING_ALIKE,
                fix=(miss.hint if miss else "") or "call lightint_compile.explain(model, *inputs) for the details",
            )

    def unmatched(self, options: LightintOptions) -> list[tuple[str, str]]:
        """The passes that were asked for and did nothing, with the reason; under a budget those that ran, as others may
        be left out until a calibration shows what they cost.
        """
        missing = [name for name in asked_passes(options) if name not in self.applied]
        if options.budget is not None:
            missing = [name for name in missing if name in self.ran]
        return [(n, self.misses[n].message if n in self.misses else NOTHING_ALIKE) for n in missing]


@dataclass
class Model:
    """One compiled module or function under one set of options."""

    name: str = ""
    tally: Tally = field(default_factory=Tally)
    said: set[str] = field(default_factory=set)

    def once(self, what: str) -> bool:
        """Whether ``what`` is asked for the first time."""
        fresh = what not in self.said
        self.said.add(what)
        return fresh


_models: weakref.WeakKeyDictionary[Any, dict[LightintOptions, Model]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def model_of(call: Call, options: LightintOptions) -> Model:
    """The model that a call belongs to; a new one for a graph that is compiled outside of any call."""
    if call.root is None:
        return Model()
    with _lock:
        name = getattr(call.root, "__qualname__", type(call.root).__name__)
        return _models.setdefault(call.root, {}).setdefault(options, Model(name))


def forget_models() -> None:
    """Forget all models, as after ``torch._dynamo.reset()``."""
    with _lock:
        _models.clear()


def arrived(
    graph: CompiledGraph, captured: Captured, options: LightintOptions, names: StatedNames | None = None
) -> None:
    """A graph of the model that is being called was compiled: say what is said once, and hold to ``require``.

    Raises:
        PassError: the graph holds the model's attention and was handed on as it is, or it is the last one and a
            required pass rewrote nothing in any.
    """
    call = captured.call
    graph.belongs_to(call.compiled)
    graph.section = section = graph.section.with_remarks(captured.breaks)
    model = model_of(call, options)
    model.tally.add(section)
    if names is not None:
        model.tally.names = names.joined(model.tally.names)
    name = model.name or section.name
    if options.budget is None:
        graph.announce = partial(_warn_approximate, model, name)
        graph.announce(section)
    _warn_of_disabled(model, captured, name)
    if captured.core is not None and is_refused(section):
        _refuse(model, captured.core, section.untouched, options, name)
    if captured.ends:
        if not options.runs_nothing:
            _warn_of_names(model, captured.call, name)
        _warn_unmatched(model, options, name)
        model.tally.check_required(options, name)


def check_required(sections: Sequence[Section], options: LightintOptions | None = None) -> None:
    """Check the requirements of a model whose graphs have all arrived.

    Raises:
        PassError: a required pass rewrote nothing in any of them.
    """
    asking = [section for section in sections if section.options.get("require")]
    if asking:
        wanted = options or LightintOptions.from_mapping(asking[-1].options)
        Tally.of(sections).check_required(wanted, asking[-1].name)


def warn_unmatched(sections: Sequence[Section], options: LightintOptions) -> None:
    """Warn of passes that were asked for and did nothing in a model whose graphs have all arrived."""
    looked_at = [section for section in sections if section.pipeline]
    if looked_at:
        _warn_unmatched(Model(looked_at[0].name, Tally.of(looked_at)), options, looked_at[0].name)


def is_refused(section: Section) -> bool:
    """Whether a graph that was to be rewritten was handed on without a look at it."""
    return bool(section.untouched) and not section.pipeline and section.options.get("preset") != "off"


def check_core(core: Core, reason: str, options: LightintOptions, name: str) -> None:
    """Hold a graph that has attention and was refused for ``reason`` to what its model requires.

    Raises:
        PassError: a pass is required, which cannot act.
    """
    required = _required(options)
    if required:
        raise PassError(
            f"the required pass {required[0]} cannot act in {name}: the graph with its attention is left as it is",
            where=core.source,
            why=" ".join(reason.split()),
            fix=core.fix,
        )


def _refuse(model: Model, core: Core, reason: str, options: LightintOptions, name: str) -> None:
    check_core(core, reason, options, name)
    if model.once("refused"):
        why = " ".join(reason.split())
        log.warning("%s is not rewritten where its attention is (%s): %s. %s", name, core.source, why, core.fix)


def _warn_approximate(model: Model, name: str, section: Section) -> None:
    for remark in section.remarks:
        if remark.rule == APPROXIMATE and model.once(APPROXIMATE):
            log.warning("%s: %s. %s", name, remark.message, remark.hint)


def _warn_of_disabled(model: Model, captured: Captured, name: str) -> None:
    """Name all functions that ``torch.compiler.disable`` keeps out of a model's graphs, where attention is in them."""
    root = captured.call.root
    cut = any("disabled" in remark.args for remark in captured.breaks)
    if not cut or not isinstance(root, torch.nn.Module) or _is_accelerated(captured.call):
        return
    if model.once("disabled"):
        found = [each for each in disabled_in(root) if each.is_own and not each.is_open]
        if any(each.attends for each in found):
            names = ", ".join(dict.fromkeys(each.name for each in found))
            log.warning(
                "%s: no pass sees what is behind torch.compiler.disable (%s). %s traces through, until it is undone",
                name,
                names,
                LOOK_THROUGH,
            )


def _warn_of_names(model: Model, call: Call, name: str) -> None:
    """Name what was stated of inputs that no graph of the call had."""
    names = model.tally.names
    if names is None or not names.missing or _tried(lambda: _takes_any_keyword(call.compiled), True):
        return
    owned = owned_by(call)
    for option, entry in sorted(names.missing):
        if not is_owned(owned, entry) and model.once(f"{option} {entry}"):
            hint = did_you_mean(entry, names.known)
            if _is_accelerated(call):
                hint += " Another module of the pipeline may have it."
            log.warning("options[%r][%r] names no input of %s: %s", option, entry, name, hint)


def _takes_any_keyword(compiled: Any) -> bool:
    """Whether a function has arguments that are not known by name."""
    called = compiled.forward if isinstance(compiled, torch.nn.Module) else compiled
    return any(each.kind is each.VAR_KEYWORD for each in inspect.signature(called).parameters.values())


def _warn_unmatched(model: Model, options: LightintOptions, name: str) -> None:
    if "refused" in model.said:
        return
    for wanted, why in model.tally.unmatched(options):
        if model.once(wanted):
            log.warning("%s was asked for and rewrote nothing in %s: %s", wanted, name, why)


def _required(options: LightintOptions) -> list[str]:
    """The required passes that run; under a budget they may not yet."""
    if not options.require:
        return []
    running = {step.name for step in pipeline_of(options).passes}
    return [name for name in options.require if name in running]
