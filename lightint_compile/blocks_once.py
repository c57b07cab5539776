"""Compilations in which Dynamo traces each distinct block of a model once (``trace_blocks_once``).

The graph and the guards are those of a trace of every call. Where they may not be, or where such a trace fails in any
way, the call is traced once more, plainly, and the report says why.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightint_compile.asking import options_asked
from lightint_compile.capture import BlocksOnce, Differs
from lightint_compile.compiled import CompiledGraph
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.garbage import collection_paused
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.torch_frames import opens_frames
from lightint_compile.trace_parts import Frame

log = logging.getLogger(__name__)

RULE = "trace by blocks"
"""The rule of remarks on traces by blocks."""

GIVEN = "block calls not traced"
"""The measurement of how many calls of blocks took what another call became."""


class ByBlocks(threading.local):
    """Says which calls are traced by blocks, and tells the reports of one backend what came of it.

    Args:
        backend: the function that ``torch.compile`` calls.
    """

    def __init__(self, backend: Callable[..., Any]) -> None:
        self._backend = backend
        self._failed: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._way: _Way | None = None
        self._why = ""

    def way_of(self, frame: Frame) -> _Way | None:
        """How a call is traced by blocks; ``None`` where it is not to be."""
        self._way, self._why = None, ""
        try:
            options = options_asked(frame, self._backend)
        except Exception:
            return None  # the backend itself says what is wrong with the options
        if options is not None and options.trace_blocks_once:
            try:
                self._way = self._tried(frame, options)
            except Exception as error:  # whatever a user's module does when it is looked at
                self._why = str(error) if isinstance(error, Differs) else f"{type(error).__name__}: {error}"
        return self._way

    def _tried(self, frame: Frame, options: LightintOptions) -> _Way:
        if options.is_shared:
            raise Differs("several ranks have to trace alike")
        module = _module_of(frame)
        if module in self._failed:
            raise Differs(self._failed[module])
        return _Way(BlocksOnce.of(module), self._left, lambda error: self._fail(module, error))

    def _left(self) -> None:
        self._way = None  # it holds the module

    def _fail(self, module: nn.Module, error: Exception) -> None:
        self._why = f"{type(error).__name__}: {error}".splitlines()[0]
        self._failed[module] = self._why
        log.info("every call of a block is traced: %s", self._why)
        log.debug("the reason was", exc_info=error)

    def compiled(self, graph: CompiledGraph, options: LightintOptions, given: int) -> None:
        """The backend compiled a graph in which ``given`` calls of blocks took what another call became."""
        if not options.trace_blocks_once:
            return
        if given:
            graph.section = graph.section.with_measurements({GIVEN: float(given)})
        why = self._why if opens_frames() else f"torch {torch.__version__} traces every call of a region"
        if self._way is not None and not given:
            why = "none is like an earlier one"
        if why:
            message = f"Dynamo traced every call of a block: {why}"
            remark = Remark(kind=RemarkKind.ANALYSIS, pass_name="backend", rule=RULE, message=message)
            graph.section = graph.section.with_remark(remark)
        if self._way is not None:
            self._way.is_compiled = True


def _module_of(frame: Frame) -> Any:
    """The module whose ``forward`` is called; ``None`` where another function is, or what follows a graph break."""
    module = frame.locals.get("self")
    forward = getattr(type(module), "forward", None)
    return module if getattr(forward, "__code__", None) is frame.code else None


class _Way:
    """A trace by blocks; see :class:`~lightint_compile.torch_frames.Way`.

    Attributes:
        is_compiled: the backend compiled its graph.
    """

    def __init__(self, blocks: BlocksOnce, left: Callable[[], None], give_up: Callable[[Exception], None]) -> None:
        self._blocks, self._left, self._give_up = blocks, left, give_up
        self.is_compiled = False

    @contextmanager
    def around(self) -> Iterator[None]:
        try:
            with collection_paused(), self._blocks.traced(guarded=True):
                yield
        finally:
            self._left()

    def is_final(self, error: Exception) -> bool:
        """What the backend raises of a graph that is the one of a plain trace, it raises of that one too."""
        if self._blocks.done and not self.is_compiled:
            return True
        self._give_up(error)
        return False
