"""What a graph takes on a named device, before and after, by the rates that are shipped for it.

Attention is predicted by the cost model that decides between dense and sparse; other products run at the rate of dense
attention, in float32 at one of its own. Elementwise work is left out: no rate of it is shipped.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.fx as fx

from lightint_compile.kernels import cost
from lightint_compile.passes.ir.flops import WorkKind, attention_sizes, flops_of, kind_of
from lightint_compile.reporting.called_graphs import called_graphs
from lightint_compile.reporting.section import Section
from lightint_compile.torch_compat import tf32_is_allowed

if TYPE_CHECKING:
    from lightint_compile.reporting.report import Report

OTHER = "other products"


def predicted(report: Report, device: str) -> Report:
    """The report with milliseconds of a call on ``device``, before and after, in every section with a graph.

    Raises:
        OptionError: no rates are shipped for the device.
    """
    with cost.assuming(device) as name:
        sections = tuple(_section(section, name) for section in report.sections)
    return dataclasses.replace(report, sections=sections)


def _section(section: Section, device: str) -> Section:
    graphs = section.graphs
    if graphs is None:
        return section
    rates = cost.rates_of(torch.device("cuda"))
    before, after = (_milliseconds(graph, rates) for graph in (graphs.before, graphs.after))
    told = {
        f"{device} {kind} ms {when}": round(spent[kind], 4)
        for kind in (str(WorkKind.ATTENTION), OTHER)
        for when, spent in (("before", before), ("after", after))
    }
    return dataclasses.replace(section, predicted=told)


def _milliseconds(module: fx.GraphModule, rates: cost.Rates) -> dict[str, float]:
    """By kind; both sides of a branch count, as everywhere in a report."""
    spent = {str(WorkKind.ATTENTION): 0.0, OTHER: 0.0}
    inner: dict[int, dict[str, float]] = {}
    for node in module.graph.nodes:
        spent[_kind(node)] += _one(node, rates)
        for called in called_graphs(module, node):
            if id(called) not in inner:
                inner[id(called)] = _milliseconds(called, rates)
            for kind, own in inner[id(called)].items():
                spent[kind] += own
    return spent


def _kind(node: fx.Node) -> str:
    return str(WorkKind.ATTENTION) if kind_of(node) is WorkKind.ATTENTION else OTHER


def _one(node: fx.Node, rates: cost.Rates) -> float:
    sizes = attention_sizes(node)
    if sizes is None:
        return flops_of(node) / _rate(node, rates) / 1e9
    shape = (sizes.rows, sizes.head_dim, sizes.query_tokens, sizes.key_tokens)
    dense = cost.dense_time(rates, *shape)
    return (dense if sizes.density >= 1 else min(dense, cost.sparse_time(rates, *shape, sizes.density))) / 1e3


def _rate(node: fx.Node, rates: cost.Rates) -> float:
    """TFLOP/s of a product."""
    if node.target is torch.ops.lightint.mixed_linear.default:
        return cost.PARTS
    made = node.meta.get("val")
    if not isinstance(made, torch.Tensor) or made.dtype is not torch.float32:
        return rates.dense_rate
    return cost.TF32 if tf32_is_allowed() else cost.FLOAT32
