"""The report for other viewers: Model Explorer, Graphviz, text with remarks, and the texts between passes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy_report

from lightint_compile.errors import InputError, StateError
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.reporting import Report
from lightint_compile.reporting.pass_texts import PassDiff

FIELDS = {
    "collection": {"label": str, "graphs": list},
    "graph": {"id": str, "nodes": list, "tasksData": dict},
    "node": {
        "id": str,
        "label": str,
        "namespace": str,
        "subgraphIds": list,
        "attrs": list,
        "incomingEdges": list,
        "outputsMetadata": list,
        "style": dict,
    },
    "overlay": {"name": str, "edgeColor": str, "edges": list},
}
"""Fields of Model Explorer 0.1.34 (graph_builder.py) that are written, and their types."""


@pytest.fixture(scope="module")
def explained() -> tuple[Report, PassDiff, Path]:
    return toy_report.explained()


def fits(data: dict[str, Any], kind: str) -> bool:
    return all(isinstance(value, FIELDS[kind][name]) for name, value in data.items())


def test_model_explorer_gets_its_fields_and_no_edge_leads_nowhere(explained: Any, tmp_path: Path) -> None:
    collection = json.loads(explained[0].to_model_explorer(tmp_path / "graphs.json").read_text())
    assert fits(collection, "collection") and collection["label"] == "lightint ToyWorld"
    graphs = {graph["id"]: graph for graph in collection["graphs"]}
    assert "before and after" in graphs and "block_0" in graphs and len(graphs) == len(collection["graphs"])
    for graph in graphs.values():
        nodes = {node["id"] for node in graph["nodes"]}
        assert fits(graph, "graph") and len(nodes) == len(graph["nodes"])
        for node in graph["nodes"]:
            assert fits(node, "node") and all(entry["value"] for entry in node["attrs"])
            assert {edge["sourceNodeId"] for edge in node["incomingEdges"]} <= nodes
            assert set(node.get("subgraphIds", ())) <= set(graphs)


def test_model_explorers_own_classes_take_every_field(
    explained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package brings 150 MB, so it is no dependency: ``pip install --no-deps ai-edge-model-explorer dacite``."""
    dacite = pytest.importorskip("dacite", reason="dacite is not installed")
    package = importlib.util.find_spec("model_explorer")
    if package is None or package.origin is None:
        pytest.skip("ai-edge-model-explorer is not installed")
    place = Path(package.origin).with_name("graph_builder.py")
    spec = importlib.util.spec_from_file_location("graph_builder", place)
    schema = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, schema)  # where its annotations are looked up
    spec.loader.exec_module(schema)
    data = json.loads(explained[0].to_model_explorer(tmp_path / "graphs.json").read_text())
    read = dacite.from_dict(schema.GraphCollection, data, dacite.Config(strict=True))
    assert [graph.id for graph in read.graphs] == [graph["id"] for graph in data["graphs"]]


def test_model_explorer_leads_from_what_was_replaced_to_what_replaced_it(explained: Any, tmp_path: Path) -> None:
    collection = json.loads(explained[0].to_model_explorer(tmp_path / "graphs.json").read_text())
    both = collection["graphs"][0]
    labels = {node["id"]: node["label"] for node in both["nodes"]}
    (overlay,) = both["tasksData"]["edgeOverlaysDataListLeftPane"][0]["overlays"]
    assert fits(overlay, "overlay")
    ends = {(labels[edge["sourceNodeId"]], labels[edge["targetNodeId"]]) for edge in overlay["edges"]}
    assert ("where", "plan") in ends
    assert {node["namespace"].split("/")[0] for node in both["nodes"]} == {"before", "after"}


def test_the_root_is_drawn_as_dot_with_its_phases(explained: Any, tmp_path: Path) -> None:
    text = explained[0].to_dot(tmp_path / "root.dot").read_text()
    assert 'label="step 2"' in text and "shape=diamond" in text and text.count(" -> ") > 20
    if shutil.which("dot"):
        assert "<svg" in explained[0].to_dot(tmp_path / "root.svg").read_text()
        subprocess.run(["dot", "-Tplain", str(tmp_path / "root.dot")], check=True, capture_output=True)
    else:
        with pytest.raises(StateError, match=r"(?s)dot is not installed.*\.dot file"):
            explained[0].to_dot(tmp_path / "root.svg")
    with pytest.raises(InputError, match=r"\.dot or \.svg"):
        explained[0].to_dot(tmp_path / "root.png")


def test_a_report_without_graphs_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="carries no graph"):
        Report(()).to_model_explorer(tmp_path / "graphs.json")
    assert not list(tmp_path.iterdir())


def test_text_names_modules_lines_sizes_and_passes(explained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = explained[0].print_readable()
    assert capsys.readouterr().out == text + "\n"
    assert text.startswith("def root(") and "def block_0(" in text and "def step_1_compute(" in text
    assert "    # blocks.0 · " in text and "toy_world.py:" in text
    assert "plan = plan(" in text and "by adaptive-context [plan]" in text and "# float32[1, " in text


def test_a_pass_is_shown_as_a_diff(explained: Any) -> None:
    report, diff, _ = explained
    removed = [line for line in diff.unified().splitlines() if line.startswith("-    ")]
    assert any("aten.gelu.default" in line for line in removed)
    applied = [remark for remark in report.sections[0].of_kind(RemarkKind.APPLIED) if remark.pass_name == "dead-tail"]
    assert applied and diff.seen[0] == "canonicalize-attention" and diff.seen[-1] == "step-cache"


def test_debugging_writes_a_numbered_file_after_every_pass_that_changed_something(explained: Any) -> None:
    folder = explained[2]
    names = sorted(path.name.split(".", 2)[2] for path in folder.rglob("lightint/*.txt"))
    assert names[0] == "00.captured.txt" and "05.dead-tail.txt" in names and "10.outline-regions.txt" in names
    assert "03.sink-row-repeats.txt" not in names
    captured = next(folder.rglob("*.00.captured.txt")).read_text()
    assert "scaled_dot_product_attention" in captured
