"""The nodes of an 8-bit product: operands rounded by rows, the product with both scales, and the shape it had.

Rounding a row ``x`` of an operand: ``scale = max(max |x|, LEAST) / 448`` and ``float8_e4m3fn(x / scale)``, in float32.
A row of zeros has a scale that is not zero, so no row becomes NaN that was not infinite or NaN before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.fx as fx

from lightint_compile.passes.fp8_linear.blocks import Block
from lightint_compile.passes.ir.node_queries import MEMO, MEMO_PLACE, WEIGHTS
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.rewriter import Rewriter

aten = torch.ops.aten

EIGHT_BITS = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of :data:`EIGHT_BITS`."""

IN_ROWS = torch.contiguous_format
"""How 8-bit numbers are stored, whatever the order of the operand: tensor cores of Hopper read rows."""

LEAST = LARGEST * 2.0**-126
"""The largest value that a row is taken to have at least: its scale is the smallest normal number of float32."""


class Rounded(NamedTuple):
    """An operand in 8 bits: the numbers, and the scale of each row, with one column."""

    values: fx.Node
    scales: fx.Node


class Emitter:
    """Rewrites linears; an input that several linears of a block read is rounded once, and so is every weight."""

    def __init__(self, program: Program, pass_name: str, fast_accumulation: bool, keep_weights: bool) -> None:
        self._rewriter = Rewriter(program, pass_name)
        self._fast, self._keep = fast_accumulation, keep_weights
        self._inputs: dict[tuple[fx.Node, int], Rounded] = {}
        self._weights: dict[fx.Node, Rounded] = {}

    def rewrite(self, node: fx.Node, block: Block) -> None:
        """Replace a linear that fits by its product in 8 bits."""
        given, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
        with self._rewriter.at(node, rule="linear"):
            if weight not in self._weights:
                self._weights[weight] = self._rounded_weight(weight, block)
            if (given, block.region) not in self._inputs:
                self._inputs[given, block.region] = self._rows(given, *self._rounded(given))
            left, right = self._inputs[given, block.region], self._weights[weight]
            multiply = self._on_cpu if node.meta["val"].device.type == "cpu" else self._on_cuda
            product = self._as_before(multiply(left, right, bias, node.meta["val"].dtype), given)
        self._rewriter.replace(node, product)

    def _rounded(self, value: fx.Node) -> Rounded:
        call = self._rewriter.call
        wide = call(aten._to_copy.default, value, dtype=torch.float32)
        largest = call(aten.amax.default, call(aten.abs.default, wide), [-1], True)
        scales = call(aten.div.Tensor, call(aten.clamp_min.default, largest, LEAST), LARGEST)
        values = call(aten.div.Tensor, wide, scales)
        return Rounded(call(aten._to_copy.default, values, dtype=EIGHT_BITS, memory_format=IN_ROWS), scales)

    def _rounded_weight(self, weight: fx.Node, block: Block) -> Rounded:
        """The weight in 8 bits, and the mark that it is kept until its content changes."""
        rounded = self._rounded(weight)
        if self._keep:
            made = [rounded.values, rounded.scales]
            while made:
                node = made.pop()
                if node is not weight and MEMO not in node.meta:
                    node.meta |= {MEMO: WEIGHTS, MEMO_PLACE: block.number}
                    made.extend(node.all_input_nodes)
        return rounded

    def _rows(self, given: fx.Node, values: fx.Node, scales: fx.Node) -> Rounded:
        features = given.meta["val"].shape[-1]
        if given.meta["val"].dim() == 2:
            return Rounded(values, scales)
        call = self._rewriter.call
        return Rounded(call(aten.reshape.default, values, [-1, features]), call(aten.reshape.default, scales, [-1, 1]))

    def _on_cuda(self, left: Rounded, right: Rounded, bias: fx.Node | None, dtype: torch.dtype) -> fx.Node:
        """The product by rows, which CUDA gives in bfloat16; a bias in bfloat16 is added before it is rounded."""
        call = self._rewriter.call
        own = bias if _is_narrow(bias) else None
        columns = [call(aten.t.default, each) for each in right]
        product = call(
            aten._scaled_mm.default,
            *(left.values, columns[0], left.scales, columns[1], own),
            out_dtype=torch.bfloat16,
            use_fast_accum=self._fast,
        )
        if bias is not own:
            product = call(aten.add.Tensor, call(aten._to_copy.default, product, dtype=torch.float32), bias)
        return product if dtype is torch.bfloat16 and bias is own else call(aten._to_copy.default, product, dtype=dtype)

    def _on_cpu(self, left: Rounded, right: Rounded, bias: fx.Node | None, dtype: torch.dtype) -> fx.Node:
        """The same product of the same 8-bit numbers, added up in float32."""
        call = self._rewriter.call
        wide = [call(aten._to_copy.default, each.values, dtype=torch.float32) for each in (left, right)]
        product = call(aten.linear.default, *wide)
        product = call(aten.mul.Tensor, product, left.scales)
        product = call(aten.mul.Tensor, product, call(aten.t.default, right.scales))
        if bias is not None:
            product = call(aten.add.Tensor, product, bias)
        return call(aten._to_copy.default, product, dtype=dtype)

    def _as_before(self, product: fx.Node, given: fx.Node) -> fx.Node:
        """The rows of a product in the shape that the input's had."""
        shape = given.meta["val"].shape
        if len(shape) == 2:
            return product
        call = self._rewriter.call
        sizes = [
            size if isinstance(size, int) else call(aten.sym_size.int, given, dim)
            for dim, size in enumerate(shape[:-1])
        ]
        return call(aten.reshape.default, product, [*sizes, product.meta["val"].shape[-1]])


def _is_narrow(bias: fx.Node | None) -> bool:
    tensor = tensor_of(bias)
    return tensor is not None and tensor.dtype is torch.bfloat16
