"""split-linears: a product in float32 over a weight that was widened from bfloat16 runs on tensor cores, in parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.fx as fx

from lightint_compile.kernels.cost import kind_of
from lightint_compile.kernels.mixed_linear import NARROW, WIDE, obstacle
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.fake_values import hint_of
from lightint_compile.passes.ir.flops import flops_of
from lightint_compile.passes.ir.node_queries import MEMO
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.op_families import widened_from
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind, at
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.torch_compat import tf32_is_allowed

aten = torch.ops.aten
RULE = "linear"


@dataclass(frozen=True, kw_only=True)
class SplitLinears(Pass):
    """Multiplies the bfloat16 parts of a float32 input with a weight that has the precision of bfloat16 anyway.

    The weight is taken as it is stored. The parts make up the whole input, and the sums are at least as accurate as
    those of a product in float32; see :mod:`lightint_compile.kernels.mixed_linear`.

    Attributes:
        min_rows: rows from which on a linear is changed; with fewer, reading the weights is what takes the time.
        on_cpu: change linears on a CPU too, which widens the weight again and gains nothing.
    """

    name: ClassVar[str] = "split-linears"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    min_rows: int = 256
    on_cpu: bool = False

    def __post_init__(self) -> None:
        self.check_not_negative("min_rows")

    def run(self, program: Program) -> PassResult:
        """See :meth:`~passes.base.Pass.run`."""
        rewriter, remarks = Rewriter(program, self.name), []
        for node in list(program.calls(aten.linear.default)):
            weight = widened_from(argument(node, "weight"))
            if weight is None or node.meta.get(MEMO) or self._says_nothing(node):
                continue
            miss = self._miss(node, weight)
            if miss is not None:
                remarks.append(miss.remark(self.name, RULE))
                continue
            remarks.append(self._applied(node))
            _rewrite(rewriter, node, weight)
        return PassResult(any(each.kind is RemarkKind.APPLIED for each in remarks), tuple(remarks))

    def _says_nothing(self, node: fx.Node) -> bool:
        """Where there are no tensor cores to use, nothing is missed."""
        return kind_of(node.meta["val"].device) != "cuda" and not self.on_cpu

    def _miss(self, node: fx.Node, weight: fx.Node) -> Miss | None:
        """Why a linear in float32 over a widened weight stays as it is."""
        stored, result, bias = tensor_of(weight), tensor_of(node), tensor_of(argument(node, "bias"))
        assert stored is not None and result is not None
        if stored.dtype is not NARROW:
            return Miss(node, f"the weight is stored in {_name(stored.dtype)}, which takes several parts itself")
        if stored.dim() != 2:
            return Miss(node, "the weight is a vector")
        if bias is not None and not _is_for_each_feature(bias, stored):
            return Miss(node, "the bias is not one number in float32 for each feature")
        rows = hint_of(math.prod(result.shape[:-1]))
        if rows < self.min_rows:
            told = f"it has {rows} rows, fewer than {self.min_rows}: reading the weights takes the time"
            return Miss(node, told, f"min-rows={rows}" if rows else "")
        if kind_of(result.device) != "cuda":
            return None
        if tf32_is_allowed():
            told = "TF32 is allowed, which is faster and less exact"
            return Miss(node, told, "torch.backends.cuda.matmul.allow_tf32 = False keeps all bits")
        reason = obstacle(result.device)
        return Miss(node, reason) if reason else None

    def _applied(self, node: fx.Node) -> Remark:
        return Remark(
            kind=RemarkKind.APPLIED,
            pass_name=self.name,
            rule=RULE,
            message="the weight was widened from bfloat16: the product runs on tensor cores, the input in exact parts",
            flops_before=flops_of(node),
            flops_after=flops_of(node),
            numerics=self.numerics,
            **at(node),
        )


def _rewrite(rewriter: Rewriter, node: fx.Node, weight: fx.Node) -> None:
    operands = argument(node, "input"), weight, argument(node, "bias")
    with rewriter.at(node, rule=RULE):
        product = rewriter.call(torch.ops.lightint.mixed_linear.default, *operands)
    rewriter.replace(node, product)


def _is_for_each_feature(bias: torch.Tensor, weight: torch.Tensor) -> bool:
    """A linear also adds a bias that is broadcast."""
    return bias.dtype is WIDE and tuple(bias.shape) == (weight.shape[0],)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
