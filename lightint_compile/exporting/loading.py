"""Reading an exported file: our operators are registered first, so the caller need not import them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from lightint_compile.errors import ExportError, InputError, LightintError, told
from lightint_compile.exporting.aoti import METADATA
from lightint_compile.exporting.archive import REPORT_FILE
from lightint_compile.exporting.formats import AOTI, loadable
from lightint_compile.exporting.results import RESULTS_FILE, restored
from lightint_compile.read_back import an_object
from lightint_compile.reporting import Report


@dataclass(frozen=True)
class CallForm:
    """What a call of a program looks like.

    Attributes:
        spec: of its arguments.
        constants: numbers, texts and truth values that are part of the program: place among the flat arguments to the
            argument's name and its value.
    """

    spec: pytree.TreeSpec
    constants: Mapping[int, tuple[str, Any]]

    @classmethod
    def of(cls, program: ExportedProgram) -> CallForm:
        """The form of the calls of ``program``."""
        inputs = [entry for entry in program.graph_signature.input_specs if entry.kind is InputKind.USER_INPUT]
        constants = {
            place: (entry.arg.name, entry.arg.value)
            for place, entry in enumerate(inputs)
            if isinstance(entry.arg, ConstantArgument)
        }
        return cls(program.call_spec.in_spec, constants)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whether a call is of this form, with these constants.

        Raises:
            InputError: it is not.
        """
        expected, named = pytree.tree_unflatten(list(range(self.spec.num_leaves)), self.spec)
        if len(args) != len(expected) or set(kwargs) != set(named):
            raise InputError(
                "the call has another form than the one that was exported",
                where="load(path)(...)",
                why=f"it has {_form(args, kwargs)}; exported were {_form(expected, named)}",
                fix="call it in the same way, or export that call",
            )
        leaves = pytree.tree_leaves((args, {name: kwargs[name] for name in named}))
        for place, (name, constant) in self.constants.items():
            if place < len(leaves) and not _is_same(leaves[place], constant):
                raise InputError(
                    f"the program was exported for {name}={constant!r}",
                    where=name,
                    why=f"it was called with {leaves[place]!r}, and such values are part of the program",
                    fix="export a file for each value, or make it a tensor",
                )


@dataclass(frozen=True)
class Loaded:
    """A program read from a file: call it like the module it came from.

    Attributes:
        program: the exported program, with its graph and weights; ``None`` for a compiled package, which has none.
        report: what was rewritten; ``None`` for a file that lightint did not write.
        module: the program as something to call; its results are plain containers.
        form: of its calls.
        results: the classes of its results; ``None`` where all are plain, or their package is not installed.
    """

    program: ExportedProgram | None
    report: Report | None
    module: Callable[..., Any]
    form: CallForm
    results: pytree.TreeSpec | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            InputError: the call has another form than the one that was exported, or another value for a number, text
                or truth value: these are part of the program.
        """
        self.form.check(args, kwargs)
        result = self.module(*args, **kwargs)
        return result if self.results is None else pytree.tree_unflatten(pytree.tree_leaves(result), self.results)


def _form(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    positional = f"{len(args)} positional argument{'' if len(args) == 1 else 's'}"
    return f"{positional} and {', '.join(sorted(kwargs)) or 'nothing'} by name"


def _is_same(value: Any, constant: Any) -> bool:
    if type(value) is not type(constant):
        return False
    return bool(value == constant) or (value != value and constant != constant)


def load(path: str | Path, *, runners: int = 1) -> Loaded:
    """Read a ``.pt2`` or ``.aoti.pt2`` file that :func:`lightint_compile.export` wrote, or a ``.pt2`` of PyTorch's.

    Args:
        path: the file.
        runners: calls of a compiled package that may run at the same time, each from a thread of its own. Weights are
            shared, memory for what is computed is not.

    Returns:
        The program, to be called like the module that it came from.

    Raises:
        ExportError: there is no such file, its suffix is unknown, or it cannot be read.
    """
    path = Path(path)
    kind = loadable(path)
    if not path.is_file():
        raise ExportError("there is no such file", where=str(path))
    if runners < 1 or (runners > 1 and kind is not AOTI):
        why = f"runners={runners}" if kind is AOTI else f"{path.name} is no compiled package"
        raise ExportError("there are no such runners", where="runners", why=why, fix="one or more, of an .aoti.pt2")
    import lightint_compile.kernels.mixed_linear
    import lightint_compile.kernels.ops  # noqa: F401 - both register the operators that the archive may name

    return _package(path, runners) if kind is AOTI else _archive(path)


def _archive(path: Path) -> Loaded:
    extra = {REPORT_FILE: "", RESULTS_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        report = _report(extra[REPORT_FILE])
    except LightintError:
        raise
    except Exception as error:
        why = told(error)
        raise ExportError("the archive cannot be read", where=str(path), why=why, fix="export it again") from error
    results = restored(extra[RESULTS_FILE])
    return Loaded(program, report, program.module(), CallForm.of(program), results)


def _package(path: Path, runners: int) -> Loaded:
    from torch._inductor.package.package import load_package

    try:
        package = load_package(str(path), num_runners=runners)
        data = json.loads(package.get_metadata().get(METADATA, "{}"))
        spec = pytree.treespec_loads(package.loader.get_call_spec()[0])
        constants = {place: (name, value) for place, name, value in data.get("constants", ())}
        report = _report(data.get("report", ""))
    except LightintError:
        raise
    except Exception as error:
        why = told(error)
        raise ExportError("the package cannot be read", where=str(path), why=why, fix="export it again") from error
    results = restored(data.get("results", ""))
    return Loaded(None, report, package, CallForm(spec, constants), results)


def _report(text: str) -> Report | None:
    return Report.from_dict(an_object(json.loads(text))) if text else None
