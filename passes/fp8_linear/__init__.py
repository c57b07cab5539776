"""fp8-linear: products of the interior blocks' linears in 8-bit floating point, with one scale a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.fx as fx

from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.fp8_linear.blocks import Block, blocks_of
from lightint_compile.passes.fp8_linear.emit import Emitter
from lightint_compile.passes.fp8_linear.fitting import LINEAR, Device, misfit, objection_of_device
from lightint_compile.passes.ir.flops import flops_of
from lightint_compile.passes.ir.input_writes import written_buffers
from lightint_compile.passes.ir.node_queries import MEMO
from lightint_compile.passes.ir.program import InputKind, Program
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind, at

RULE = "linear"


@dataclass(frozen=True, kw_only=True)
class Fp8Linear(Pass):
    """Rounds input and weight of a linear to float8_e4m3fn, each row by a scale of its own, and multiplies in 8 bits.

    Changed are linears of 16 bits over parameters, in all blocks that repeat but the first and the last ones.
    Attention's own products stay. Scales of inputs are found in every call; weights are rounded once, and again when
    their content has changed.

    Attributes:
        min_rows: rows from which on a linear is changed; with fewer, reading the weights is what takes the time.
        keep_first: blocks at the front of each repeated list whose linears stay.
        keep_last: the same at its end.
        fast_accumulation: let tensor cores add up with fewer bits than float32 has.
        keep_weights: keep the rounded weights between calls; otherwise every call rounds them.
        on_cpu: change linears on a CPU too, which computes the same products in float32 and gains nothing.
    """

    name: ClassVar[str] = "fp8-linear"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE

    min_rows: int = 256
    keep_first: int = 1
    keep_last: int = 1
    fast_accumulation: bool = False
    keep_weights: bool = True
    on_cpu: bool = False

    def __post_init__(self) -> None:
        self.check_not_negative("min_rows", "keep_first", "keep_last")

    def run(self, program: Program) -> PassResult:
        """See :meth:`~passes.base.Pass.run`."""
        steady = _parameters(program)
        blocks = blocks_of(program)
        emitter = Emitter(program, self.name, self.fast_accumulation, self.keep_weights)
        remarks = []
        for node in list(program.calls(LINEAR)):
            if node.meta.get(MEMO):
                continue  # its result is kept between calls
            block = blocks.get(node)
            miss = misfit(node, steady, self.min_rows) or self._kept(node, block)
            if miss is not None:
                remarks.append(miss.remark(self.name, RULE))
                continue
            assert block is not None
            remarks.append(self._applied(node))
            emitter.rewrite(node, block)
        return PassResult(any(each.kind is RemarkKind.APPLIED for each in remarks), tuple(remarks))

    def _kept(self, node: fx.Node, block: Block | None) -> Miss | None:
        """Why a linear that could be changed stays: where it is in the model, and what its device is."""
        if block is None:
            return Miss(node, "it is in no block that repeats: embeddings and final layers keep 16 bits")
        if block.count <= self.keep_first + self.keep_last:
            told = f"there are {block.count} blocks, and the first {self.keep_first} and last {self.keep_last} stay"
            return Miss(node, told, "keep-first=0,keep-last=0 changes every block")
        if block.index < self.keep_first:
            return Miss(node, f"it is in the first {self.keep_first} of {block.count} blocks")
        if block.index >= block.count - self.keep_last:
            return Miss(node, f"it is in the last {self.keep_last} of {block.count} blocks")
        reason, hint = objection_of_device(Device.of(node), self.on_cpu)
        return Miss(node, reason, hint) if reason else None

    def _applied(self, node: fx.Node) -> Remark:
        return Remark(
            kind=RemarkKind.APPLIED,
            pass_name=self.name,
            rule=RULE,
            message="the product runs in float8_e4m3fn, with one scale for each row of the input and of the weight",
            flops_before=flops_of(node),
            flops_after=flops_of(node),
            numerics=self.numerics,
            **at(node),
        )


def _parameters(program: Program) -> set[fx.Node]:
    """Parameters and buffers that the program does not write to."""
    written = written_buffers(program.graph)
    pairs = zip(program.inputs, program.placeholders(), strict=True)
    fixed = (InputKind.PARAMETER, InputKind.BUFFER)
    return {node for entry, node in pairs if entry.kind in fixed and node not in written}
