"""The dry run: what the backend would rewrite, without compiling anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.exc import TorchDynamoException

from lightint_compile import capture
from lightint_compile.asking import in_rollout
from lightint_compile.capture.copies import Invocation, copied, randomness_kept
from lightint_compile.capture.dry_run import Dynamic, sizes_marked, trace_once, undisturbed
from lightint_compile.error_budget.budgeted_graph import uncalibrated
from lightint_compile.errors import (
    CaptureError,
    EmptyGraphError,
    GraphBreakError,
    LightintError,
    StateError,
    one_line,
    told,
)
from lightint_compile.modelwide import Captured, check_core, check_required, is_refused, warn_unmatched
from lightint_compile.options import LightintOptions
from lightint_compile.passes.analysis import summary
from lightint_compile.passes.analysis.token_grid import Made
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.pipeline_run import rewrite, state
from lightint_compile.reporting import Report, Section
from lightint_compile.runtime import handed_grids
from lightint_compile.torch_marks import parts_uncompiled, uncompiled


def explain(
    module: Callable[..., Any],
    *args: Any,
    dynamic: Dynamic | None = None,
    options: LightintOptions | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Report:
    """What ``torch.compile(module, backend="lightint", options=options)`` would rewrite in this call.

    Nothing is compiled. A call that captures as one graph is not run either, so a model on the meta device needs no
    memory. A call that breaks into several graphs is run once, eagerly and on copies, to get past each break; each
    graph is a section of the report. The module, its arguments and random numbers stay as they are. Where something
    cannot be copied, or there is no room, only the graph up to the first break is explained, and a remark says why. The
    model is explained as inference (no gradients).

    Args:
        module: a module or function, or the result of ``torch.compile`` on one.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        dynamic: argument name to the dimension (or dimensions) whose size is symbolic.
        options: as for ``torch.compile``.

    Raises:
        OptionError: options that cannot be taken.
        InputError: ``dynamic`` names what the call does not have.
        PassError: a pass named by ``require`` rewrote nothing, or one failed under ``strict``.
    """
    wanted = in_rollout(options if isinstance(options, LightintOptions) else LightintOptions.from_mapping(options))
    module = uncompiled(module)
    needs_gradients = torch.is_grad_enabled() and _trains(module)
    with torch.no_grad(), randomness_kept():
        sections = _sections((module, args, kwargs), dynamic or {}, wanted)
    if needs_gradients:
        sections = [_as_inference(section) for section in sections]
    warn_unmatched(sections, wanted)
    check_required(sections, wanted)
    return Report.of(*sections)


def _sections(call: Invocation, dynamic: Dynamic, options: LightintOptions) -> list[Section]:
    module, args, kwargs = call
    try:
        return [_section(capture.trace(module, args, kwargs, dynamic=dynamic), options)]
    except EmptyGraphError:
        return []
    except GraphBreakError:
        try:
            with parts_uncompiled(module):
                copies = copied(module, args, kwargs)
            return _graph_by_graph(copies, dynamic, options)
        except StateError as error:
            return _up_to_the_first_break(call, dynamic, options, error)
    except CaptureError as error:
        return [_left_alone(_name_of(module), error, options)]


def _section(program: Program, options: LightintOptions) -> Section:
    if options.preset == "off":
        why = 'preset "off" hands the graph to Inductor as it is'
        return Section(program.name, options=options.to_dict(), untouched=why)
    state(program, options)
    found = summary.remarks(program)
    if options.budget is not None and not options.budget.is_exact:
        found = (*found, uncalibrated(options.budget))
    return Section.of(rewrite(program, options)).with_remarks(found)


def _left_alone(name: str, error: LightintError, options: LightintOptions) -> Section:
    return Section(name, options=options.to_dict(), untouched=one_line(error))


class _Reader:
    """A backend that explains each graph it is given and runs it as it is."""

    def __init__(self, name: str, options: LightintOptions) -> None:
        self.sections: list[Section] = []
        self.failures: list[Exception] = []
        self.name, self._options = name, options

    def __call__(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        captured, symbols, made = Captured.of(graph_module), handed_grids.symbols_of(graph_module), list[Made]()
        try:
            section = self._explained(graph_module, inputs)
            made.append(section.tokens)
            self.sections.append(section.with_remarks(captured.breaks))
            if captured.core is not None and is_refused(section):
                check_core(captured.core, section.untouched, self._options, self.name)
        except Exception as error:
            self.failures.append(error)

        def run(*args: Any) -> Any:
            results = graph_module.forward(*args)
            for tokens in made:
                handed_grids.note(results, tokens, args, symbols)
            return results

        return run

    def _explained(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Section:
        try:
            program = capture.from_dynamo(graph_module, inputs, name=self.name)
        except LightintError as error:
            return _left_alone(self.name, error, self._options)
        except Exception as error:
            unknown = CaptureError("the graph could not be captured", why=told(error))
            return _left_alone(self.name, unknown, self._options)
        others = handed_grids.told(graph_module, inputs)
        handed_grids.tell(program, others)
        return _section(program, self._options).with_remarks(handed_grids.remarks_on(others, graph_module))

    def told(self) -> list[Section]:
        """The sections; what the passes raised is raised here, outside of Dynamo's trace."""
        if self.failures:
            raise self.failures[0]
        return self.sections


def _graph_by_graph(call: Invocation, dynamic: Dynamic, options: LightintOptions) -> list[Section]:
    """Run a call of copies."""
    module, args, kwargs = call
    reader = _Reader(_name_of(module), options)
    with undisturbed(), sizes_marked(module, args, kwargs, dynamic):
        torch.compile(module, backend=reader)(*args, **kwargs)
    return reader.told()


def _up_to_the_first_break(
    call: Invocation, dynamic: Dynamic, options: LightintOptions, reason: StateError
) -> list[Section]:
    module, args, kwargs = call
    reader = _Reader(_name_of(module), options)
    with sizes_marked(module, args, kwargs, dynamic), suppress(TorchDynamoException):
        trace_once(module, args, kwargs, reader, whole=False)
    why = f"the model is not run past its first break: {told(reason)}"
    remark = Remark(kind=RemarkKind.ANALYSIS, pass_name="explain", rule="not-run", message=why, hint=_SMALLER)
    sections = reader.told() or [Section(reader.name, options=options.to_dict(), untouched=why)]
    return [*sections[:-1], sections[-1].with_remark(remark)]


_SMALLER = "explain a smaller instance of the model, or what torch.compile made of it by lightint_compile.report"


def _trains(module: Callable[..., Any]) -> bool:
    return isinstance(module, torch.nn.Module) and any(p.requires_grad for p in module.parameters())


def _as_inference(section: Section) -> Section:
    remark = Remark(
        kind=RemarkKind.ANALYSIS,
        pass_name="capture",
        rule="inference",
        message="Explained as inference. With gradients recorded, the backend hands the graph to Inductor as it is.",
        hint="call the compiled module under torch.no_grad() or torch.inference_mode()",
    )
    return section.with_remark(remark)


def _name_of(module: Callable[..., Any]) -> str:
    return type(module).__name__ if isinstance(module, torch.nn.Module) else getattr(module, "__name__", "function")
