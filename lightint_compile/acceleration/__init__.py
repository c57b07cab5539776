"""One line in front of a model or pipeline, and one that undoes it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lightint_compile.acceleration.compiled_call import CompiledCall
from lightint_compile.acceleration.handle import Accelerated
from lightint_compile.acceleration.opened import Opened
from lightint_compile.acceleration.targets import Target, targets_of
from lightint_compile.capture.disabled import disabled_in
from lightint_compile.capture.memos import Memos, named_memos
from lightint_compile.errors import InputError, OptionError
from lightint_compile.integrations import installed
from lightint_compile.integrations.loop_rules import LoopRules
from lightint_compile.options import LightintOptions
from lightint_compile.options.values import DEFAULT_PRESET

log = logging.getLogger(__name__)


def accelerate(
    model_or_pipeline: Any,
    *,
    preset: str = DEFAULT_PRESET,
    dynamic: bool | None = None,
    memos: Sequence[str] = (),
    **options: Any,
) -> Accelerated:
    """Compile a model or a pipeline in place, and look through what stops ``torch.compile``, until ``undo()``.

    * ``torch.compiler.disable`` comes off the functions that calls of the model reach, for as long as the handle is in
      force. It is held to the first call: a function that does not trace gets the decorator back, and the report says
      why. The code of libraries that the model uses keeps its decorators.
    * A module is compiled in place, as by :meth:`torch.nn.Module.compile`: it stays the same object with the same
      ``state_dict``. Of a pipeline these are ``transformer``, ``transformer_2``, ``unet``, or ``model`` where there is
      none of these, and ``vae.decoder``; the decoder runs the preset ``exact``.
    * A pipeline whose loop an adapter knows (:mod:`lightint_compile.integrations`) has its chunks counted, its context
      frames chosen and steps reused as by :func:`lightint_compile.rollout`, where the preset does so inside of a model.

    The handle has ``report()``, ``decisions()`` and ``undo()``, and is a context manager.

    Args:
        model_or_pipeline: a ``torch.nn.Module``, or any object that has its denoiser under one of those names.
        preset: as of :class:`~lightint_compile.options.LightintOptions`.
        dynamic: as of ``torch.compile``; without it a size becomes symbolic when it changes.
        memos: dictionaries of modules, as ``"package.module.TABLES"``, that compiled code goes without. Their functions
            find them empty, and compute what they would have kept. By naming one you say that an entry follows from its
            key and from weights, and that computing it does nothing else. The report names what looks like one.
        options: the other options, by name.

    Raises:
        InputError: there is no module to compile, ``dynamic`` is no truth value, or a memo no dictionary of a module.
        OptionError: options that cannot be taken.
        StateError: a module is compiled or accelerated already.
    """
    if "options" in options:
        why, fix = "it takes each of them by name", 'for example accelerate(model, preset="exact")'
        raise OptionError("accelerate takes no options={...}", where="accelerate", why=why, fix=fix)
    chosen = LightintOptions.from_mapping({"preset": preset, **options})
    rules = LoopRules.of(chosen)
    if not (dynamic is None or isinstance(dynamic, bool)):
        fix = "give True, False or None; sizes that change become symbolic by themselves"
        raise InputError(f"{dynamic!r} says of no size whether it is symbolic", where="dynamic", fix=fix)
    name, named = type(model_or_pipeline).__name__, named_memos(memos)
    calls: dict[str, CompiledCall] = {}
    try:
        for target in targets_of(model_or_pipeline):
            opened = Opened(disabled_in(target.module))
            calls[target.name] = CompiledCall(target.module, _options_of(target, chosen), dynamic, opened, Memos(named))
        loop = installed(model_or_pipeline, calls, rules)
    except BaseException:
        for call in calls.values():
            call.undo()
        raise
    handle = Accelerated(name, calls, loop)
    log.info("%s", handle)
    return handle


def _options_of(target: Target, options: LightintOptions) -> LightintOptions:
    """A decoder is nothing that may be approximated, and has nothing that a user named of the denoiser."""
    if not target.is_decoder or options.preset == "off":
        return options
    return LightintOptions(preset="exact", strict=options.strict, delegate=options.delegate)
