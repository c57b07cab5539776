"""FLOPs of a rewritten program at real sizes: its root graph runs on the meta device, where only shapes are computed.

Nothing is estimated: decisions are answered as a driver would answer them, only the branch that is taken counts, a
region counts as often as it is called, and a kept result counts in the call that computes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.kernels.tiles import Layout
from lightint_compile.passes.distinct_rows import TYPICAL
from lightint_compile.passes.ir.decision_points import (
    DecisionPoint,
    KeepPoint,
    PointSpec,
    PredictedPoint,
    RecallPoint,
    RowsPoint,
    StepPoint,
    VisitPoint,
)
from lightint_compile.passes.ir.flops import WorkKind, flops_at, kind_of
from lightint_compile.passes.ir.node_queries import MEMO
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import module_path_of
from lightint_compile.passes.step_cache.per_element import EACH
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.per_element import choose_each

Work = Counter[tuple[str, str]]
"""FLOPs by (stage, kind)."""

MODULATION = "modulation"
"""The kind of linear layers that make shifts, scales and gates from the timestep: one row a frame would do."""


class ChunkCounter:
    """Counts the calls of one program, chunk by chunk.

    Args:
        stage: what a node of the root is part of; a region counts to the stage of its call.
        modulation: whether a module path is that of a modulation layer.
    """

    def __init__(
        self, program: Program, stage: Callable[[fx.Node], str], modulation: Callable[[str], bool] = lambda path: False
    ) -> None:
        self._program, self._stage, self._modulation = program, stage, modulation
        self._regions: dict[Any, tuple[Counter[str], Any]] = {}
        self._kept: set[str] = set()

    def count(self, inputs: Mapping[str, torch.Tensor], decision: Decision) -> Work:
        """FLOPs of one call.

        Args:
            inputs: tensors on the meta device by the path of the input; parameters are found in the program.
            decision: what is decided for this chunk.
        """
        work: Work = Counter()
        run = _Run(self._program.graph_module, self, decision, lambda node: self._stage(node), work)
        run.run(*_arguments(self._program, inputs))
        return work

    def region(self, name: str, module: fx.GraphModule, args: Sequence[Any]) -> tuple[Counter[str], Any]:
        """FLOPs by kind, and the results, of a region on arguments of these sizes; each is run once."""
        key = (name, tuple(_described(value) for value in pytree.tree_leaves(list(args))))
        if key not in self._regions:
            work: Work = Counter()
            results = _Run(module, self, None, lambda node: "", work).run(*args)
            self._regions[key] = Counter({kind: flops for (_, kind), flops in work.items()}), results
        return self._regions[key]

    def is_kept(self, node: fx.Node) -> bool:
        """Whether an earlier call left the result of this memo; from now on one has."""
        known = node.name in self._kept
        self._kept.add(node.name)
        return known

    def kind(self, node: fx.Node) -> str:
        """What the FLOPs of a node are spent on."""
        kind = kind_of(node)
        if kind is not WorkKind.ATTENTION and self._modulation(module_path_of(node)):
            return MODULATION
        return str(WorkKind.ATTENTION if kind is WorkKind.ATTENTION else WorkKind.LINEAR)


class _Run(fx.Interpreter):
    """One run of a graph on meta tensors."""

    def __init__(
        self,
        module: fx.GraphModule,
        owner: ChunkCounter,
        decision: Decision | None,
        stage: Callable[[fx.Node], str],
        work: Work,
    ) -> None:
        super().__init__(module)
        self._owner, self._decision, self._stage, self._work = owner, decision, stage, work

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module":
            return self._called(n)
        if n.target is torch.ops.higher_order.cond:
            return self._branch(n)
        if n.target is EACH:
            return self._each(n)
        value = super().run_node(n)
        if n.op == "call_function" and kind_of(n) is not None:
            self._work[self._stage(n), self._owner.kind(n)] += self._flops(n, value)
        return value

    def _flops(self, node: fx.Node, value: Any) -> int:
        target = node.target
        own = isinstance(target, torch._ops.OpOverload) and target.namespace == "lightint"
        if own and kind_of(node) is WorkKind.ATTENTION:
            assert isinstance(target, torch._ops.OpOverload)
            return sparse_flops(target, *self.fetch_args_kwargs_from_env(node))
        values = {**self.env, node: value}
        return flops_at(node, lambda argument: tuple(values[argument].shape) if tensor_of(argument) is not None else ())

    def _called(self, node: fx.Node) -> Any:
        args, _ = self.fetch_args_kwargs_from_env(node)
        called = self.fetch_attr(str(node.target))
        if isinstance(called, DecisionPoint):
            return self._answer(called.spec, args)
        work, results = self._owner.region(str(node.target), called, args)
        if not (node.meta.get(MEMO) and self._owner.is_kept(node)):
            for kind, flops in work.items():
                self._work[self._stage(node), kind] += flops
        return results

    def _answer(self, spec: PointSpec, args: tuple[Any, ...]) -> Any:
        if isinstance(spec, RowsPoint):
            rows = zip(args, spec.axes, strict=True)
            return tuple(each for row, axis in rows for each in (_numbers(TYPICAL), _numbers(row.shape[axis])))
        assert self._decision is not None
        if isinstance(spec, StepPoint):
            if not spec.each:
                return spec.step in self._decision.reused_steps
            return [spec.step in own.reused_steps for own in self._decision.elements or (self._decision,)]
        if isinstance(spec, VisitPoint):
            return False, None, None, None, None
        if isinstance(spec, (KeepPoint, PredictedPoint)):
            return None
        if isinstance(spec, RecallPoint):
            return torch.empty(spec.sized(args[1:]), dtype=getattr(torch, spec.dtype), device="meta")
        if not spec.policy.adapt_context:
            return None, None, None, None
        places = self._decision.asked_places
        if spec.policy.asked_every is not None:
            return _numbers(spec.policy.asked_frames if places is None else len(places)), None, None, None
        frames = len(self._decision.context_frames)
        kept = self._decision.kept_frames
        return _numbers(frames), None, _numbers(frames - kept), _numbers(kept)

    def _branch(self, node: fx.Node) -> Any:
        (condition, then, otherwise, operands), _ = self.fetch_args_kwargs_from_env(node)
        return self._side(node, then if condition else otherwise)(*operands)

    def _each(self, node: fx.Node) -> Any:
        (reused, *sides, splits, joins, operands), _ = self.fetch_args_kwargs_from_env(node)
        reuse, compute, reuse_row, compute_row = (self._side(node, side) for side in sides)
        return choose_each(reused, reuse, compute, reuse_row, compute_row, splits, joins, operands)

    def _side(self, node: fx.Node, side: fx.GraphModule) -> Callable[..., Any]:
        stage = self._stage(node)
        return _Run(side, self._owner, self._decision, lambda inner: stage, self._work).run


def _numbers(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.int64, device="meta")


def sparse_flops(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Products of a sparse attention call: the prefix, as many tokens as its lists of blocks hold on average, and
    means of skipped tiles where there are any."""
    names = [argument.name for argument in target._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    layout = Layout.of(given["query_grid"], given["key_grid"], given["tile"], given["prefix"])
    policy = (given["density"], given["protect_frames"], given["neighbours"], given.get("context_density"))
    visual, blocks = layout.key_tokens - layout.prefix, int(layout.key_blocks)
    parts = given.get("skipped_means", 0)
    means = int(layout.finer(parts).key_blocks) if parts else 0
    keys = layout.prefix + visual * int(layout.list_width(*policy)) / blocks + means
    batch, heads, queries, head_dim = given["query"].shape
    return round(4 * batch * heads * queries * head_dim * keys)


def _arguments(program: Program, inputs: Mapping[str, torch.Tensor]) -> list[Any]:
    """Meta tensors and numbers for the placeholders; the sizes of ``inputs`` tell every symbol."""
    sizes: dict[Any, int] = {}
    for node in program.placeholders():
        tensor, given = tensor_of(node), inputs.get(program.input_of(node).path)
        if tensor is not None and given is not None:
            for size, real in zip(tensor.shape, given.shape, strict=True):
                if isinstance(size, torch.SymInt):
                    sizes[size.node.expr] = real
    return [_argument(program, node, inputs, sizes) for node in program.placeholders()]


def _argument(
    program: Program, node: fx.Node, inputs: Mapping[str, torch.Tensor], sizes: Mapping[Any, int]
) -> torch.Tensor | int:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return sizes[value.node.expr] if isinstance(value, torch.SymInt) else int(value)
    given = inputs.get(program.input_of(node).path)
    return torch.empty(tuple(map(int, value.shape)), dtype=value.dtype, device="meta") if given is None else given


def _described(value: Any) -> Any:
    return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, torch.Tensor) else value


def total(work: Work, stage: str = "", kind: str = "") -> int:
    """FLOPs of a stage, of a kind, or of both; of everything by default."""
    return sum(flops for (s, k), flops in work.items() if stage in ("", s) and kind in ("", k))
