"""The shape of the tree: a ladder of imports without circles, and a folder, a page and tests for every pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

from lightint_compile.passes.registry import PASSES

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("lightint_compile", "passes", "kernels", "models")

LADDER = (
    ("errors", "torch_compat", "torch_marks", "torch_private", "trace_parts"),
    ("entry_points", "read_back", "torch_guards", "torch_switches"),
    ("torch_frames", "torch_regions"),
    ("kernels",),
    ("passes.ir",),
    ("overwritten_reads",),
    ("models", "passes.analysis", "passes.base", "capture", "fallback"),
    (*tuple(f"passes.{name.replace('-', '_')}" for name in PASSES), "passes.registry"),
    ("passes.pipeline", "runtime", "reporting"),
    ("options", "testing"),
    ("lowering", "asking", "path_decisions", "agreement"),
    ("modelwide", "pipeline_run"),
    ("compiled", "exporting"),
    ("as_captured",),
    ("compilation", "error_budget", "integrations", "bisecting", "training", "world_state"),
    ("bench", "blocks_once", "kept_traces"),
    ("backend", "explaining", "acceleration", "evaluating"),
    ("demo", "play"),
    ("cli",),
    ("__main__",),
)
"""Folders and front modules, from the ground up: each imports from lower rungs only, inside of functions as well."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "lightint_compile" else ("lightint_compile", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rung_name(module: str) -> str:
    """``passes.ir`` of ``lightint_compile.passes.ir.program``: the folder, or the module where it is in none."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:1] == ["passes"] else ".".join(parts[:1])


MODULES = {module_of(path): path for top in TOPS for path in (ROOT / top).rglob("*.py")}


def imported(module: str) -> Iterator[str]:
    """Modules of ours that a module imports, wherever the statement stands; not those for annotations alone."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from {name if name in MODULES else base for name in names} & set(MODULES)


@cache
def graph_of() -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_edges_from((module, other) for module in MODULES for other in imported(module) if other != module)
    return graph


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = graph_of()
    assert graph.number_of_edges() > 500
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_imports_go_down_the_ladder() -> None:
    height = {name: number for number, rung in enumerate(LADDER) for name in rung}
    above = {
        (module, other)
        for module, other in graph_of().edges
        if (mine := rung_name(module)) != (theirs := rung_name(other))
        and mine
        and theirs not in ("", "passes")
        and height[mine] <= height[theirs]
    }
    assert above == set()


def test_every_folder_and_front_module_has_a_rung() -> None:
    stated = [name for rung in LADDER for name in rung]
    assert len(stated) == len(set(stated))
    assert {rung_name(module) for module in MODULES} - {"", "passes"} == set(stated)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_has_a_folder_a_page_and_tests_of_its_name(name: str) -> None:
    folder = name.replace("-", "_")
    assert (ROOT / "passes" / folder / "__init__.py").exists()
    assert (ROOT / "docs/passes" / f"{name}.md").exists()
    assert list((ROOT / "tests/passes" / folder).glob("test_*.py"))
