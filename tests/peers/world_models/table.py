"""The table of docs/measurements.md, from what the runs told: ``{name: {way: facts}}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightint_compile.options.presets import PRESETS

STOCK, SAME, MOST = "dynamo", "accelerate:exact", "accelerate:all"
COLUMNS = (
    *("source", "runs", "graphs", "breaks", "late", "exact rewrites", "kept between calls"),
    *("sparse attention", "steps reused", "difference, `exact`", "difference, `all`"),
)
_EXACT = tuple(name for name in PRESETS["exact"].passes if name != "outline-regions")
_KEEPS = "kept between calls for as long as these hold the same: "


def markdown(facts: Mapping[str, Mapping[str, Mapping[str, Any]]], names: Iterable[str]) -> str:
    """The rows of those of ``names`` that ran, in their order."""
    rows = [_row(name, facts[name]) for name in names if name in facts]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _row(name: str, ways: Mapping[str, Mapping[str, Any]]) -> list[str]:
    stock, same, most = ways[STOCK], ways[SAME], ways[MOST]
    if wrong := next((each["error"] for each in (same, most) if "error" in each), None):
        return [name, f"no: {wrong}", *[""] * (len(COLUMNS) - 2)]
    rewritten = sum(same["rewritten"].get(each, 0) for each in _EXACT)
    both = [f"{stock.get(what, 'fails')} -> {same[what]}" for what in ("graphs", "breaks")]
    kept = _kept(most)
    sparse = most["sparse"] or "dense"
    differences = [f"{each['difference']:.1e}" if each["difference"] else "0" for each in (same, most)]
    return [name, _runs(same), *both, str(same["late"]), str(rewritten), kept, sparse, _steps(most), *differences]


def _runs(facts: Mapping[str, Any]) -> str:
    if any("runs eagerly" in why for why in facts["untouched"]):
        return "eagerly"
    return "in parts" if facts["breaks"] else "whole"


def _kept(facts: Mapping[str, Any]) -> str:
    """What is made of which inputs once, for as long as they are the same."""
    inputs = [name for message in facts["kept"] if _KEEPS in message for name in _inputs(message)]
    found = [f"of `{name}`" for name in dict.fromkeys(inputs)][:3]
    return ", ".join(found + ["pools of context"] * bool(facts["pools"])) or "nothing"


def _inputs(message: str) -> list[str]:
    return message.partition(_KEEPS)[2].partition(" (")[0].split(", ")


def _steps(facts: Mapping[str, Any]) -> str:
    return facts["reused_steps"] or "none"
