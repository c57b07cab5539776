"""What the page says of a part: the tables that its command prints, from the figures that it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightint_compile.bench import checks, compiling, flops, rollout_table
from lightint_compile.bench.kernel_tables import host_table, site_table, sweep_table
from lightint_compile.bench.parts.listed import Kind
from lightint_compile.bench.parts.markdown import escaped, printed
from lightint_compile.bench.rollout_job import Result
from lightint_compile.models.registry import world_model

Figures = Mapping[str, Any]


@dataclass
class Section:
    """Blocks of Markdown with steady figures, and what stands elsewhere.

    Attributes:
        cold: what was started cold, and the seconds until it was ready.
        failed: rows without figures, and why.
    """

    blocks: list[str] = field(default_factory=list)
    cold: list[tuple[str, float]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def section(kind: Kind, figures: Figures) -> Section:
    """The section of a part of a kind."""
    return _SECTIONS[kind](figures)


def results_of(figures: Figures) -> list[Result]:
    """The results of a rollout's benchmark."""
    return [Result.from_dict(row) for row in figures["rows"]]


def _kernels(figures: Figures) -> Section:
    made = Section([f"Numbers are {figures['dtype']}."])
    for site in figures.get("sites", ()):
        made.blocks += [printed(site_table(site)), *map(escaped, site["notes"])]
    for name in ("sweep", "graphs"):
        if name in figures:
            made.blocks.append(printed(sweep_table(figures[name], in_graphs=name == "graphs")))
    if "host" in figures:
        made.blocks.append(printed(host_table(figures["host"])))
    return made


def _rollout(figures: Figures) -> Section:
    results = results_of(figures)
    depth = world_model(results[0].job.model).depth
    made = Section([printed(rollout_table.table(results, depth)), " ".join(rollout_table.LEGEND.split())])
    lines = [line for result in results for line in rollout_table.details(result)]
    made.blocks.append("\n".join(f"{'  ' * line.startswith(' ')}* {escaped(line)}" for line in lines))
    for result in results:
        if result.error:
            made.failed.append((result.job.title, result.error))
        else:
            made.cold.append((result.job.title, result.warm_seconds))
    return made


def _compile(figures: Figures) -> Section:
    rows = figures["rows"]
    cold = [(f"{row['variant']}, {row['depth']} blocks", row["trace"] + row["compile"]) for row in rows]
    return Section([printed(compiling.table(figures["model"], rows))], cold)


def _checks(figures: Figures) -> Section:
    device = figures["about"]["device"]
    return Section([printed(checks.table(figures["checks"], figures["chunk ms"], device))])


def _flops(figures: Figures) -> Section:
    rollouts = {name: flops.Rollout.from_dict(each) for name, each in figures["variants"].items()}
    return Section([f"PFLOP of {figures['model']}:", "\n".join(flops.table(rollouts))])


def _evaluation(figures: Figures) -> Section:
    rows = [row for row in figures["rows"] if row["cold_seconds"] is not None]
    return Section(cold=[(f"{row['variant']}, {row['family']}", row["cold_seconds"]) for row in rows])


_SECTIONS: Mapping[Kind, Callable[[Figures], Section]] = {
    Kind.KERNELS: _kernels,
    Kind.ROLLOUT: _rollout,
    Kind.COMPILE: _compile,
    Kind.CHECKS: _checks,
    Kind.FLOPS: _flops,
    Kind.EVALUATION: _evaluation,
}
