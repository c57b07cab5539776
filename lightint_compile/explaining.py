"""The dry run: what the backend would rewrite, without compiling anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile import capture
from lightint_compile.budget.graph import uncalibrated
from lightint_compile.errors import CaptureError
from lightint_compile.options import LightintOptions
from lightint_compile.passes.facts import summary
from lightint_compile.passes.program import Program
from lightint_compile.passes.remarks import Remark, RemarkKind
from lightint_compile.reporting import Report, Section
from lightint_compile.rewrite import rewrite
from lightint_compile.tracing import Dynamic, undisturbed


def explain(
    module: Callable[..., Any],
    *args: Any,
    dynamic: Dynamic | None = None,
    options: LightintOptions | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Report:
    """What ``torch.compile(module, backend="lightint", options=options)`` would rewrite when called like this.

    Nothing is compiled. A call that captures as one graph is not run either, so a model on the meta device costs no
    memory; one that breaks into several graphs is run once, eagerly, to get past each break, and each graph is a
    section of the report. The model is explained as inference (no gradients).

    Args:
        module: a module or function, or what ``torch.compile`` made of one.
        args, kwargs: what it is called with.
        dynamic: argument name to the dimension (or dimensions) whose size is symbolic.
        options: as for ``torch.compile``.

    Raises:
        OptionError: options that cannot be taken.
        PassError: a pass named by ``require`` rewrote nothing, or one failed under ``strict``.
    """
    wanted = options if isinstance(options, LightintOptions) else LightintOptions.from_mapping(options)
    module = getattr(module, "_orig_mod", module)
    needs_gradients = torch.is_grad_enabled() and _trains(module)
    with torch.no_grad():
        try:
            sections = [_section(capture.trace(module, args, kwargs, dynamic=dynamic), wanted)]
        except CaptureError:
            sections = _graph_by_graph(module, args, kwargs, wanted)
    if needs_gradients:
        sections = [_as_inference(section) for section in sections]
    return Report.of(*sections)


def _section(program: Program, options: LightintOptions) -> Section:
    if options.preset == "off":
        why = 'preset "off" hands the graph to Inductor as it is'
        return Section(program.name, options=options.to_dict(), untouched=why)
    program.roles.update(options.roles)
    found = summary.remarks(program)
    if options.budget is not None and not options.budget.is_exact:
        found = (*found, uncalibrated(options.budget))
    return Section.of(rewrite(program, options)).with_remarks(found)


def _graph_by_graph(
    module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: LightintOptions
) -> list[Section]:
    sections: list[Section] = []
    failures: list[Exception] = []
    name = _name_of(module)

    def backend(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        try:
            sections.append(_section(capture.from_dynamo(graph_module, example_inputs, name=name), options))
        except CaptureError as error:
            reason = " ".join(str(error).split())
            sections.append(Section(name, options=options.to_dict(), untouched=reason))
        except Exception as error:
            failures.append(error)
        run: Callable[..., Any] = graph_module.forward
        return run

    with undisturbed():
        torch.compile(module, backend=backend)(*args, **kwargs)
    if failures:
        raise failures[0]
    return sections


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
