"""Which compiled module or function a graph belongs to, and why Dynamo ended it there, read from the stack.

Dynamo hands over one graph at a time and says nothing of the call it belongs to. While it compiles, the call is under
way in the same thread: its frames are on the stack, the function that ``torch.compile`` made among them.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizedModule, innermost_fn

_TORCH = os.path.dirname(torch.__file__) + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_RESUMED = "torch_dynamo_resume_in"
_MADE_BY_DYNAMO = ("__compiled_fn", "__resume_at", _RESUMED)


@dataclass(frozen=True)
class Break:
    """Why Dynamo ended a graph before its function was done.

    Attributes:
        reason: its first line, for a person.
        source: the user's ``file:line``, empty when unknown.
        fix: what Dynamo advises, empty when nothing.
        disabled: the function behind ``torch.compiler.disable`` that ended it; empty for any other reason.
    """

    reason: str
    source: str = ""
    fix: str = ""
    disabled: str = ""


@dataclass(frozen=True)
class Call:
    """The call that is under way while a graph is compiled.

    Attributes:
        compiled: the module or function that ``torch.compile`` was given, ``None`` outside of such a call.
        root: the outermost module that is being called; ``compiled`` where there is none.
        given_up: functions between the two that run outside of any graph, as ``name (file:line)``.
    """

    compiled: Any = None
    root: Any = None
    given_up: tuple[str, ...] = ()


def subject_of(compiled: Any) -> Any:
    """The module or function that ``torch.compile`` was given, ``None`` where no weak reference can hold it.

    A module's method counts as the module, another object's as the function.
    """
    if isinstance(compiled, OptimizedModule):
        return compiled._orig_mod
    function = compiled if isinstance(compiled, torch.nn.Module) else innermost_fn(compiled)
    owner = getattr(function, "__self__", None)
    subject = owner if isinstance(owner, torch.nn.Module) else getattr(function, "__func__", function)
    return subject if type(subject).__weakrefoffset__ and isinstance(subject, Hashable) else None


def call_under_way() -> Call:
    """The call in whose middle Dynamo compiles a graph in this thread."""
    compiled = root = None
    given_up: list[str] = []
    for frame in _frames():
        name = frame.f_code.co_name
        if frame.f_code.co_filename.startswith(_TORCH):
            if name == "compile_wrapper" and "fn" in frame.f_locals:
                compiled = subject_of(frame.f_locals["fn"])
            elif name == "_call_impl":
                module = frame.f_locals.get("self")
                root = module._orig_mod if isinstance(module, OptimizedModule) else module
        elif compiled is None and _runs_eagerly(frame):
            given_up.append(f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})")
    if compiled is None:
        return Call()
    return Call(compiled, root if isinstance(root, torch.nn.Module) else compiled, tuple(reversed(given_up)))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _runs_eagerly(frame: FrameType) -> bool:
    """A frame of the user's own, with the code as it was written: Dynamo's own calls graphs by name."""
    code = frame.f_code
    library = code.co_filename.startswith(_STDLIB) and "site-packages" not in code.co_filename
    if library or code.co_filename.startswith((_OURS, "<")):
        return False
    return not any(name.startswith(_MADE_BY_DYNAMO) for name in (code.co_name, *code.co_names))


def break_of_graph() -> Break | None:
    """Why the graph that is being compiled ends before its function does; ``None`` where it does not, or is unknown."""
    reason = getattr(_output_under_way(), "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return None
    _ended.append(reason)
    return _read(reason)


_ended: deque[Any] = deque(maxlen=64)
"""The latest breaks that ended a graph, and were told with it."""


def breaks_before() -> list[Break]:
    """Breaks in front of the graph that ended none: nothing came before them in the function being compiled."""
    from torch._dynamo.utils import graph_break_reasons

    output = _output_under_way()
    if output is None or not output.root_tx.f_code.co_name.startswith(_RESUMED):
        return []
    code = output.root_tx.f_code
    own = [reason for reason in graph_break_reasons if _lies_in(reason, code)]
    return [_read(reason) for reason in own[-1:] if not any(reason is known for known in _ended)]


def _lies_in(reason: Any, code: CodeType) -> bool:
    """Whether a break was in this function; the rest of a function keeps its lines."""
    lines = [line for *_, line in code.co_lines() if line is not None]
    frames = reason.user_stack
    return bool(frames) and frames[0].filename == code.co_filename and frames[0].lineno in lines


def _read(reason: Any) -> Break:
    frames = [frame for frame in reason.user_stack if not frame.filename.startswith(_TORCH)]
    return _readable(str(reason.reason), f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "")


_DISABLED = re.compile(r"<function (?P<name>\S+) at ")


def _readable(text: str, source: str) -> Break:
    """Dynamo's reason: a title, then ``Explanation:``, ``Hint:`` and ``Developer debug context:``, one a line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    hints = [line.removeprefix("Hint:").strip() for line in lines if line.startswith("Hint:")]
    why = next((line.removeprefix("Explanation:").strip() for line in lines if line.startswith("Explanation:")), "")
    title = lines[0] if lines else "unknown"
    disabled = _DISABLED.search(text) if "torch.compiler.disable" in text else None
    if disabled is not None:
        name = disabled["name"]
        return Break(f"{name} is behind torch.compiler.disable", source, hints[0] if hints else "", name)
    return Break(f"{title}: {why}" if why else title, source, hints[0] if hints else "")


def ends_the_call(compiled: Any) -> bool:
    """Whether the graph that is being compiled ends the function of ``compiled``: no graph of this call follows it.

    Outside of Dynamo's trace there is one graph, and it does.
    """
    output = _output_under_way()
    if output is None:
        return True
    reason = output.compile_subgraph_reason
    if reason is None or reason.graph_break:
        return False
    return compiled is None or _continues(output.root_tx.f_code, _code_of(compiled))


def _output_under_way() -> Any:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return InstructionTranslator.current_tx().output
    except AttributeError:
        return None


def _code_of(compiled: Any) -> CodeType | None:
    function: Callable[..., Any] | None = compiled.forward if isinstance(compiled, torch.nn.Module) else compiled
    return getattr(function, "__code__", None)


def _continues(code: CodeType, of: CodeType | None) -> bool:
    """Whether ``code`` is a function's, or what Dynamo made of its rest after a break."""
    if of is None or code.co_filename != of.co_filename:
        return False
    return code is of or code.co_name.startswith(f"{_RESUMED}_{of.co_name}_at_")
