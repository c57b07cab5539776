"""What calls of an accelerated module run: its compiled code, and whatever stands in front of it.

Opened functions are held to their promise here. The first trace is of the whole call or of nothing: where it fails,
nothing has run yet, so the function that it failed in is closed and the call traced again. Where something else ends
the graph, the call is compiled in parts as ``torch.compile`` does, and functions that break are closed after it.
No call is made again of which a part has run: it may have written to what the module keeps.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import graph_break_reasons

from lightint_compile.acceleration.call_progress import has_begun, is_one_frame, may_be_the_callers
from lightint_compile.acceleration.opened import Opened
from lightint_compile.acceleration.settling import Settling
from lightint_compile.acceleration.variants import MANY_VARIANTS
from lightint_compile.capture.memos import Memos
from lightint_compile.capture.tracing_help import allow_help, helped
from lightint_compile.errors import told, user_lines
from lightint_compile.integrations.loop import Around
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.garbage import collection_paused
from lightint_compile.reporting.section import Section
from lightint_compile.torch_marks import calls_are_eager, compile_in_place, own_call

log = logging.getLogger(__name__)


class CompiledCall:
    """Calls of one module, compiled in place: the module stays the object that it is.

    Attributes:
        module: the module.
        opened: the functions that are traced for its sake.
        memos: the dictionaries of Python modules that its programs go without, and what looks like one.
        failure: what the report says of a module that Dynamo fails on; ``None`` for any other.
    """

    def __init__(
        self, module: torch.nn.Module, options: LightintOptions, dynamic: bool | None, opened: Opened, memos: Memos
    ) -> None:
        self.module, self.opened, self.memos = module, opened, memos
        self._own = own_call(module)
        compiled = functools.partial(
            torch.compile, self._own, backend="lightint", dynamic=dynamic, options=options.to_dict()
        )
        self._whole: Callable[..., Any] | None = compiled(fullgraph=True) if opened else None
        self._parts: Callable[..., Any] = compiled()
        self._eager: Callable[..., Any] = torch.compiler.disable(self._own)
        self._settling = Settling(module)
        self._strict = options.strict
        self.failure: Section | None = None
        self._around: Around | None = None
        self._undo = (compile_in_place(module, self), allow_help(), opened.undo)

    def intercept(self, around: Around) -> None:
        """Let every call of the module go through ``around``."""
        self._around = around

    def undo(self) -> None:
        """Leave the module and the functions that were opened for it as they were."""
        for undo in self._undo:
            undo()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the module; inside of a model that is compiled as a whole it is a part of that.

        Under ``torch.compiler.set_stance("force_eager")`` it is the module's own.
        """
        if torch.compiler.is_compiling() or calls_are_eager():
            return self._own(*args, **kwargs)
        if self._around is None:
            return self._run(*args, **kwargs)
        return self._around(lambda: self._run(*args, **kwargs), kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._settling.is_due(args, kwargs):
            return self._eager(*args, **kwargs)
        with MANY_VARIANTS.on(), helped(self.memos), collection_paused():
            return self._compiled(args, kwargs)

    def _compiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        while self._whole is not None and is_one_frame(self.module):
            try:
                return self._whole(*args, **kwargs)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                if isinstance(error, BackendCompilerFailed):
                    raise
                failure = error
            if may_be_the_callers(failure):
                result = self._eager(*args, **kwargs)  # raises what is the caller's own fault, which closes nothing
                self._close_for(failure)
                return result
            self._close_for(failure)
        return self._in_parts(args, kwargs)

    def _close_for(self, error: Exception) -> None:
        """Close the function in which the trace of the whole call failed, or give that trace up."""
        if not self.opened.close_those_at(user_lines(error), told(error)):
            log.info("the call is compiled in parts: %s", told(error))
            self._whole = None

    def _in_parts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = len(graph_break_reasons)
        result = self._parts_or_eager(args, kwargs)
        for reason in graph_break_reasons[before:] if self.opened else ():
            places = [(frame.filename, frame.lineno or 0) for frame in reason.user_stack]
            self.opened.close_those_at(places, _first_line(reason.reason))
        return result

    def _parts_or_eager(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that Dynamo itself fails in is made eagerly, where nothing of it has run; so are later ones."""
        if self.failure is not None:
            return self._eager(*args, **kwargs)
        try:
            return self._parts(*args, **kwargs)
        except TorchDynamoException as error:
            if isinstance(error, BackendCompilerFailed) or self._strict:
                raise
            if not is_one_frame(self.module) or has_begun(error):
                error.add_note("A part of the call had run, so lightint did not make it again without torch.compile.")
                raise
            result = self._eager(*args, **kwargs)  # what is the caller's own fault is raised by this
            why = f"Dynamo cannot trace it, and it runs eagerly until undo(): {told(error)}"
            log.warning("%s: %s", type(self.module).__name__, why)
            self.failure = Section(type(self.module).__name__, untouched=why)
            return result


def _first_line(text: Any) -> str:
    return next(iter(str(text).strip().splitlines()), "a graph break")
