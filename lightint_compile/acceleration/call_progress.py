"""How far a call had come when Dynamo failed in it: what has run is not run again, it may have written something.

Dynamo compiles a call function by function, each in front of its first instruction. Whatever is on the stack below the
function that it fails in has begun, and may have called others before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import FrameType

import torch
from torch._dynamo.exc import TorchRuntimeError

_TORCH = os.path.dirname(torch.__file__)
_DYNAMO = os.path.join(_TORCH, "_dynamo", "")
_CONVERSION = os.path.join(_DYNAMO, "convert_frame.py")
_AROUND = {os.path.join(_TORCH, *each) for each in (("nn", "modules", "module.py"), ("utils", "_contextlib.py"))}
_AROUND.add(os.path.join(_TORCH, "amp", "autocast_mode.py"))
"""Files whose functions call another and do nothing of their own: calls of modules, decorators that switch a mode."""


def is_one_frame(module: torch.nn.Module) -> bool:
    """Whether the first function of a call that Dynamo sees does all of it.

    Hooks of a module and its ``forward`` are called, and compiled, one after another.
    """
    own, everybodys = vars(module), vars(torch.nn.modules.module)
    return not any(own.get(name) or everybodys[f"_global{name}"] for name in ("_forward_hooks", "_forward_pre_hooks"))


def has_begun(error: BaseException) -> bool:
    """Whether a function of the call was running when Dynamo raised ``error`` while it compiled another.

    Asked by the function that made the call, where it catches the error.
    """
    for frame in _frames(error):
        file = frame.f_code.co_filename
        if file == _CONVERSION:
            return False
        if not file.startswith(_DYNAMO) and file not in _AROUND:
            return True
    return False


def may_be_the_callers(error: BaseException) -> bool:
    """Whether what ended a trace is an exception of the traced code, which a call without a trace may raise as well."""
    return isinstance(error, TorchRuntimeError) or "Observed exception" in str(error)


def _frames(error: BaseException) -> Iterator[FrameType]:
    """From the one that was called where ``error`` is caught to the one that raised it."""
    traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next
