"""``lightint explain``: the report, the files it is written to, and what one pass changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightint_compile.cli.failing import check_writable, user_call
from lightint_compile.cli.targets import parse_dynamic, parse_options, resolve
from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.explaining import explain
from lightint_compile.kernels import cost, dispatch
from lightint_compile.pipeline_run import watching
from lightint_compile.reporting import Report
from lightint_compile.reporting.pass_texts import PassDiff
from lightint_compile.reporting.prediction import predicted

WRITERS: Mapping[str, Callable[[Report, Path], object]] = {
    "--json": lambda report, path: path.write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8"),
    "--html": Report.to_html,
    "--model-explorer": Report.to_model_explorer,
    "--dot": Report.to_dot,
}
"""What writes a report, by the option that asks for it."""

DRAWN = (".dot", ".svg")


@dataclass(frozen=True)
class Wanted:
    """Files to write, by option.

    Attributes:
        files: ``None`` for one that is not wanted.
    """

    files: Mapping[str, Path | None]

    def check(self) -> None:
        """Before any work is done: whether each can be written, and has a suffix that is known."""
        for option, path in self.files.items():
            check_writable(option, path)
        drawing = self.files.get("--dot")
        if drawing is not None and drawing.suffix not in DRAWN:
            raise OptionError(f"{drawing} has no known suffix", where="--dot", fix="name a .dot or .svg file")

    def write(self, report: Report) -> None:
        """Write them."""
        for option, path in self.files.items():
            if path is not None:
                WRITERS[option](report, path)


def report_of(target: str, preset: str, pairs: Sequence[str], dynamic: Sequence[str]) -> Report:
    """The report of a dry run of a target."""
    options, symbolic = parse_options(preset, pairs), parse_dynamic(dynamic)
    subject = resolve(target)
    with user_call(target):
        return explain(subject.module, *subject.args, dynamic=symbolic, options=options, **subject.kwargs)


def report_on(device: str, target: str, preset: str, pairs: Sequence[str], dynamic: Sequence[str]) -> Report:
    """The report of a target as it would be on a device that need not be here, with what it would take there.

    Raises:
        OptionError: no rates are shipped for the device.
    """
    with cost.assuming(device), dispatch.using("hopper"):
        report = report_of(target, preset, pairs, dynamic)
    return predicted(report, device)


def diff_of(target: str, preset: str, pairs: Sequence[str], dynamic: Sequence[str], name: str) -> str:
    """What the pass ``name`` changes in a target, as a unified diff.

    Raises:
        OptionError: the pass does not run.
    """
    diff = PassDiff(name)
    with watching(diff):
        report_of(target, preset, pairs, dynamic)
    if diff.seen and name not in diff.seen:
        raise OptionError(
            f"no pass {name!r} runs", where="--diff", fix=did_you_mean(name, list(dict.fromkeys(diff.seen)))
        )
    return diff.unified().rstrip() or f"{name} changes nothing in {target}"
