"""Faults of lightint: the caller gets the right result, and one remark says what that costs.

While a graph is compiled, a stage that fails is tried again with less (see ``compilation.py``). While it runs, a call
that fails is answered by the graph as Dynamo captured it; when several fail in a row, Inductor compiles that graph.
A call that broke off is made again from the start. That is right where the program writes to none of its inputs, had
not begun to, or overwrites nothing that it reads; in every other case the exception comes through, with the inputs
written to as far as the call came.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightint_compile.errors import OptionError, RankError
from lightint_compile.overwritten_reads import settings
from lightint_compile.passes.ir.input_writes import InputWrites
from lightint_compile.passes.ir.remarks import Remark, RemarkKind

log = logging.getLogger(__name__)

ENOUGH = 3
"""Calls in a row that fail before the program is not tried any more."""


_FULL = (torch.OutOfMemoryError, MemoryError)
"""What says that memory is full."""


def is_answered(error: Exception) -> bool:
    """Whether an exception is answered by a fallback; what says that memory is full or an option is bad is not."""
    return not isinstance(error, (*_FULL, OptionError, RankError))


def told(stage: str, instead: str, error: Exception) -> Remark:
    """The remark on a fault of lightint, which is logged too.

    Args:
        stage: what failed ("lowering").
        instead: what is done in its place and what that costs.
    """
    message = f"{stage} failed and {instead}: {in_one_line(error)}"
    hint = _MORE_MEMORY if _is_for_want_of_memory(error) else how_to_report()
    log.warning("%s; %s", message, hint)
    log.debug("the failure was", exc_info=error)
    return Remark(kind=RemarkKind.FAILURE, pass_name="backend", rule="fallback", message=message, hint=hint)


_MORE_MEMORY = (
    "memory was full: Inductor times its kernels on the device while it compiles, on tensors of the sizes of the call; "
    "leave some of it free until the program is compiled"
)


def _is_for_want_of_memory(error: BaseException) -> bool:
    """Whether what an exception came of says that memory is full."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        if isinstance(found, _FULL):
            return True
        seen.append(found)
        found = getattr(found, "inner_exception", None) or found.__cause__
    return False


def in_one_line(error: Exception) -> str:
    """An exception's type and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__


@functools.cache
def how_to_report() -> str:
    """What to do about a fault of lightint, with the versions it was seen under."""
    versions = f"lightint {_version()}, torch {torch.__version__}, Python {platform.python_version()}"
    return (
        "this is a fault of lightint: please report it with str(lightint_compile.report(compiled)) and the log of "
        f'TORCH_LOGS="+lightint_compile" ({versions}); options={{"strict": True}} raises the exception'
    )


def _version() -> str:
    try:
        return importlib.metadata.version("lightint")
    except importlib.metadata.PackageNotFoundError:
        return "from source"


def _wrote(before: Sequence[int | None], after: Sequence[int | None]) -> bool:
    """Whether a write lies between two readings; where nothing counts them there may be one."""
    return None in before or before != after


class Recovering:
    """A compiled program, and the graph it was made from for calls in which it raises.

    What the graph raises as well is the caller's own error and comes through as it is.

    Args:
        program: the compiled program.
        original: the graph.
        stock: have Inductor compile the graph once the program is not tried any more.
        writes: what the program writes to.

    Attributes:
        failure: what is said of the first call that failed.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        original: Callable[..., Any],
        *,
        stock: bool = False,
        writes: InputWrites | None = None,
    ) -> None:
        self.program, self._original, self._stock = program, original, stock
        self._writes = writes or InputWrites()
        self.failure: Remark | None = None
        self._in_a_row = 0

    def __call__(self, *args: Any) -> Any:
        """Run the program, or where it raises the graph."""
        if self._in_a_row >= ENOUGH:
            return self._original(*args)
        before = self._versions(args)
        try:
            result = self.program(*args)
        except Exception as error:
            if not is_answered(error) or _wrote(before, self._versions(args)):
                raise
            failure = error
        else:
            self._in_a_row = 0
            return result
        return self._instead(args, failure)

    @property
    def fell_back(self) -> bool:
        """Whether the latest call was answered by the graph."""
        return self._in_a_row > 0

    def around(self, program: Callable[..., Any]) -> Recovering:
        """The same for another program made from the graph."""
        return Recovering(program, self._original, stock=self._stock, writes=self._writes)

    def _versions(self, args: Sequence[Any]) -> list[int | None]:
        """How often each input was written to whose contents a second run would miss; ``None`` where nothing counts."""
        kept = () if self._writes.repeatable else self._writes.positions
        return [None if args[place].is_inference() else args[place]._version for place in kept]

    def _instead(self, args: Sequence[Any], failure: Exception) -> Any:
        result = self._original(*args)  # outside of the handler: an error of the caller's does not drag ours along
        self._in_a_row += 1
        if self._stock and self._in_a_row == ENOUGH:
            self._original = torch.compile(self._original, backend="inductor", options=settings())
        if self.failure is None:
            instead = "the graph ran operation by operation, which is slower; so do later calls that fail"
            instead += f", until Inductor compiles it after {ENOUGH} in a row" if self._stock else ""
            self.failure = told("a call", instead, failure)
        return result
