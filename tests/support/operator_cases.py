"""PyTorch's own database of operators, each sample run through the passes and compared with eager.

``torch.testing`` ships it (``op_db``), with sample inputs of every operator. A graph of one operator leaves little to
rewrite; what is tried is the way through capture, the normal form, every pass of ``exact`` and the driver, which real
graphs take with all of these operators in them. So a graph runs rewritten here even where that does not pay.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightint_compile import compilation
from lightint_compile.backend import lightint
from lightint_compile.compiled import CompiledGraph
from lightint_compile.errors import CaptureError

DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)
"""The first that an operator takes is what its samples are made of."""
UNWRITTEN = ("empty", "new_empty", "resize_")
"""Names that begin like this return memory that nobody wrote: shapes are compared, values are not."""
STRICT = {"preset": "exact", "delegate": "eager", "strict": True}


class Kind(StrEnum):
    """What came of one sample."""

    RIGHT = "right"
    REFUSED = "refused with a reason"
    UNCAPTURED = "not captured by Dynamo"
    STOCK_TOO = "Dynamo or Inductor fails too"
    WRONG = "wrong"
    RAISED = "raised"

    @property
    def is_fault(self) -> bool:
        return self in (Kind.WRONG, Kind.RAISED)


@dataclass(frozen=True)
class Outcome:
    """One sample's result; ``detail`` is the refusal, the difference or the error."""

    operator: str
    sample: int
    dynamic: bool
    kind: Kind
    detail: str = ""

    def __str__(self) -> str:
        sizes = "dynamic" if self.dynamic else "static"
        return f"{self.operator} sample {self.sample} {sizes}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Case:
    """One operator on one of its sample inputs."""

    operator: str
    index: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def fresh(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, copied: an operator may write into them."""
        return pytree.tree_map(_copied, (self.arguments, self.keywords))

    @property
    def is_unwritten(self) -> bool:
        return self.operator.startswith(UNWRITTEN)


@dataclass(frozen=True)
class Run:
    """What one call returned and left in its arguments."""

    result: Any
    arguments: Any

    @classmethod
    def of(cls, function: Callable[..., Any], case: Case) -> Run:
        arguments, keywords = case.fresh()
        torch.manual_seed(0)
        return cls(function(*arguments, **keywords), (arguments, keywords))

    def sharing(self) -> set[tuple[int, int]]:
        """Pairs of tensors, results first, that share memory; pairs of arguments left out."""
        results, arguments = _tensors(self.result), _tensors(self.arguments)
        storages = [_storage(tensor) for tensor in (*results, *arguments)]
        pairs = itertools.combinations(range(len(storages)), 2)
        return {(a, b) for a, b in pairs if a < len(results) and storages[a] and storages[a] == storages[b]}

    def overwrite(self) -> None:
        """Write into every result, as a caller may."""
        for tensor in _tensors(self.result):
            with contextlib.suppress(RuntimeError, NotImplementedError):  # expanded or sparse results take no writes
                tensor.fill_(1)


def operators() -> list[Any]:
    """The database, in its order; entries that no device here supports are left out."""
    allowed = torch.backends.__allow_nonbracketed_mutation_flag
    from torch.testing._internal.common_methods_invocations import op_db

    # the import forbids torch.backends.cudnn.enabled = ... to the whole process
    torch.backends.__allow_nonbracketed_mutation_flag = allowed
    return [operator for operator in op_db if _dtype(operator) is not None]


def cases(operator: Any, samples: int) -> Iterator[Case]:
    """The first samples of one operator that eager takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        inputs = operator.sample_inputs("cpu", _dtype(operator))
        for index, sample in enumerate(itertools.islice(inputs, samples)):
            arguments = (sample.input, *sample.args)
            yield Case(operator.full_name, index, _function(operator.get_op()), arguments, dict(sample.kwargs))


def outcome_of(case: Case, *, dynamic: bool, options: dict[str, Any] = STRICT) -> Outcome | None:
    """Run one sample; ``None`` for one that eager itself refuses."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            expected = Run.of(case.function, case)
        except Exception:
            return None
        kind, detail = _judged(case, expected, dynamic, options)
        return Outcome(case.operator, case.index, dynamic, kind, detail)


def _judged(case: Case, expected: Run, dynamic: bool, options: dict[str, Any]) -> tuple[Kind, str]:
    torch._dynamo.reset()
    compiled, graphs = _compiled(case.function, dynamic, options)
    try:
        difference = _difference(compiled, case, expected)
    except Exception as error:
        cause = getattr(error, "inner_exception", error)
        detail = f"{type(cause).__name__}: {' '.join(str(cause).split())[:600]}"
        if isinstance(cause, CaptureError) and options.get("strict"):
            kind, found = _judged(case, expected, dynamic, {**options, "strict": False})
            return (kind, found) if kind.is_fault else (Kind.REFUSED, detail)
        return (Kind.STOCK_TOO if _stock_fails(case, expected, dynamic, "eager", "inductor") else Kind.RAISED), detail
    if difference:
        return (Kind.STOCK_TOO if _stock_fails(case, expected, dynamic, "eager") else Kind.WRONG), difference
    if not graphs:
        return Kind.UNCAPTURED, ""
    reasons = "; ".join(graph.section.untouched for graph in graphs if graph.section.untouched)
    return (Kind.REFUSED, reasons) if reasons else (Kind.RIGHT, "")


def _compiled(
    function: Callable[..., Any], dynamic: bool, options: dict[str, Any]
) -> tuple[Callable[..., Any], list[CompiledGraph]]:
    graphs: list[CompiledGraph] = []

    def rewritten(graph_module: torch.fx.GraphModule, inputs: Sequence[Any]) -> CompiledGraph:
        with mock.patch.object(compilation, "_worth_it", lambda _: True):
            graph = lightint(graph_module, inputs, options=options)
        graphs.append(graph)
        return graph

    return torch.compile(function, backend=rewritten, dynamic=dynamic), graphs


def _stock_fails(case: Case, expected: Run, dynamic: bool, *backends: str) -> bool:
    """Whether one of torch's own backends raises or differs as well; the cheapest is asked first."""
    for name in backends:
        torch._dynamo.reset()
        try:
            if _difference(torch.compile(case.function, backend=name, dynamic=dynamic), case, expected):
                return True
        except Exception:
            return True
    return False


def _difference(compiled: Callable[..., Any], case: Case, expected: Run) -> str:
    """How two calls in a row differ from eager's; the first call's results are written into before the second."""
    repeats = _same(Run.of(case.function, case), expected, case) == ""
    for name in ("first", "second"):
        actual = Run.of(compiled, case)
        if repeats and (message := _same(actual, expected, case)):
            return f"{name} call: {message}"
        if actual.sharing() != expected.sharing():
            return f"{name} call: tensors that share memory: {actual.sharing()}, in eager {expected.sharing()}"
        actual.overwrite()
    return ""


def _same(actual: Run, expected: Run, case: Case) -> str:
    """Why two calls are not the same; empty when they are."""
    pairs = [(actual.result, expected.result), (actual.arguments, expected.arguments)]
    for got, wanted in pairs:
        left, right = pytree.tree_leaves(got), pytree.tree_leaves(wanted)
        if len(left) != len(right):
            return f"{len(left)} values instead of {len(right)}"
        for a, b in zip(left, right, strict=True):
            if message := _same_value(a, b, case.is_unwritten):
                return message
    return ""


def _same_value(actual: Any, expected: Any, unwritten: bool) -> str:
    if not isinstance(expected, Tensor):
        return "" if type(actual) is type(expected) and _equal(actual, expected) else f"{actual!r}, not {expected!r}"
    if not isinstance(actual, Tensor) or actual.dtype != expected.dtype or actual.shape != expected.shape:
        return f"{_described(actual)} instead of {_described(expected)}"
    if unwritten:
        return ""
    try:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return ""


def _equal(actual: Any, expected: Any) -> bool:
    return bool(actual == expected) or (actual != actual and expected != expected)  # NaN is NaN


def _described(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _function(operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        return operator(*arguments, **keywords)

    return call


def _dtype(operator: Any) -> torch.dtype | None:
    supported = operator.supported_dtypes("cpu")
    return next((dtype for dtype in DTYPES if dtype in supported), None)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    """Address of a tensor's memory; 0 where it has none."""
    if tensor.layout is not torch.strided:
        return 0
    return tensor.untyped_storage().data_ptr()


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
