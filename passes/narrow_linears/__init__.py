"""narrow-linears: a product in float32 over a weight that was widened from bfloat16 runs in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.fake_values import hint_of
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.op_families import widened_from
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind, at
from lightint_compile.passes.ir.rewriter import Rewriter

aten = torch.ops.aten

NARROW, WIDE = torch.bfloat16, torch.float32


@dataclass(frozen=True, kw_only=True)
class NarrowLinears(Pass):
    """Undoes casts of weights that make a linear run in float32, where it has many rows.

    The weight has the precision of bfloat16 whatever it is cast to; what is lost is the rounding of the input and of
    the result. A time embedding has few rows and is left in float32, where its precision is wanted.

    Attributes:
        min_rows: rows from which on a linear is changed.
    """

    name: ClassVar[str] = "narrow-linears"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE

    min_rows: int = 256

    def __post_init__(self) -> None:
        self.check_not_negative("min_rows")

    def run(self, program: Program) -> PassResult:
        """See :meth:`~passes.base.Pass.run`."""
        rewriter, remarks = Rewriter(program, self.name), []
        for node in list(program.calls(aten.linear.default)):
            weight = widened_from(argument(node, "weight"))
            if weight is None:
                continue
            miss = self._miss(node, weight)
            if miss is not None:
                remarks.append(miss.remark(self.name, "linear"))
                continue
            remarks.append(self._applied(node))
            _rewrite(rewriter, node, weight)
        return PassResult(any(each.kind is RemarkKind.APPLIED for each in remarks), tuple(remarks))

    def _miss(self, node: fx.Node, weight: fx.Node) -> Miss | None:
        """Why a linear in float32 over a widened weight stays as it is."""
        stored, result = tensor_of(weight), tensor_of(node)
        assert stored is not None and result is not None
        if stored.dtype is not NARROW:
            return Miss(node, f"the weight is stored in {_name(stored.dtype)}, whose range float32 exceeds", "")
        rows = hint_of(result.numel() // result.shape[-1])
        if rows < self.min_rows:
            fix = f"min-rows={rows} if their precision is not needed"
            return Miss(node, f"it has {rows} rows, fewer than {self.min_rows}: float32 costs little there", fix)
        return None

    def _applied(self, node: fx.Node) -> Remark:
        return Remark(
            kind=RemarkKind.APPLIED,
            pass_name=self.name,
            rule="linear",
            message="the weight was widened from bfloat16, and the product runs in bfloat16 instead of float32",
            numerics=self.numerics,
            **at(node),
        )


def _rewrite(rewriter: Rewriter, node: fx.Node, weight: fx.Node) -> None:
    """The input rounded, unless it was widened itself; a bias that has more than 16 bits is added in float32."""
    given, bias = argument(node, "input"), argument(node, "bias")
    short = _narrow(bias)
    with rewriter.at(node, rule="linear"):
        narrow = _narrow(given)
        if narrow is None:
            narrow = rewriter.call(aten._to_copy.default, given, dtype=NARROW)
        product = rewriter.call(aten.linear.default, narrow, weight, short)
        wide = rewriter.call(aten._to_copy.default, product, dtype=WIDE)
        if bias is not None and short is None:
            wide = rewriter.call(aten.add.Tensor, wide, bias)
    rewriter.replace(node, wide)


def _narrow(value: Any) -> fx.Node | None:
    """What a value was widened from, in bfloat16."""
    source = widened_from(value)
    tensor = tensor_of(source)
    return source if tensor is not None and tensor.dtype is NARROW else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
