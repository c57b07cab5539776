"""Quality against time, and drift over chunks, as a picture; and a page of table and picture."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
from matplotlib.backends.backend_agg import FigureCanvasAgg

from .peers import PEERS
from .table import COLUMNS, LEGEND, markdown

QUALITIES = {"psnr_truth": "PSNR to truth, dB", "psnr_eager": "PSNR to eager, dB"}
CEILING = 60.0
"""Frames as good as equal are drawn at this PSNR."""


def write_outputs(
    found: Mapping[str, Any], *, plot: Path | None = None, html: Path | None = None, markdown: Path | None = None
) -> None:
    """Write what is asked for."""
    picture = drawn(found) if plot is not None or html is not None else b""
    if plot is not None:
        plot.write_bytes(picture)
    if html is not None:
        html.write_text(page(found, picture), encoding="utf-8")
    if markdown is not None:
        markdown.write_text(_markdown(found), encoding="utf-8")


_markdown = markdown


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (time, quality) those that no other point beats in both, by time."""
    line: list[tuple[float, float]] = []
    for time, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not line or quality > line[-1][1]:
            line.append((time, quality))
    return line


def is_peer(variant: str) -> bool:
    """Whether a variant is another accelerator's rule, and no preset of ours."""
    name = variant.partition(":")[0]
    return name in PEERS or name in ("published", "inductor") or name.startswith("steps-")


_APART = ("no-memory", "no-retrieval", "other-seed", "other-dtype")
"""Bounds and noise floors: they are drawn, but no line goes through them."""


def drawn(found: Mapping[str, Any]) -> bytes:
    """A PNG: a column a family, quality against time above, drift below."""
    families = list(dict.fromkeys(row["family"] for row in found["rows"]))
    figure = matplotlib.figure.Figure(figsize=(6.5 * len(families), 13), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(families), squeeze=False)
    for column, family in enumerate(families):
        rows = [row for row in found["rows"] if row["family"] == family]
        for line, (key, label) in enumerate(QUALITIES.items()):
            _against_time(axes[line][column], rows, key, label, family)
        _drift(axes[2][column], rows)
    out = io.BytesIO()
    figure.savefig(out, dpi=110, format="png")
    return out.getvalue()


def _against_time(axis: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str, family: str) -> None:
    lines: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for row in rows:
        time, quality = row["milliseconds_per_chunk"], row[key]
        if time is None or quality is None:
            continue
        point, peer = (time, min(quality, CEILING)), is_peer(row["variant"])
        axis.plot(*point, marker="s" if peer else "o", color="tab:orange" if peer else "tab:blue")
        axis.annotate(row["variant"], point, fontsize=7, xytext=(4, 3), textcoords="offset points")
        if row["variant"] not in _APART:
            lines[peer].append(point)
    for peer, points in lines.items():
        if points:
            name, color = ("peers", "tab:orange") if peer else ("lightint and eager", "tab:blue")
            axis.plot(*zip(*pareto(points), strict=True), color=color, alpha=0.5, label=name)
    if any(lines.values()):
        axis.legend()
    axis.set(title=family, xlabel="milliseconds a chunk", ylabel=label)
    axis.grid(alpha=0.3)


def _drift(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        axis.plot(row["psnr_truth_by_chunk"], label=row["variant"], linewidth=1)
    axis.set(xlabel="chunk behind the given ones", ylabel=QUALITIES["psnr_truth"])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)


def page(found: Mapping[str, Any], png: bytes) -> str:
    """One file that needs no other: what was run, the table, the picture."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("family", "variant", *COLUMNS))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in _texts(row)) + "</tr>" for row in found["rows"]
    )
    settings = {**found["settings"], **found["about"]}
    about = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in settings.items()
    )
    picture = base64.b64encode(png).decode()
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>lightint evaluate</title>'
        f"<style>{_STYLE}</style><main><h1>{html.escape(found['settings']['model'])} against rendered truth</h1>"
        f"<dl>{about}</dl><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p>{html.escape(LEGEND)}</p>"
        f'<img alt="Quality against time and drift, by family" src="data:image/png;base64,{picture}"></main>'
    )


def _texts(row: Mapping[str, Any]) -> list[str]:
    return [row["family"], row["variant"], *(cell(row) for cell in COLUMNS.values())]


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}table{border-collapse:collapse}"
    "td,th{padding:.2rem .6rem;border-bottom:1px solid #ccc;text-align:right}"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}img{max-width:100%}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:0 1rem}dd{margin:0}"
)
