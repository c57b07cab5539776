"""Marks that torch leaves on functions and modules: what ``torch.compiler.disable`` made, what is compiled in place.

Like ``torch_compat``, which holds the other private names, this is a bottom rung of the import ladder. The marks are
the same in all supported versions of torch.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._dynamo import eval_frame
from torch._dynamo.eval_frame import OptimizedModule, innermost_fn

_MARKS = (
    "_torchdynamo_disable",
    "_torchdynamo_disable_msg",
    "_torchdynamo_disable_recursive",
    "_torchdynamo_orig_callable",
    "_torchdynamo_wrapper_id",
)
"""What ``torch.compiler.disable`` writes on the function that it makes; ``functools.wraps`` copies it to others."""

_OPENED = "_lightint_original"
"""What :func:`take_disable_off` writes in their place: the original."""

_TORCH_FILES = os.path.dirname(torch.__file__) + os.sep


def disabled_original(function: Any) -> Callable[..., Any] | None:
    """What a function calls that ``torch.compiler.disable`` made, or that wraps such a one; ``None`` for any other.

    It is told of one whose decorator was taken off as well.
    """
    if not inspect.isfunction(function):
        return None
    marks = vars(function)
    original: Any = marks.get(_OPENED) or (is_disabled(function) and marks.get("_torchdynamo_orig_callable"))
    return original if callable(original) else None


def is_disabled(function: Any) -> bool:
    """Whether Dynamo ends a graph at this function because of ``torch.compiler.disable``."""
    return inspect.isfunction(function) and bool(vars(function).get("_torchdynamo_disable"))


def take_disable_off(function: FunctionType) -> Callable[[], None]:
    """Let Dynamo trace what :func:`disabled_original` found, and give what undoes that.

    The function stays the object that it is, so whoever holds it is served. Its code becomes a plain call of the
    original; Dynamo guards on the code of functions, so that what is compiled on either side is not taken on the other.
    """
    code, attributes = function.__code__, dict(vars(function))
    if code.co_filename.startswith(_TORCH_FILES):
        if function not in _CALLING:
            _CALLING[function] = _calling(disabled_original(function), function)
        function.__code__ = _CALLING[function]
    vars(function)[_OPENED] = disabled_original(function)
    for name in _MARKS:
        vars(function).pop(name, None)

    def put_back() -> None:
        function.__code__ = code
        vars(function).pop(_OPENED, None)
        vars(function).update(attributes)

    return put_back


_CALLING: WeakKeyDictionary[FunctionType, CodeType] = WeakKeyDictionary()
"""The code of functions that were opened: equal from one time to the next, so that what was compiled serves again."""


def _calling(original: Any, wrapper: FunctionType) -> CodeType:
    """Code in a wrapper's own closure that passes a call on to the original in it."""
    names = wrapper.__code__.co_freevars
    held = [cell.cell_contents for cell in wrapper.__closure__ or ()]
    (name,) = [name for name, value in zip(names, held, strict=True) if value is original]
    source = (
        f"def make({', '.join(names)}):\n"
        "    def opened(*args, **kwargs):\n"
        f"        return {name}(*args, **kwargs)\n"
        f"        {', '.join(names)}\n"  # never reached: a closure keeps the size that it has
        "    return opened\n"
    )
    space: dict[str, Any] = {}
    exec(compile(source, __file__, "exec"), space)  # of names that Python itself lists: it is no input
    made: FunctionType = space["make"](*held)
    return made.__code__


_COMPILED_CALL = "_compiled_call_impl"
"""Where ``torch.nn.Module.compile`` keeps what calls of a module run; copies of the module leave it out."""


def compiled_call(module: Any) -> Any:
    """What calls of a module run in place of its own code; ``None`` for whatever is not compiled in place."""
    return vars(module).get(_COMPILED_CALL) if isinstance(module, torch.nn.Module) else None


def compile_in_place(module: torch.nn.Module, call: Callable[..., Any]) -> Callable[[], None]:
    """Let calls of a module run ``call``, as ``torch.nn.Module.compile`` does, and give what undoes that.

    What somebody else has put there since stays.
    """
    vars(module)[_COMPILED_CALL] = call

    def undo() -> None:
        if vars(module).get(_COMPILED_CALL) is call:
            del vars(module)[_COMPILED_CALL]

    return undo


def own_call(module: torch.nn.Module) -> Callable[..., Any]:
    """A call of a module with its hooks, past what compiles it in place."""
    call: Callable[..., Any] = module._call_impl
    return call


def uncompiled(subject: Any) -> Any:
    """What ``torch.compile`` was given, where it made ``subject``; else ``subject``.

    A module that is compiled in place stays the object that it is: its copies are not compiled, and :func:`eager_calls`
    runs its own code.
    """
    while isinstance(subject, OptimizedModule):
        subject = subject._orig_mod
    return subject if isinstance(subject, torch.nn.Module) or is_disabled(subject) else innermost_fn(subject)


@contextmanager
def parts_uncompiled(subject: Any) -> Iterator[None]:
    """A module holds nothing that is compiled while the context lasts: then it can be copied, and its copy is eager.

    Each part that ``torch.compile`` made is what that was given, and what compiles a module in place is gone. Calls
    from other threads run eagerly meanwhile.
    """
    module = getattr(subject, "__self__", subject)
    modules = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    places: list[dict[str, Any]] = [held for each in modules for held in (each._modules, vars(each))]
    changed = [
        (held, name, value, uncompiled(value))
        for held in places
        for name, value in held.items()
        if isinstance(value, OptimizedModule) or inspect.isfunction(value)
    ]
    changed = [each for each in changed if each[2] is not each[3]]
    calls = [(vars(each), call) for each in modules if (call := compiled_call(each)) is not None]
    for held, name, _, plain in changed:
        held[name] = plain
    for attributes, _ in calls:
        del attributes[_COMPILED_CALL]
    try:
        yield
    finally:
        for held, name, value, plain in changed:
            if held.get(name) is plain:
                held[name] = value
        for attributes, call in calls:
            attributes.setdefault(_COMPILED_CALL, call)


_lock = threading.Lock()
_eager: list[Any] = []
"""What undoes that calls are eager, once for each who asks: the first makes it so, the last takes it back."""


@contextmanager
def eager_calls() -> Iterator[None]:
    """Calls inside run their own code, whatever ``torch.compile`` or ``accelerate`` made of the functions on the way.

    It holds for the process: other threads run eagerly meanwhile, which changes no result.
    """
    with _lock:
        stance = None if _eager else torch.compiler.set_stance("force_eager")
        _eager.append(_eager[0] if stance is None else stance)
    try:
        yield
    finally:
        with _lock:
            stance = _eager.pop()
            if not _eager:
                stance.__exit__(None, None, None)


def calls_are_eager() -> bool:
    """Whether the process was told to run nothing that is compiled, by :func:`eager_calls` or by the user."""
    return eval_frame._stance.stance == "force_eager"
