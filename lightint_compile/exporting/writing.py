"""Export: capture, rewrite, write beside the target, check in a fresh process, and only then put it in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from lightint_compile.capture.dry_run import Dynamic
from lightint_compile.errors import ExportError
from lightint_compile.exporting.calls import Call, accepted, example_call, grown_calls, sides_of, size_in
from lightint_compile.exporting.capturing import because_foreign, because_random, captured
from lightint_compile.exporting.check import run_each, run_fresh, run_onnx, worst_difference
from lightint_compile.exporting.decide import Decide, paths
from lightint_compile.exporting.formats import ONNX, Format, format_of
from lightint_compile.exporting.place import beside, put
from lightint_compile.exporting.prepared import Prepared, prepare
from lightint_compile.exporting.writers import WRITERS
from lightint_compile.options import LightintOptions
from lightint_compile.reporting import Report
from lightint_compile.torch_marks import uncompiled


@dataclass(frozen=True)
class Checked:
    """One call that a written file was compared in: what it shows, and the largest relative L2 difference."""

    name: str
    difference: float


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: where it is.
        report: what was rewritten; the same report is in the file.
        compared_with: what the file's outputs were compared with: the module, or, where a rewrite is approximate, the
            rewritten graph in this process.
        checks: the calls in which it was, in a fresh process.
        inputs: arguments that the caller decides, by name, with what each is; they follow those of the module.
        outputs: results beside the module's, likewise.
        unchecked: what could not be checked, and why.
        decide: a second file in the same format, which takes the decision: see
            :class:`~lightint_compile.exporting.decide.Decide`. ``None`` where nothing is, or the caller has to.
        left_out: results that the format has no outputs for, by their names: in ONNX ``None`` and texts.
    """

    path: Path
    report: Report
    compared_with: str
    checks: tuple[Checked, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    unchecked: tuple[str, ...] = ()
    decide: Path | None = None
    left_out: tuple[str, ...] = ()

    @property
    def difference(self) -> float:
        """Largest relative L2 difference of an output in any check."""
        return max(each.difference for each in self.checks)

    def __str__(self) -> str:
        files = (self.path, self.path.with_name(f"{self.path.name}.data"))
        size = sum(each.stat().st_size for each in files if each.exists())
        written = f"{self.path} · {size / 2**20:.1f} MiB · {self.report.rewritten} rewrites"
        first = f"{written} · {self.difference:.1e} from {self.compared_with}, checked in a fresh process"
        more = [f"  {each.name}: {each.difference:.1e}" for each in self.checks] if len(self.checks) > 1 else []
        decided = [f"  decided by the caller: {', '.join(self.inputs)}"] if self.inputs else []
        decided += [f"  {self.decide} takes the decision"] if self.decide else []
        absent = [f"  no outputs: {', '.join(self.left_out)}"] if self.left_out else []
        return "\n".join([first, *more, *decided, *absent, *(f"  not checked: {each}" for each in self.unchecked)])


Progress = Callable[[str], None]


def export(
    module: torch.nn.Module | ExportedProgram,
    args: Sequence[Any],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    options: LightintOptions | Mapping[str, Any] | None = None,
    dynamic: Dynamic | None = None,
    format: str | None = None,
    checks: Sequence[tuple[Sequence[Any], Mapping[str, Any]]] = (),
    progress: Progress | None = None,
) -> Exported:
    """Write the rewritten program of ``module`` to a file: ``.pt2``, ``.aoti.pt2`` or ``.onnx``.

    The file is loaded and run in a fresh process before it takes its place: on ``args``, at another length where a size
    is symbolic, and on the other side of what is decided at run time. An existing file is replaced in one step, or not
    at all.

    Args:
        module: a module, or a program that ``torch.export`` made of one. Of a module that is compiled already, what it
            was before is written, and compared with.
        args: positional arguments of a call, by which the module is captured and the file is checked.
        path: the file to write.
        kwargs: keyword arguments of that call.
        options: as for ``torch.compile``; the preset ``exact`` by default. What a preset decides at run time becomes
            further arguments and results of the file: see :class:`Exported`.
        dynamic: argument name to the dimension (or dimensions) whose size is symbolic; not for a captured program.
        format: ``pt2``, ``aoti`` or ``onnx``; by default what the path's suffix says.
        checks: further calls as (args, kwargs) that the file is checked with, such as one for each side of a branch.
        progress: is told what is done next, one line at a time.

    Raises:
        ExportError: an unknown suffix, a path that cannot be written, a module that cannot be captured, a program
            without a form in this format, or a file whose outputs differ.
        DeviceError: a package that the format needs is not installed.
        OptionError, PassError: as for ``explain``.
    """
    path, kwargs = Path(path), dict(kwargs or {})
    kind, tell = format_of(path, format), progress or (lambda _: None)
    module = uncompiled(module)
    if not isinstance(module, (torch.nn.Module, ExportedProgram)):
        fix = "wrap the function in a torch.nn.Module"
        raise ExportError("only a module or an exported program can be written", why=f"it is {module!r}", fix=fix)
    given = options if options is not None else {"preset": "exact"}
    wanted = given if isinstance(given, LightintOptions) else LightintOptions.from_mapping(given)
    WRITERS[kind].check_installed()
    with beside(path) as folder, torch.no_grad():
        tell("capturing")
        program = captured(module, tuple(args), kwargs, dynamic or {})
        tell("rewriting")
        prepared = prepare(module, program, wanted, kind)
        tell("running the reference")
        calls, unchecked = _calls(prepared, (tuple(args), kwargs), checks)
        references = [prepared.reference(call) for call in calls]
        tell(f"writing {kind.suffix}")
        try:
            written = WRITERS[kind].write(prepared, calls[0], folder / path.name)
        except ExportError as error:
            raise because_foreign(error, program) from error
        tell("checking in a fresh process")
        try:
            found = _outputs(prepared, kind, written[0], calls, folder)
            references = [prepared.tensors(each) if kind is ONNX else each for each in references]
            done = [
                Checked(call.name, worst_difference(list(outputs), expected))
                for call, outputs, expected in zip(calls, found, references, strict=True)
            ]
        except ExportError as error:
            raise because_foreign(because_random(error, program), program) from error
        decides, why = _decision(prepared, calls[0], kind, path, folder, tell)
        put([*written, *([] if decides is None else [folder / decides.name])], path)
    return Exported(
        path,
        prepared.report,
        prepared.compared_with,
        tuple(done),
        prepared.inputs,
        prepared.opened.outputs,
        (*unchecked, *why),
        decides,
        prepared.left_out if kind is ONNX else (),
    )


def _decision(
    prepared: Prepared, call: Call, kind: Format, path: Path, folder: Path, tell: Progress
) -> tuple[Path | None, tuple[str, ...]]:
    """Where the decision's own program belongs, once it is written into ``folder``; or why there is none."""
    policy, history = prepared.opened.policy, prepared.opened.history
    if policy is None:
        return None, ()
    place = path.with_name(f"{path.name.removesuffix(kind.suffix)}.decide{kind.suffix}")
    try:
        if history is None:
            raise ExportError("the decision has no form as a program", why="no context is chosen")
        module = Decide(policy)
    except ExportError as error:
        return None, (f"decide in the caller: {error.what} ({error.why})",)
    tell("writing the decision")
    latents = torch.randn([size_in(size, call.sizes) for size in history.shape], dtype=history.dtype)
    calls = [(each, latents, torch.tensor(True)) for each in paths(policy, latents.shape[2])]
    export(
        module,
        calls[0],
        folder / place.name,
        options={"preset": "off"},
        dynamic={"extrinsics": 0, "history": 2},
        format=kind.name,
        checks=[(each, {}) for each in calls[1:]],
    )
    return place, ()


def _calls(
    prepared: Prepared, example: tuple[tuple[Any, ...], dict[str, Any]], checks: Sequence[tuple[Any, Any]]
) -> tuple[list[Call], tuple[str, ...]]:
    """What the file is checked with; and what could not be made up."""
    program, given = prepared.captured, prepared.opened
    first = example_call(program, given, *example)
    further = [
        example_call(program, given, tuple(args), kwargs, f"check {number}")
        for number, (args, kwargs) in enumerate(checks, 1)
    ]
    unchecked = []
    if first.sizes and not any(call.sizes != first.sizes for call in further):
        longer = accepted(prepared.original, grown_calls(program, first))
        further += [longer] if longer else []
        unchecked += [] if longer else ["another length: none was found that the module takes; pass checks=[...]"]
    return sides_of(given, [first, *further]), tuple(unchecked)


def _outputs(
    prepared: Prepared, kind: Format, path: Path, calls: Sequence[Call], folder: Path
) -> Sequence[Sequence[Any]]:
    """The outputs of the written file, in another process, for every call."""
    if kind is ONNX:
        return run_onnx(path, [prepared.by_name(call) for call in calls], folder)
    given = [call.given for call in calls]
    return [run_fresh(path, given[0], folder)] if len(given) == 1 else run_each(path, given, folder)
