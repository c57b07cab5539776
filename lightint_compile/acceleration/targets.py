"""Which modules of what a user hands over are compiled: a module itself; of a pipeline, denoisers and VAE decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizedModule

from lightint_compile.errors import InputError, StateError
from lightint_compile.torch_marks import compiled_call

DENOISERS = ("transformer", "transformer_2", "unet", "model")
"""Where a pipeline keeps the modules that it calls in every denoising step; the last counts where there is no other."""

DECODER = "vae.decoder"


@dataclass(frozen=True)
class Target:
    """A module to compile.

    Attributes:
        name: its path in a pipeline; empty for a module that was handed over by itself.
        is_decoder: whether it decodes latents, which nothing may approximate.
    """

    name: str
    module: torch.nn.Module
    is_decoder: bool = False


def targets_of(subject: Any) -> list[Target]:
    """The modules of a module or pipeline that are compiled, each once.

    Raises:
        InputError: there is none.
        StateError: one of them is compiled already.
    """
    if isinstance(subject, torch.nn.Module):
        found = [Target("", subject)]
    else:
        named = {name: getattr(subject, name, None) for name in DENOISERS}
        *others, only = DENOISERS
        if any(isinstance(named[name], torch.nn.Module) for name in others):
            del named[only]
        named[DECODER] = getattr(getattr(subject, "vae", None), "decoder", None)
        modules = {value: name for name, value in reversed(named.items()) if isinstance(value, torch.nn.Module)}
        found = [Target(name, value, name == DECODER) for value, name in reversed(modules.items())]
    if not any(not target.is_decoder for target in found):
        raise InputError(
            "there is nothing to accelerate",
            where="accelerate",
            why=f"{type(subject).__name__} is no module, and has none called {', '.join(DENOISERS)}",
            fix="give a torch.nn.Module, or a pipeline that has its denoiser under one of these names",
        )
    for target in found:
        _check_not_compiled(target)
    return found


def _check_not_compiled(target: Target) -> None:
    name = target.name or type(target.module).__name__
    if isinstance(target.module, OptimizedModule):
        fix = "give the module that torch.compile was given"
        raise StateError(f"{name} is compiled already", where="accelerate", why="torch.compile made it", fix=fix)
    if isinstance(target.module, torch.jit.ScriptModule):
        why, fix = "torch.jit made its code, which is not traced", "give the module that it was made from"
        raise InputError(f"{name} is a ScriptModule", where="accelerate", why=why, fix=fix)
    if compiled_call(target.module) is not None:
        why = "its calls run compiled code, of accelerate or of its own compile()"
        fix = "call undo() of the handle that accelerate gave; what compile() did has no undo: give a module without it"
        raise StateError(f"{name} is accelerated already", where="accelerate", why=why, fix=fix)
